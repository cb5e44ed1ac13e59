"""What ends one process of a training ends all of them, on every host, with the same exit code."""

import json
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
        if message is not None:
            _tell(USER_MISTAKE, message)
        raise
    except RuntimeError as error:
        text = str(error).lower()
        if not (isinstance(error, dist.DistError) or any(w in text for w in _OF_LOST_CONTACT)):
            raise
        raise _heard() from error


def _tell(exit_code: int, message: str) -> None:
    told = json.dumps({"exit_code": exit_code, "message": message})
    try:
        dist.distributed_c10d._get_default_store().set(_KEY, told)
    except (RuntimeError, ValueError):  # the store's host is gone, or there is no group any more
        return


def _heard() -> StageError:
    try:
        store = dist.distributed_c10d._get_default_store()
        told = json.loads(store.get(_KEY)) if store.check([_KEY]) else None
    except (RuntimeError, ValueError):
        told = None
    if told is None:
        return Interrupted(
            "another process of this training is gone.\n"
            "  The same command (on each host) continues from the last saved step."
        )
    kinds = {USER_MISTAKE: UserError, INTERRUPTED: Interrupted}
    return kinds.get(told["exit_code"], StageError)(told["message"])
