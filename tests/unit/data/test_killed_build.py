"""The stage shard, ended by SIGKILL while it writes, and run again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from stages.data.images import encode_png
from stages.data.tar_reader import list_members

ROOT = Path(__file__).resolve().parents[3]
PER_CLASS = 1500  # enough for several processes and some hundred shards


def workspace(folder: Path, pictures: Path) -> Path:
    folder.mkdir()
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["data"] |= {"source": "folder", "root": str(pictures), "validation_images": 100}
    params["data"] |= {"test_fraction": 0.1, "images_per_shard": 12, "image_size": 32}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    return folder


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "stages.shard"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(folder: Path) -> str:
    process = start(folder)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "data/shards").iterdir())}


@pytest.mark.kill
def test_a_killed_stage_goes_on_at_the_first_missing_shard_to_the_same_bytes(tmp_path: Path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            pixels = rng.integers(0, 256, (32, 32), dtype=np.uint8)
            (tmp_path / f"pictures/{name}/{number}.png").write_bytes(encode_png(pixels))
    whole = workspace(tmp_path / "whole", tmp_path / "pictures")
    assert "shards taken over" not in finish(whole)
    n_shards = len(list((whole / "data/shards").glob("*.tar")))

    killed = workspace(tmp_path / "killed", tmp_path / "pictures")
    waiting = killed / "runs/shard"
    process = start(killed)
    deadline = time.monotonic() + 120
    while len(list(waiting.glob("*.tar"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # to the end of its workers, which hold the same pipe
    assert not (killed / "data/shards").exists()
    finished = list(waiting.glob("*.tar"))
    assert 3 <= len(finished) < n_shards
    assert all(list_members(path) for path in finished)
    (waiting / f"{finished[0].name}.partial").write_bytes(finished[0].read_bytes()[:1000])

    output = finish(killed)
    assert f"shard: {len(finished)} of {n_shards} shards taken over" in output
    assert content_of(killed) == content_of(whole)
    assert not waiting.exists()
    assert f"shard: {n_shards} of {n_shards} shards taken over" in finish(killed)
