"""What goes wrong, and the exit code it ends with.

    StageError
    +-- UserError      2   the user's mistake: params, data, disk; the message says what to do
    +-- Interrupted   75   stopped part-way and saved; the same command continues
        +-- StoppedTogether   so did every process of the training, at the same step

Anything else is a fault of ours: traceback and exit code 1.
"""

import ctypes
import errno
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TextIO

USER_MISTAKE = 2
INTERRUPTED = 75

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # the last is Slurm's warning

# Environment variables that `launch` gives its workers: a folder, in which each leaves how it
# ended (torch's agent hides exit codes), and the process that they are not to outlive.
TOLD_IN, LAUNCHER = "STAGE_TOLD_IN", "STAGE_LAUNCHER"

_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG
_SHELLS = {"sh", "dash", "ash", "bash", "zsh", "ksh", "fish"}


class StageError(Exception):
    """A stop whose message is written for the person who started the stage."""

    exit_code = 1


class UserError(StageError):
    """Something only the user can mend: what is wrong, where, what was found, what to do."""

    exit_code = USER_MISTAKE


class Interrupted(StageError):
    """The stage was asked to stop, saved its state, and continues when started again."""

    exit_code = INTERRUPTED


class StoppedTogether(Interrupted):
    """Every process of the training stopped after the same step, and the main one saved it."""


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage's main and turn its errors into one message and the right exit code.

    A stop signal outside of training (which saves first) ends with 75 as well. The stage ends
    with the dvc or the launcher that started it, so that none trains on unseen; a shell may go.
    """
    if TOLD_IN in os.environ:
        end_with_parent(int(os.environ.get(LAUNCHER, os.getppid())))
        _told_file().unlink(missing_ok=True)  # of a worker that this one replaces
    elif "DVC_STAGE" in os.environ:
        _end_with_dvc()
    try:
        with _stopped_as_by_ctrl_c():
            main()
    except StageError as error:
        kind = "error" if error.exit_code == USER_MISTAKE else "stopped"
        together = isinstance(error, StoppedTogether)
        _end(kind, error.exit_code, str(error), quietly=together)
    except KeyboardInterrupt:
        _end("stopped", INTERRUPTED, "interrupted outside of training; run it again")
    except OSError as error:
        message = disk_message(error)
        if message is None:
            raise
        _end("error", USER_MISTAKE, message)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line now. A reader that is gone, or a log on a full disk, must end no training."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def end_with_parent(parent: int) -> None:
    """Be told to stop should this parent be killed; Linux only, elsewhere nothing happens."""
    try:
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    except (AttributeError, OSError, TypeError):
        return
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)


def _end_with_dvc() -> None:
    """The parent is dvc, or the shell by which it starts a stage: bash makes way, dash stays."""
    parent = os.getppid()
    end_with_parent(parent)
    try:
        if Path(f"/proc/{parent}/comm").read_text().strip() not in _SHELLS:
            return
        # Its name, which may hold anything, is in brackets: state and parent come after them.
        above = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
        dvc = os.pidfd_open(above)
    except (AttributeError, OSError):
        return

    def wait() -> None:
        select.select([dvc], [], [])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="end with dvc", daemon=True).start()


@contextmanager
def _stopped_as_by_ctrl_c() -> Generator[None]:
    """Let SIGTERM and Slurm's warning do what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = set(STOP_SIGNALS) - {signal.SIGINT}
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def disk_message(error: OSError) -> str | None:
    """A full disk or a folder that may not be written is the user's to mend, in one sentence."""
    where = error.filename or os.fspath(Path.cwd())
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return (
            f"no space left on the disk that holds {where}.\n"
            "  Free some, then run the same command: finished stages are kept."
        )
    if error.errno == errno.EFBIG:
        return (
            f"{where} would grow beyond the size that a file may have here (ulimit -f).\n"
            "  Raise that limit, then run the same command: finished stages are kept."
        )
    if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM}:
        return (
            f"{where} can't be written or read ({error.strerror}).\n"
            "  Give this user the right to it, or run from a folder of your own."
        )
    return None


def _end(kind: str, exit_code: int, message: str, *, quietly: bool = False) -> NoReturn:
    """Tell why, here or through the launcher, and exit.

    Where all workers stop together (`quietly`) they leave with 0: the agent would take another
    code for a failure and end those that are still on their way out.
    """
    if TOLD_IN not in os.environ:
        say(f"{kind}: {message}", sys.stderr)
        sys.exit(exit_code)
    told = json.dumps({"exit_code": exit_code, "message": message})
    _told_file().write_text(told, encoding="utf-8")
    sys.exit(0 if quietly else exit_code)


def _told_file() -> Path:
    return Path(os.environ[TOLD_IN], f"{os.environ['LOCAL_RANK']}.json")
