"""Who works in the workspace: one run at a time, and a message that says whose turn it is.

A run holds a lock on a file for as long as its process lives, so that `kill -9` frees it; beside
the lock stands who holds it. What takes no lock of ours is looked for: a dvc command typed by
hand (by dvc's own locks) and a stage that runs by itself, such as one whose run was killed and
that is still saving. Only a run waits for those; what they do when a run is on is dvc's to say.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import IO, Literal

import psutil

HOLDER_FILE = Path("runs/holder.json")
POLL_SECONDS = 2.0
AGAIN_SECONDS = 0.3
# dvc's lock is held for a moment by commands that only look: they are no reason to wait.
MOMENT_SECONDS = 3.0

Overlap = Literal["queue", "skip", "cancel_new"]


@dataclass(frozen=True)
class Holder:
    """Who works in the workspace."""

    pid: int
    host: str
    since: str  # ISO 8601, UTC
    what: str  # a flow run's name, or a command

    def __str__(self) -> str:
        return f"{self.what} (process {self.pid} on {self.host}, since {self.since})"

    @classmethod
    def now(cls, what: str) -> "Holder":
        return cls(os.getpid(), socket.gethostname(), _time(time.time()), what)

    @classmethod
    def of(cls, process: psutil.Process) -> "Holder":
        """Raises psutil.Error where the process has ended."""
        command = " ".join(process.cmdline())
        return cls(process.pid, socket.gethostname(), _time(process.create_time()), command)


class WorkspaceBusy(Exception):
    """Another one works here, and this run was told not to wait."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(holder)
        self.holder = holder

    def __str__(self) -> str:
        return f"the workspace is held by {self.holder}"


@contextmanager
def hold(
    root: Path,
    what: str,
    *,
    wait: bool,
    on_wait: Callable[[Holder], None] = lambda _: None,
    on_poll: Callable[[], None] = lambda: None,
) -> Generator[None]:
    """Hold the workspace while the block runs.

    Args:
        root: folder of the project.
        what: the flow run's name or the command, for the messages of others.
        wait: for whoever is there, for as long as it takes.
        on_wait: called with who is there, once for each of them.
        on_poll: called every few seconds of the wait, which ends with what it raises.

    Raises:
        WorkspaceBusy: somebody is there, and `wait` is false.
    """
    path = root / HOLDER_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    told = refused = None
    with path.open("a+", encoding="utf-8") as file:
        while True:
            there = _lock(file) or working_without_a_lock(root)
            if there is None:
                break
            if not wait and there == refused:
                raise WorkspaceBusy(there)
            refused = there  # asked twice, for who only looks has the lock for a moment, too
            if wait and there != told:
                on_wait(there)
                told = there
            on_poll()
            fcntl.flock(file, fcntl.LOCK_UN)  # who comes first when it is free is left to chance
            time.sleep(POLL_SECONDS if wait else AGAIN_SECONDS)
        _write(file, Holder.now(what))
        try:
            yield
        finally:
            file.truncate(0)


def working_without_a_lock(root: Path) -> Holder | None:
    """A stage or a dvc command that runs in the workspace and was started by no run of ours."""
    return _stage_in(root) or _dvc_in(root)


def _lock(file: IO[str]) -> Holder | None:
    """Take the lock, or say who has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        return _read(file.read())
    return None


def _read(text: str) -> Holder:
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):  # it has the lock and is about to write who it is
        return Holder(0, socket.gethostname(), "just now", "a run that has just started")


def _write(file: IO[str], holder: Holder) -> None:
    file.truncate(0)
    file.write(json.dumps(asdict(holder)))
    file.flush()


def _stage_in(root: Path) -> Holder | None:
    """A stage that runs in that workspace: `python -m stages.NAME`."""
    ours = _ourselves()
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            is_stage = any(
                option == "-m" and module.startswith("stages.")
                for option, module in pairwise(words)
            )
            # The shell between dvc and a stage has the stage's words in one argument: not it.
            if is_stage and process.pid not in ours and _is_inside(process.cwd(), root):
                return Holder.of(process)
        except (psutil.Error, OSError):
            continue  # it ended meanwhile, or belongs to somebody else
    return None


def _is_inside(folder: str, root: Path) -> bool:
    """There, or in a workspace that a run with params of its own has under runs/."""
    here, there = root.resolve(), Path(folder)
    return there == here or there.is_relative_to(here / "runs")


def _dvc_in(root: Path) -> Holder | None:
    """A dvc command that runs a stage, or holds dvc's lock for longer than a moment."""
    deadline = time.monotonic() + MOMENT_SECONDS
    while True:
        writing = _dvc_writer(root)
        if writing is not None:
            return writing
        locking = _dvc_locker(root)
        if locking is None or time.monotonic() > deadline:
            return locking
        time.sleep(0.2)


def _dvc_writer(root: Path) -> Holder | None:
    try:
        paths = json.loads((root / ".dvc/tmp/rwlock").read_text(encoding="utf-8"))
        pids = {int(info["pid"]) for info in paths.get("write", {}).values()}
    except (FileNotFoundError, ValueError):
        return None  # no dvc was here yet, or one is writing the file
    return _first_alive(pids)


def _dvc_locker(root: Path) -> Holder | None:
    try:
        with (root / ".dvc/tmp/lock").open("r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _first_alive({int(file.read() or 0)})
    except (FileNotFoundError, ValueError):
        return None
    return None


def _first_alive(pids: set[int]) -> Holder | None:
    for pid in sorted(pids - _ourselves()):
        try:
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                return Holder.of(process)
        except psutil.Error:
            continue  # dvc leaves the numbers of killed processes behind
    return None


def _ourselves() -> set[int]:
    """This process and those that it runs in: a run does not wait for itself."""
    here = psutil.Process()
    return {process.pid for process in [here, *here.parents()]}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="seconds")[:-6] + " UTC"
