"""Working state on disk: whole or absent, the last two kept, continued only by its own run."""

import os
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from stages.training.state import TrainState

# What reading a file raises that is no state of ours, or is damaged.
UNREADABLE = (
    *(UnpicklingError, RuntimeError, EOFError, KeyError, OSError, ValueError),
    zipfile.BadZipFile,
)


def save(path: Path, state: TrainState, fingerprint: str, *, keep_before: bool = True) -> None:
    """Write the state; returns when it is on the disk."""
    write(path, snapshot(state, fingerprint), keep_before=keep_before)


def snapshot(state: TrainState, fingerprint: str) -> dict[str, Any]:
    """What is saved, copied to memory of its own that training no longer changes."""
    return {"fingerprint": fingerprint, "state": _copied(state.state_dict())}


def write(path: Path, saved: dict[str, Any], *, keep_before: bool = True) -> None:
    """Write aside, make sure it is on the disk, then put it in the last one's place.

    Args:
        path: of the last state.
        saved: from `snapshot`.
        keep_before: the one before the last, for a disk that loses what it had taken.

    Raises:
        OSError: the disk is full, or the file may not be written; what was there is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            _serialise(saved, file.write, file.flush)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)  # on a full disk its room is needed
        raise
    if keep_before and path.exists():
        path.replace(before(path))
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must outlive a power cut
    finally:
        os.close(folder)


def before(path: Path) -> Path:
    """Where the state saved before the last one lies."""
    return path.with_name(f"{path.stem}.before{path.suffix}")


def load(path: Path) -> dict[str, Any]:
    """What `write` wrote, on the CPU: the fingerprint and the state.

    Raises:
        One of UNREADABLE: the file is missing, damaged or something else.
    """
    with zipfile.ZipFile(path) as archive:  # torch.load compares no checksum
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} in it is damaged")
    return torch.load(path, map_location="cpu", weights_only=True)


def resume(path: Path, state: TrainState, fingerprint: str) -> str:
    """Load the last saved state that belongs to this run; say in a line what was done.

    A state of other params, data or code is left alone until saves replace it.
    """
    why_not = []
    for candidate in (path, before(path)):
        if not candidate.exists():
            continue
        try:
            saved = load(candidate)
            belongs = saved["fingerprint"] == fingerprint
        except UNREADABLE as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            why_not.append(f"{candidate} can't be read ({reason})")
            continue
        if belongs:
            state.load_state_dict(saved["state"])
            return "; ".join([f"continuing at step {state.step} from {candidate}", *why_not])
        why_not.append(f"{candidate} belongs to other params, data or code")
    return f"starting at step 0{': ' if why_not else ''}{'; '.join(why_not)}"


def _copied(value: Any) -> Any:
    """The value with every tensor in it copied to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: _copied(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(one) for one in value)
    return value


def _serialise(saved: dict[str, Any], write: Any, flush: Any) -> None:
    """torch.save, whose errors hide those of the disk under its own."""
    told: list[OSError] = []

    class File:
        """Remembers why the disk refused."""

        def write(self, data: Any) -> int:
            try:
                return write(data)
            except OSError as error:
                told.append(error)
                raise

        def flush(self) -> None:
            flush()

    try:
        torch.save(saved, File())  # ty: ignore[invalid-argument-type]
    except RuntimeError:
        if told:
            raise told[0] from None
        raise
