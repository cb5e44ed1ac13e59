"""What ends one process of a training ends all of them, on every host, with the same exit code."""

import json
import socket
from collections.abc import Generator
from contextlib import contextmanager

import torch.distributed as dist

from stages.errors import (
    INTERRUPTED,
    USER_MISTAKE,
    Interrupted,
    StageError,
    StoppedTogether,
    UserError,
    disk_message,
)
from stages.training.runtime import Runtime

_KEY = "why a process of this training ended"
_OF_LOST_CONTACT = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe")


@contextmanager
def ending_alike(runtime: Runtime) -> Generator[None]:
    """Tell the other processes why this one ends; end like the one that told so.

    Raises:
        Interrupted: another process is gone, and left no reason: its host may have died.
    """
    if runtime.world_size == 1:
        yield
        return
    try:
        yield
    except StoppedTogether:
        raise
    except StageError as error:
        _tell(error.exit_code, str(error))
        raise
    except OSError as error:
        message = disk_message(error)
        if message is None:
            _tell_fault(error)
        else:
            _tell(USER_MISTAKE, message)
        raise
    except Exception as error:
        if not _is_lost_contact(error):
            _tell_fault(error)
            raise
        raise _heard(error) from error


def _is_lost_contact(error: Exception) -> bool:
    if not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(words in text for words in _OF_LOST_CONTACT)


def _tell_fault(error: Exception) -> None:
    where = f"a process on {socket.gethostname()}"
    _tell(StageError.exit_code, f"{where} failed ({_in_a_line(error)}); its log says where.")


def _in_a_line(error: Exception) -> str:
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__


def _tell(exit_code: int, message: str) -> None:
    """Leave the reason for the others, unless one was left before: what comes after follows it."""
    told = json.dumps({"exit_code": exit_code, "message": message})
    try:
        dist.distributed_c10d._get_default_store().compare_set(_KEY, "", told)
    except (RuntimeError, ValueError):  # the store's host is gone, or there is no group any more
        return


def _heard(error: Exception) -> StageError:
    try:
        store = dist.distributed_c10d._get_default_store()
        told = json.loads(store.get(_KEY)) if store.check([_KEY]) else None
    except (RuntimeError, ValueError):
        told = None
    if told is None:
        return Interrupted(
            f"another process of this training is gone ({_in_a_line(error)}).\n"
            "  The same command (on each host) continues from the last saved step. Where that ends "
            "here once more,\n  the connection between the processes is what to look at."
        )
    kinds = {USER_MISTAKE: UserError, INTERRUPTED: Interrupted}
    return kinds.get(told["exit_code"], StageError)(told["message"])
