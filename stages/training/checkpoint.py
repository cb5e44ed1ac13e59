"""Working state on disk: whole or absent, and continued only by the run it belongs to."""

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from stages.training.state import TrainState

# What reading a file raises that is no state of ours, or is damaged.
UNREADABLE = (UnpicklingError, RuntimeError, EOFError, KeyError, OSError, ValueError)


def save(path: Path, state: TrainState, fingerprint: str) -> None:
    """Write the state aside, make sure it is on the disk, then put it in the old one's place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        torch.save({"fingerprint": fingerprint, "state": state.state_dict()}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must outlive a power cut
    finally:
        os.close(folder)


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU: the fingerprint and the state.

    Raises:
        One of UNREADABLE: the file is missing, damaged or something else.
    """
    return torch.load(path, map_location="cpu", weights_only=True)


def resume(path: Path, state: TrainState, fingerprint: str) -> str:
    """Load the saved state if it belongs to this run; say in a line what was done.

    A state of other params, data or code is left alone until the first save replaces it.
    """
    if not path.exists():
        return "starting at step 0"
    try:
        saved = load(path)
        belongs = saved["fingerprint"] == fingerprint
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        return f"starting at step 0: {path} can't be read ({reason})"
    if not belongs:
        return f"starting at step 0: {path} belongs to other params, data or code"
    state.load_state_dict(saved["state"])
    return f"continuing at step {state.step} from {path}"
