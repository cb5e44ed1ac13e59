"""The bridge to dvc: its graph, what its output means, and a run of a small graph."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.dvc import Workspace, read_dot, read_lock, read_outcome, upstream_of
from stages.errors import UserError

DOT = """strict digraph {
"shard";
"probe@0.01";
"probe@10_per_class";
"report";
"images.dvc";
"images.dvc" -> "shard";
"shard" -> "probe@0.01";
"shard" -> "probe@10_per_class";
"probe@0.01" -> "report";
"probe@10_per_class" -> "report";
}
"""


def test_a_lock_that_dvc_is_just_writing_is_read_when_it_is_whole(tmp_path: Path):
    lock = tmp_path / "dvc.lock"
    lock.write_text("stages:\n  train: {outs: [")
    writer = threading.Timer(0.3, lock.write_text, ["stages:\n  train: {outs: []}\n"])
    writer.start()
    assert read_lock(tmp_path) == {"train": {"outs": []}}
    writer.join()


def test_graph_lists_what_each_stage_follows_in_an_order_that_can_be_run():
    graph = read_dot(DOT)
    assert graph == {
        "shard": [],
        "probe@0.01": ["shard"],
        "probe@10_per_class": ["shard"],
        "report": ["probe@0.01", "probe@10_per_class"],
    }
    assert next(iter(graph)) == "shard"
    assert list(graph)[-1] == "report"


@pytest.mark.parametrize(
    ("targets", "needed"),
    [
        ([], {"shard", "probe@0.01", "probe@10_per_class", "report"}),
        (["probe@0.01"], {"shard", "probe@0.01"}),
        (["probe"], {"shard", "probe@0.01", "probe@10_per_class"}),
        (["report"], {"shard", "probe@0.01", "probe@10_per_class", "report"}),
    ],
)
def test_targets_bring_all_that_stands_before_them(targets: list[str], needed: set[str]):
    assert set(upstream_of(read_dot(DOT), targets)) == needed


def test_unknown_target_is_refused_with_the_stages_there_are():
    with pytest.raises(UserError, match=r"no stage prob; the stages are: shard, probe@0\.01"):
        upstream_of(read_dot(DOT), ["prob"])


@pytest.mark.parametrize(
    ("lines", "code", "status", "exit_code"),
    [
        (["Running stage 'train':", "> python trainer.py", "loss 1.2"], 0, "ran", 0),
        (["Stage 'train' didn't change, skipping"], 0, "cached", 0),
        (["Stage 'train' is cached - skipping run, checking out outputs"], 0, "cached", 0),
        (
            [
                "Running stage 'train':",
                "ERROR: failed to reproduce 'train': failed to run: x, exited with 75",
            ],
            255,
            "failed",
            75,
        ),
        (
            ["exited with 3", "ERROR: failed to run: x 'exited with 2', exited with -9"],
            255,
            "failed",
            -9,
        ),
        (["ERROR: failed to run: x, exited with -2"], 255, "failed", 75),
        (["ERROR: output 'model' does not exist"], 255, "failed", 1),
    ],
)
def test_outcome_is_read_from_what_dvc_says(
    lines: list[str], code: int, status: str, exit_code: int
):
    outcome = read_outcome("train", lines, code, 1.5)
    assert (outcome.status, outcome.exit_code, outcome.seconds) == (status, exit_code, 1.5)


def test_failed_stage_passes_its_last_lines_on():
    lines = [f"line {number}" for number in range(100)]
    outcome = read_outcome("train", [*lines, "failed to run: x, exited with 2"], 255, 0.0)
    assert outcome.message.splitlines()[-2:] == ["  line 99", "  failed to run: x, exited with 2"]
    assert len(outcome.message.splitlines()) == 15


def test_stages_run_once_then_are_cached_and_tell_their_numbers(checkout: Path):
    workspace = Workspace.here()
    graph = workspace.graph()
    assert graph["score@0.1"] == ["train"]
    assert workspace.changed() == set(graph)

    heard: list[str] = []
    assert workspace.reproduce("shard", heard.append).status == "ran"
    assert not [line for line in heard if "git add" in line or "dvc push" in line]
    assert "git add" in Path("runs/logs/shard.log").read_text()
    assert "Running stage 'shard':" in heard
    assert workspace.metrics("shard") == {"shard": {"images": 3}}
    assert workspace.reproduce("shard", heard.append).status == "cached"
    assert workspace.changed() == set(graph) - {"shard"}


def test_stage_that_ran_and_made_the_same_again_says_so(checkout: Path):
    workspace = Workspace.here()
    assert not workspace.reproduce("other", lambda _: None).same_products
    again = workspace.reproduce("other", lambda _: None, force=True)
    assert (again.status, again.same_products) == ("ran", True)
    Path("source").write_text("four pictures")
    assert not workspace.reproduce("other", lambda _: None).same_products


def test_stage_that_exits_75_is_told_from_one_that_exits_1(checkout: Path):
    Path("trainer.py").write_text("import sys; sys.exit(75)")
    workspace = Workspace.here()
    assert workspace.reproduce("shard", lambda _: None).status == "ran"
    outcome = workspace.reproduce("train", lambda _: None)
    assert (outcome.status, outcome.exit_code) == ("failed", 75)


def test_a_stage_waits_while_a_dvc_command_typed_by_hand_uses_its_files(checkout: Path):
    graph = Path("dvc.yaml").read_text()
    Path("dvc.yaml").write_text(graph.replace("trainer.py 5", "trainer.py 100000"))
    workspace = Workspace.here()
    assert workspace.reproduce("shard", lambda _: None).status == "ran"
    by_hand = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "train"], process_group=0)
    try:
        deadline = time.monotonic() + 60
        while not Path("runs/step").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        heard: list[str] = []

        def listen(line: str) -> None:
            heard.append(line)
            if line.startswith("waiting: another command uses the files of train: (PID "):
                Path("trainer.py").write_text("import pathlib; pathlib.Path('model').touch()")
                os.killpg(by_hand.pid, signal.SIGKILL)
                by_hand.wait()  # dvc takes a process that nobody has waited for as a living one

        outcome = workspace.reproduce("train", listen)
    finally:
        by_hand.kill()
        by_hand.wait()
    assert outcome.status == "ran", heard
    assert f"(PID {by_hand.pid}): " in "".join(heard)


def test_folder_without_a_graph_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no dvc\.yaml"):
        Workspace.here()


def test_graph_that_dvc_cannot_read_is_the_users_to_mend(checkout: Path):
    Path("dvc.yaml").write_text("stages: {shard: {cmd: a, dep: [b]}}")
    with pytest.raises(UserError, match=r"dvc can't read the graph in .*dvc.yaml"):
        Workspace.here().graph()
