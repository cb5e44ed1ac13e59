"""One run at a time in a workspace: who holds it, who waits, and what frees it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import holder
from pipeline.holder import HOLDER_FILE, Holder, WorkspaceBusy, hold

HOLDING = """
import sys, time
from pathlib import Path
from pipeline.holder import hold
with hold(Path.cwd(), sys.argv[1], wait=False):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def start(checkout: Path, root: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts Python in the checkout and waits for its first line."""
    started = []

    def run(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *words],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), str(root)])},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline()
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.close()
        process.wait()


def holder_of(root: Path) -> Holder | None:
    """Who works in the workspace now, as a run finds it; nobody: None."""
    try:
        with hold(root, "a test", wait=False):
            return None
    except WorkspaceBusy as busy:
        return busy.holder


def free_within(root: Path, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holder_of(root) is None:
            return True
        time.sleep(0.1)
    return False


def test_an_idle_workspace_is_held_by_nobody_before_and_after_a_run(checkout: Path):
    assert holder_of(checkout) is None
    with hold(checkout, "flow run 'amber-owl'", wait=False):
        there = holder_of(checkout)
        assert there is not None
        assert there.pid == os.getpid()
        said = str(there)
        assert said.startswith(f"flow run 'amber-owl' (process {os.getpid()} on ")
        assert said.endswith(" UTC)")
    assert holder_of(checkout) is None


@pytest.mark.kill
def test_a_second_run_is_told_who_is_there_and_kill_9_frees_the_workspace(
    checkout: Path, start: Callable[..., subprocess.Popen[str]]
):
    first = start("-c", HOLDING, "flow run 'amber-owl'")
    with pytest.raises(WorkspaceBusy) as refused, hold(checkout, "second", wait=False):
        pass
    assert f"held by flow run 'amber-owl' (process {first.pid} on " in str(refused.value)
    assert json.loads(HOLDER_FILE.read_text())["pid"] == first.pid
    first.kill()
    first.wait()
    assert "amber-owl" in HOLDER_FILE.read_text()  # what it wrote stays, the lock does not
    with hold(checkout, "second", wait=False):
        assert json.loads(HOLDER_FILE.read_text())["what"] == "second"


def test_a_run_that_waits_says_for_whom_and_goes_on_when_that_one_ends(
    checkout: Path, start: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(holder, "POLL_SECONDS", 0.1)
    first = start("-c", HOLDING, "flow run 'amber-owl'")
    told: list[Holder] = []

    def note(there: Holder) -> None:
        told.append(there)
        first.terminate()

    with hold(checkout, "second", wait=True, on_wait=note):
        assert first.wait(timeout=10) == -signal.SIGTERM
    assert [there.pid for there in told] == [first.pid]


def test_a_wait_ends_with_what_is_raised_in_it_and_the_next_one_gets_its_turn(checkout: Path):
    asked = []

    def stop() -> None:
        asked.append(1)
        raise KeyboardInterrupt

    with hold(checkout, "flow run 'amber-owl'", wait=False):
        with pytest.raises(KeyboardInterrupt), hold(checkout, "second", wait=True, on_poll=stop):
            pass
        assert "amber-owl" in HOLDER_FILE.read_text()
    assert asked == [1]
    with hold(checkout, "third", wait=False, on_poll=stop):  # nobody is waited for
        pass


def test_a_dvc_command_typed_by_hand_holds_the_workspace_while_it_runs_a_stage(
    checkout: Path, start: Callable[..., subprocess.Popen[str]]
):
    graph = Path("dvc.yaml").read_text()
    Path("dvc.yaml").write_text(graph.replace("trainer.py 5", "trainer.py 2000"))
    dvc = start("-m", "dvc", "repro", "train")
    deadline = time.monotonic() + 60
    while not Path("runs/step").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with pytest.raises(WorkspaceBusy) as refused, hold(checkout, "flow run", wait=False):
        pass
    assert refused.value.holder.pid == dvc.pid
    assert "dvc repro train (process" in str(refused.value)
    os.killpg(dvc.pid, signal.SIGTERM)
    dvc.wait()
    assert free_within(checkout, 10)
    assert str(dvc.pid) in Path(".dvc/tmp/rwlock").read_text()  # a number that no longer counts


def test_a_dvc_command_that_only_looks_is_no_reason_to_wait(
    checkout: Path, start: Callable[..., subprocess.Popen[str]]
):
    Path(".dvc/tmp").mkdir()
    looks = "import time, zc.lockfile\nlock = zc.lockfile.LockFile('.dvc/tmp/lock')\nprint('has')\n"
    start("-uc", f"{looks}time.sleep(1); lock.close(); time.sleep(600)")
    with hold(checkout, "flow run", wait=False):
        pass
    stays = start("-uc", f"{looks}time.sleep(600)")
    with pytest.raises(WorkspaceBusy) as refused, hold(checkout, "flow run", wait=False):
        pass
    assert refused.value.holder.pid == stays.pid


def test_a_stage_that_outlived_its_run_holds_the_workspace_until_it_has_ended(
    checkout: Path, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
):
    (checkout / "stages").mkdir()
    (checkout / "stages/__init__.py").touch()
    (checkout / "stages/train.py").write_text("import time; print(1, flush=True); time.sleep(600)")
    stage = start("-m", "stages.train")
    there = holder_of(checkout)
    assert there is not None
    assert there.pid == stage.pid
    assert there.what.endswith("-m stages.train")
    assert holder_of(tmp_path.parent) is None  # another workspace is not concerned
    stage.kill()
    stage.wait()
    assert holder_of(checkout) is None


def test_a_stage_of_a_run_with_params_of_its_own_holds_the_project_too(
    checkout: Path, start: Callable[..., subprocess.Popen[str]]
):
    beside = checkout / "runs/workspaces/smoke-12345678"
    (beside / "stages").mkdir(parents=True)
    (beside / "stages/__init__.py").touch()
    (beside / "stages/train.py").write_text("import time; print(1, flush=True); time.sleep(600)")
    with contextlib.chdir(beside):
        stage = start("-m", "stages.train")
    there = holder_of(checkout)
    assert there is not None
    assert there.pid == stage.pid
