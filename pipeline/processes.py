"""The commands a run has started, and how to end every one of them.

Each has a guard (guard.py) that ends the command's whole tree, whatever becomes of the run. Their
output goes to a file that the run reads as it grows, not through a pipe: a trainer goes on
printing, and so goes on saving, when nobody is left to read.

Kept apart from the flow because Prefect pickles what hangs on a flow's module, and locks and
events can't be.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import psutil

GRACE_SECONDS = 20.0  # Prefect's runner sends SIGKILL 30 s after a cancel; be done before that
LOOK_EVERY_SECONDS = 0.2
GUARD = Path(__file__).parent / "guard.py"

_stopping = threading.Event()
_lock = threading.Lock()
_guards: set[subprocess.Popen[bytes]] = set()


class Stopping(Exception):
    """Nothing new is started once the run was told to stop."""


def is_stopping() -> bool:
    """Whether the run was told to stop. Whatever fails from then on is not worth a retry."""
    return _stopping.is_set()


def run(
    command: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    log: Path,
    on_line: Callable[[str], None],
    on_tick: Callable[[], None] = lambda: None,
) -> int:
    """Run a command under a guard, in a session of its own; its exit code.

    Args:
        command: its program and arguments.
        cwd: where it runs.
        env: its environment, whole.
        log: output and errors are added to this file.
        on_line: called with every line of them, as it comes.
        on_tick: called every moment, whether there is a line or not.

    Raises:
        Stopping: the run was told to stop.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output, log.open("rb") as reader:
        reader.seek(0, 2)
        watch = [sys.executable, "-P", str(GUARD), str(GRACE_SECONDS), str(os.getpid())]
        guard = _start([*watch, *command], cwd, env, output)
        try:
            for line in _lines(reader, guard, on_tick):
                on_line(line)
            return guard.wait()
        finally:
            guard.terminate()  # does nothing where it has ended
            with _lock:
                if guard.poll() is not None:  # else stop_all waits for its tree
                    _guards.discard(guard)


def stop_all() -> None:
    """End every process of the run: SIGTERM, so that trainers save; SIGKILL to what is left."""
    with _lock:
        _stopping.set()
        guards = list(_guards)
    for guard in guards:
        guard.terminate()
    # A guard is done within its grace. One that is not, stopped itself perhaps, loses its tree.
    deadline = time.monotonic() + GRACE_SECONDS + 2
    while time.monotonic() < deadline and any(guard.poll() is None for guard in guards):
        time.sleep(LOOK_EVERY_SECONDS / 2)
    for process in [one for guard in guards if guard.poll() is None for one in _tree(guard.pid)]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def pause(seconds: float) -> bool:
    """Wait so long, or until the run is told to stop; whether it was."""
    return _stopping.wait(seconds)


def allow_starts() -> None:
    """Take the stop back: for a new run in the same process."""
    _stopping.clear()


def _start(
    command: Sequence[str], cwd: Path, env: Mapping[str, str], output: BinaryIO
) -> "subprocess.Popen[bytes]":
    with _lock:
        if _stopping.is_set():
            raise Stopping("the run was told to stop")
        guard = subprocess.Popen(
            command,
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches us alone; we pass it on to the whole tree
        )
        _guards.add(guard)
    return guard


def _lines(
    reader: BinaryIO, guard: "subprocess.Popen[bytes]", on_tick: Callable[[], None]
) -> Iterator[str]:
    """Lines of a growing file, until its writer has ended."""
    rest = b""
    while True:
        ended = guard.poll() is not None  # asked first: what it wrote last is then read below
        *whole, rest = (rest + reader.read()).split(b"\n")
        for line in [*whole, *([rest] if ended and rest else [])]:
            # Of a bar that draws over itself the last drawing counts.
            yield line.decode("utf-8", errors="replace").rstrip().rpartition("\r")[2]
        if ended:
            return
        on_tick()
        if not whole:
            time.sleep(LOOK_EVERY_SECONDS)


def _tree(root: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
