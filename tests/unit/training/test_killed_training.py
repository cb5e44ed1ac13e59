"""A training that is killed, at any moment, ends where an unbroken one does, bit for bit."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.kill,
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and asks the kernel for signals"),
]

KILLS = 20
OFTEN = {"save_every_seconds": 0.01}  # so that most kills fall into a save


def run_all(folder: Path, root: Path, runs: list[dict[str, Any]]) -> list[list[Any]]:
    """Exit code and last saved step of each run, made one after the other; see killed_runs.py."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed_runs.py")), json.dumps(runs)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def a_run(stage: str, *words: str, **end: Any) -> dict[str, Any]:
    return {"stage": stage, "words": words, "end": end or None}


def products(folder: Path, item: str) -> dict[str, bytes]:
    found = sorted((folder / "artifacts" / item).rglob("*.safetensors"))
    assert found
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def losses(folder: Path, item: str) -> list[str]:
    rows = (folder / f"plots/{item}.csv").read_text().splitlines()
    return [",".join(row.split(",")[:-1]) for row in rows]  # the last is images per second


def test_pretraining_killed_at_twenty_moments_and_within_saves_ends_bit_for_bit_the_same(
    root: Path, make_workspace: Callable[..., Path]
):
    settings = {"pretrain": {"duration": "150 steps", "batch_size": 4}, "runtime": OFTEN}
    unbroken = make_workspace("unbroken", settings)
    assert run_all(unbroken, root, [a_run("pretrain")]) == [[0, None]]
    killed = make_workspace("killed", settings)
    rng = random.Random(0)
    at_random = [a_run("pretrain", after=rng.uniform(0, 0.03)) for _ in range(KILLS)]
    within = [
        a_run("pretrain", at=moment, count=count)
        for moment in ("writing", "fsync", "between renames", "after renames")
        for count in (1, 2)
    ]
    *ends, last = run_all(killed, root, [*at_random, *within, a_run("pretrain")])
    assert [code for code, _ in ends] == [-9] * (KILLS + len(within))
    steps = [step for _, step in ends]
    assert steps == sorted(steps)  # nothing saved is ever lost
    assert last == [0, None]
    assert products(killed, "pretrain") == products(unbroken, "pretrain")
    assert losses(killed, "pretrain") == losses(unbroken, "pretrain")
