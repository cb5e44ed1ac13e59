"""A small training in a folder of its own, run as the stage is: in processes that can be killed."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture(scope="session")
def noise_shards(
    tmp_path_factory: pytest.TempPathFactory, make_noise_shards: Callable[..., Path]
) -> Path:
    """Some 60 grey pictures of 16 pixels, three quarters of them to train on."""
    return make_noise_shards(tmp_path_factory.mktemp("noise"), per_class=30, side=16)


@pytest.fixture
def make_workspace(tmp_path: Path, root: Path, noise_shards: Path) -> Callable[..., Path]:
    """Makes a folder in which a tiny pretraining runs: `make_workspace(name, {"runtime": ...})`."""

    def make(name: str, changes: Mapping[str, Mapping[str, Any]] | None = None) -> Path:
        folder = tmp_path / name
        (folder / "data").mkdir(parents=True)
        (folder / "data/shards").symlink_to(noise_shards)
        params = yaml.safe_load((root / "pipeline/profiles/smoke.yaml").read_text("utf-8"))
        params["data"] |= {"image_size": 16}
        params["pretrain"]["encoder"] |= {"depth": 10, "width_multiplier": 0.0625}
        params["pretrain"]["memory"] |= {"kind": "simclr", "size": 40}
        params["pretrain"] |= {"batch_size": 8, "duration": "60 steps", "warmup": "5 steps"}
        params["runtime"] |= {"device": "cpu", "threads": 1, "log_every_steps": 20}
        for section, values in (changes or {}).items():
            params[section] |= values
        (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        return folder

    return make


@pytest.fixture
def start_pretraining(root: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the stage in a workspace: `start_pretraining(folder, "ip", "netns", ...)`."""

    def start(folder: Path, *before: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*before, sys.executable, "-m", "stages.pretrain"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(root), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start
