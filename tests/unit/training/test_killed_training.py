"""A training that is killed, at any moment, ends where an unbroken one does, bit for bit."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.dvc import read_outcome
from stages.training import checkpoint

pytestmark = [
    pytest.mark.kill,
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and asks the kernel for signals"),
]

KILLS = 20
BY_THE_CLOCK = {"images_per_second", "waited_share"}
OFTEN = {"save_every_seconds": 0.01}  # so that most kills fall into a save


def run_all(folder: Path, root: Path, runs: list[dict[str, Any]]) -> list[list[Any]]:
    """Exit code and last saved step of each run, made one after the other; see killed_runs.py."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed_runs.py")), json.dumps(runs)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def a_run(stage: str, *words: str, **end: Any) -> dict[str, Any]:
    return {"stage": stage, "words": words, "end": end or None}


def products(folder: Path, item: str) -> dict[str, bytes]:
    found = sorted((folder / "artifacts" / item).rglob("*.safetensors"))
    assert found
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def losses(folder: Path, item: str) -> list[dict[str, str]]:
    """The curve, but for what the clock says."""
    with (folder / f"plots/{item}.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert "loss" in rows[0]
    return [{name: x for name, x in row.items() if name not in BY_THE_CLOCK} for row in rows]


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


@pytest.mark.slow
def test_other_trainings_killed_while_they_train_side_by_side_end_the_same(
    root: Path, make_workspace: Callable[..., Path]
):
    fraction = "10_per_class"
    short = {"duration": "30 steps", "warmup": None, "batch_size": 8}
    distill = {"teacher_layer": 0, "warmup": None, "batch_size": 8}
    settings = {
        "pretrain": {"duration": "10 steps"},
        "finetune": {"label_fractions": [fraction], "layers": [0], "seeds": 2, **short},
        "supervised": {"lr_grid": [0.003, 0.006], "duration_grid": ["30 steps"], "overrides": {}},
        "distill": distill,
        "runtime": {**OFTEN, "trainings_at_once": 2},
    }
    stages = [
        ("finetune", "finetune", ("--fraction", fraction)),
        ("supervised", "supervised", ("--fraction", fraction)),
        ("distill", "distill_same", ("--student", "same", "--fraction", fraction)),
    ]
    before = [a_run("subsets", "--fraction", fraction), a_run("pretrain")]
    unbroken, killed = make_workspace("unbroken", settings), make_workspace("killed", settings)
    rng = random.Random(1)
    whole = [a_run(stage, *words) for stage, _, words in stages]
    assert [code for code, _ in run_all(unbroken, root, before + whole)] == [0] * 5
    broken = [
        run
        for stage, _, words in stages
        for run in (
            a_run(stage, *words, after=rng.uniform(0, 0.2)),
            a_run(stage, *words, after=rng.uniform(0, 0.2)),
            a_run(stage, *words),
        )
    ]
    codes = [code for code, _ in run_all(killed, root, before + broken)]
    assert codes == [0, 0, *[-9, -9, 0] * 3]
    for _, item, _ in stages:
        ours, theirs = (products(folder, f"{item}/{fraction}") for folder in (killed, unbroken))
        assert ours == theirs


GRAPH = """
stages:
  pretrain:
    cmd: python -m stages.pretrain
    deps: [data/shards/index.json]
    params: [pretrain]
    outs: [artifacts/pretrain]
"""


def test_a_stage_under_dvc_saves_when_it_is_told_to_stop_and_when_dvc_is_killed(
    root: Path, make_workspace: Callable[..., Path]
):
    folder = make_workspace("dvc", {"pretrain": {"duration": "500000 steps"}})
    shutil.copytree(folder / "data/shards", folder / "data/copied")  # dvc follows no link outside
    (folder / "data/shards").unlink()
    (folder / "data/copied").rename(folder / "data/shards")
    (folder / "dvc.yaml").write_text(GRAPH)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run([*DVC, "init", "--quiet"], cwd=folder, check=True)

    dvc, stage = under_dvc(folder, root)
    second = subprocess.run(
        [sys.executable, "-m", "stages.pretrain"],
        cwd=folder,
        env=environment(root),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert second.returncode == 2
    assert f"process {stage.pid} on" in second.stderr
    stage.send_signal(signal.SIGTERM)
    output, _ = dvc.communicate(timeout=400)
    assert dvc.returncode == 255
    assert read_outcome("pretrain", output.splitlines(), 255, 0.0).exit_code == 75

    dvc, stage = under_dvc(folder, root)
    dvc.kill()  # its trainer would train on, unseen, and into a pipe that nobody reads
    dvc.communicate(timeout=400)
    assert psutil.wait_procs([stage], timeout=60)[1] == []
    saved = checkpoint.load(folder / "runs/pretrain/last.pt")["state"]["step"]

    dvc, stage = under_dvc(folder, root, f"continuing at step {saved} from")
    os.killpg(dvc.pid, signal.SIGINT)  # Ctrl-C
    output, _ = dvc.communicate(timeout=400)
    assert read_outcome("pretrain", output.splitlines(), dvc.returncode, 0.0).exit_code == 75


DVC = (sys.executable, "-m", "dvc")


def environment(root: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    known = {"PATH": path, "PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **known, "SHELL": "/bin/sh"}  # dash stays between dvc and the stage


def under_dvc(
    folder: Path, root: Path, words: str = "500000 steps"
) -> tuple[subprocess.Popen[str], psutil.Process]:
    """`dvc repro` and the stage below it, once that trains."""
    dvc = subprocess.Popen(
        [*DVC, "repro"],
        cwd=folder,
        env=environment(root),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # see test_flows
    )
    assert dvc.stdout is not None
    said = ""
    for line in dvc.stdout:
        said += line
        if "steps of" in line:
            break
    if words not in said:
        os.killpg(dvc.pid, signal.SIGKILL)  # the stage sees that and ends, and saves a last time
        dvc.communicate(timeout=60)
        pytest.fail(said)
    found = [
        process
        for process in psutil.Process(dvc.pid).children(recursive=True)
        if "stages.pretrain" in process.cmdline()
    ]
    return dvc, found[-1]
