"""The processes a run has started, and how to end every one of them.

Ending the process we started is not enough: dvc starts a shell, the shell a trainer, the trainer
perhaps torchrun, whose workers have sessions of their own. So the whole tree is listed first and
each process in it told to stop. Kept apart from the flow because Prefect pickles what hangs on a
flow's module, and locks and events can't be.
"""

import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

GRACE_SECONDS = 20.0  # Prefect's runner sends SIGKILL 30 s after a cancel; be done before that

_stopping = threading.Event()
_lock = threading.Lock()
_running: set[subprocess.Popen[str]] = set()


class Stopping(Exception):
    """Nothing new is started once the run was told to stop."""


def is_stopping() -> bool:
    """Whether the run was told to stop. Whatever fails from then on is not worth a retry."""
    return _stopping.is_set()


def start(command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a command in a session of its own, output and errors in one pipe of text lines.

    Raises:
        Stopping: the run was told to stop.
    """
    with _lock:
        if _stopping.is_set():
            raise Stopping("the run was told to stop")
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches us alone; we pass it on to the whole tree
        )
        _running.add(process)
    return process


def finished(process: subprocess.Popen[str]) -> int:
    """Wait for a started command and forget it; its exit code."""
    code = process.wait()
    with _lock:
        _running.discard(process)
    return code


def stop_all(grace_seconds: float = GRACE_SECONDS) -> None:
    """End every process of the run: SIGTERM, so that trainers save; SIGKILL to what is left."""
    with _lock:
        _stopping.set()
        roots = [process.pid for process in _running]
    tree = [process for root in roots for process in _tree(root)]
    for process in tree:
        _tell(process, kill=False)
    deadline = time.monotonic() + grace_seconds
    while time.monotonic() < deadline and any(_is_alive(process) for process in tree):
        time.sleep(0.1)
    # Children that were born between the listing and the signal have a parent in the list.
    for process in {*tree, *(late for root in roots for late in _tree(root))}:
        _tell(process, kill=True)


def allow_starts() -> None:
    """Take the stop back: for a new run in the same process."""
    _stopping.clear()


def _tree(root: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _is_alive(process: psutil.Process) -> bool:
    # Not psutil.wait_procs: it reaps our children, and Popen.wait() would then say 0.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _tell(process: psutil.Process, *, kill: bool) -> None:
    try:
        process.kill() if kill else process.terminate()
    except psutil.NoSuchProcess:
        return  # it ended by itself
