"""One trainer at a time on a state folder, and one folder for all processes of a training."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from stages.errors import UserError, say
from stages.training.runtime import Runtime

PATIENCE_SECONDS = 5.0  # for a trainer that was just told to stop, to be gone
SEEN_SECONDS = 30.0  # for a network file system to show one host what another has written

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}


@contextmanager
def sole_trainer(folder: Path, runtime: Runtime) -> Generator[None]:
    """Hold the state folder while this training runs.

    The lock is one of the operating system's on `FOLDER.lock`, which the process (and trainings
    that it forks) keep: it is free as soon as the last of them has ended, however it ended.

    Raises:
        UserError: another trainer holds it; or another process of this training can't see the
            folder, which then is not shared by all hosts.
    """
    lock = folder.with_name(f"{folder.name}.lock")
    held, refused = None, None
    if runtime.is_main:
        try:
            held = _hold(lock)
        except UserError as error:
            refused = error
    try:
        runtime.raise_together(refused)
        _check_shared(lock, runtime)
        yield
    finally:
        if held is not None:
            held.close()


def _hold(lock: Path) -> IO[str]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = lock.open("a+", encoding="utf-8")  # never removed: a new file would be another lock
    deadline, told = time.monotonic() + PATIENCE_SECONDS, False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                file.close()
                raise UserError(_who_holds(lock)) from None
            if not told:
                say(f"waiting for another trainer to leave {lock.with_suffix('')}")
                told = True
            time.sleep(0.2)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            say(f"{lock.parent} is on a file system without locks: see that one trainer runs here")
            break
    file.truncate(0)
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": since}, file)
    file.flush()
    return file


def _who_holds(lock: Path) -> str:
    who = "another trainer"
    with suppress(OSError, ValueError, KeyError):
        told = json.loads(lock.read_text(encoding="utf-8"))
        who = f"process {told['pid']} on {told['host']}, since {told['since']},"
    return (
        f"{who} is training in {lock.with_suffix('')}.\n"
        "  Wait for it, or stop it (it saves on SIGTERM); the same command then continues."
    )


def _check_shared(lock: Path, runtime: Runtime) -> None:
    """Every process sees what the main process has written to the state folder."""
    if runtime.world_size == 1:
        return
    written = runtime.from_main(lock.read_text(encoding="utf-8") if runtime.is_main else "")
    deadline, error = time.monotonic() + SEEN_SECONDS, None
    while not _says(lock, written):
        if time.monotonic() >= deadline:
            where = f"{lock.parent.resolve()} on {socket.gethostname()}"
            error = UserError(
                f"{where} is not the folder that the main process sees.\n"
                "  Hosts that train together need the project in one folder that all share."
            )
            break
        time.sleep(0.2)
    runtime.raise_together(error)


def _says(lock: Path, text: str) -> bool:
    try:
        return lock.read_text(encoding="utf-8") == text
    except FileNotFoundError:
        return False
