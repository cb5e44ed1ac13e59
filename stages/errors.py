"""What goes wrong, and the exit code it ends with.

    StageError
    +-- UserError      2   the user's mistake: params, data, disk; the message says what to do
    +-- Interrupted   75   stopped part-way and saved; the same command continues

Anything else is a fault of ours: traceback and exit code 1.
"""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

USER_MISTAKE = 2
INTERRUPTED = 75

# Names of environment variables: files a worker leaves under torchrun, which hides exit codes.
INTERRUPTED_FILE = "STAGE_INTERRUPTED_FILE"
USER_MISTAKE_FILE = "STAGE_USER_MISTAKE_FILE"


class StageError(Exception):
    """A stop whose message is written for the person who started the stage."""

    exit_code = 1


class UserError(StageError):
    """Something only the user can mend: what is wrong, where, what was found, what to do."""

    exit_code = USER_MISTAKE


class Interrupted(StageError):
    """The stage was asked to stop, saved its state, and continues when started again."""

    exit_code = INTERRUPTED


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage's main and turn its errors into one message and the right exit code."""
    try:
        main()
    except StageError as error:
        _tell("error" if error.exit_code == USER_MISTAKE else "stopped", str(error))
        _leave_word(error.exit_code)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _tell("stopped", "interrupted before there was anything to save; run it again")
        sys.exit(INTERRUPTED)
    except OSError as error:
        message = disk_message(error)
        if message is None:
            raise
        _tell("error", message)
        sys.exit(USER_MISTAKE)


def disk_message(error: OSError) -> str | None:
    """A full disk or a folder that may not be written is the user's to mend, in one sentence."""
    where = error.filename or os.fspath(Path.cwd())
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return (
            f"no space left on the disk that holds {where}.\n"
            "  Free some, then run the same command: finished stages are kept."
        )
    if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM}:
        return (
            f"{where} can't be written or read ({error.strerror}).\n"
            "  Give this user the right to it, or run from a folder of your own."
        )
    return None


def _leave_word(exit_code: int) -> None:
    variable = {INTERRUPTED: INTERRUPTED_FILE, USER_MISTAKE: USER_MISTAKE_FILE}.get(exit_code, "")
    if variable in os.environ:
        Path(os.environ[variable]).touch()


def _tell(kind: str, message: str) -> None:
    print(f"{kind}: {message}", file=sys.stderr, flush=True)
