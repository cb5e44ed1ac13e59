"""Commands of a run and their trees: output that is followed, ends that leave nothing behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipeline import processes

# As torchrun does: the worker has a session of its own. It saves when told to stop, once.
WORKER = """
import pathlib, signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
pathlib.Path("ready").touch()
while not told:
    print("step", flush=True)
    time.sleep(0.02)
time.sleep(0.3)
pathlib.Path("saved").write_text(str(len(told)))
sys.exit(75)
"""
COMMAND = """
import subprocess, sys
print("started", flush=True)
sys.exit(subprocess.Popen([sys.executable, "worker.py"], start_new_session=True).wait())
"""
RUN = """
from pathlib import Path
from pipeline import processes
import os, sys
processes.run(
    [sys.executable, "command.py"], Path.cwd(), os.environ, Path("log"), lambda line: None
)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "command.py").write_text(COMMAND)
    (tmp_path / "run.py").write_text(RUN)
    return tmp_path


@pytest.fixture(autouse=True)
def _starts_are_allowed() -> Iterator[None]:
    yield
    processes.allow_starts()


def alive_in(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_lines_come_as_they_are_written_and_stay_in_the_log(tmp_path: Path):
    heard: list[str] = []
    code = "print('one'); print('10%\\r20%\\r30%'); print('end', end=''); raise SystemExit(3)"
    for _ in range(2):
        ended_with = processes.run(
            [sys.executable, "-c", code], tmp_path, os.environ, tmp_path / "log", heard.append
        )
        assert ended_with == 3
    assert heard == ["one", "30%", "end"] * 2
    assert (tmp_path / "log").read_text().count("one") == 2


@pytest.mark.kill
def test_killed_run_takes_its_commands_with_it_and_the_trainer_saves(folder: Path, root: Path):
    run = subprocess.Popen(
        [sys.executable, "run.py"], cwd=folder, env={**os.environ, "PYTHONPATH": str(root)}
    )
    wait_for((folder / "ready").exists)
    assert len(alive_in(folder)) == 4  # run, guard, command, worker
    run.kill()
    run.wait(timeout=10)
    wait_for(lambda: not alive_in(folder))
    assert (folder / "saved").read_text() == "1"


def test_a_guard_whose_run_was_gone_before_it_looked_ends_its_command():
    somebody_else = str(os.getppid())
    words = [sys.executable, "-P", str(processes.GUARD), "5", somebody_else, "sleep", "60"]
    assert subprocess.run(words, timeout=30).returncode == 128 + signal.SIGTERM


@pytest.mark.kill
@pytest.mark.parametrize("first", ["nothing", "the command"])
def test_stopped_run_leaves_no_process_even_if_the_command_died_first(folder: Path, first: str):
    codes: list[int] = []
    thread = threading.Thread(
        target=lambda: codes.append(
            processes.run(
                [sys.executable, "command.py"],
                folder,
                os.environ,
                folder / "log",
                lambda line: None,
            )
        )
    )
    thread.start()
    wait_for((folder / "ready").exists)
    if first == "the command":  # the worker is an orphan now, and the guard adopts it
        guard = psutil.Process().children()[-1]
        guard.children()[0].kill()
    processes.stop_all()
    thread.join(timeout=10)
    assert alive_in(folder) == []
    assert (folder / "saved").read_text() == "1"
    assert codes == [75 if first == "nothing" else 128 + signal.SIGKILL]
    with pytest.raises(processes.Stopping):
        processes.run(["true"], folder, os.environ, folder / "log", lambda line: None)


@pytest.mark.kill
def test_a_command_whose_listener_gave_up_is_waited_for_by_the_stop(folder: Path):
    def give_up(_line: str) -> None:
        if (folder / "ready").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        processes.run([sys.executable, "command.py"], folder, os.environ, folder / "log", give_up)
    processes.stop_all()
    assert alive_in(folder) == []
    assert (folder / "saved").read_text() == "1"
