"""From what a user points to, to the name that a checkpoint's files begin with."""

import re
from pathlib import Path

from stages.errors import UserError

STATE_FILE = "checkpoint"  # the text in which TensorFlow notes the latest checkpoint of a folder
LARGEST_STATE_BYTES = 1 << 20
DATA_FILE = re.compile(r"(.+)\.data-\d{5}-of-\d{5}")


def find_prefix(path: Path) -> Path:
    """The prefix of a checkpoint's files.

    Args:
        path: a folder with one checkpoint or a `checkpoint` file that names the latest, a
            SavedModel, its `variables` folder, an index or data file, or the prefix itself.

    Raises:
        UserError: nothing is there, or several checkpoints and no word on which.
    """
    if path.is_dir():
        return _in_folder(path)
    if path.name.endswith(".index"):
        return path.with_name(path.name.removesuffix(".index"))
    data_file = DATA_FILE.fullmatch(path.name)
    if data_file:
        return path.with_name(data_file[1])
    if path.is_file():
        raise UserError(
            f"{path} is not a checkpoint of TensorFlow's format V2 (PREFIX.index and "
            "PREFIX.data-...).\n  A .pb file holds no weights: give the SavedModel's folder. The "
            "single-file format V1 is not read."
        )
    return path


def _in_folder(folder: Path) -> Path:
    for inside in (folder / "variables", folder):
        if (inside / "variables.index").is_file():
            return inside / "variables"
    latest = _latest(folder)
    if latest is not None:
        return latest
    found = sorted(folder.glob("*.index"))
    if len(found) == 1:
        return find_prefix(found[0])
    if found:
        names = ", ".join(file.name for file in found[:10])
        raise UserError(
            f"{folder} holds {len(found)} checkpoints and no `{STATE_FILE}` file that says which "
            f"is the latest.\n  Name one: {names}"
        )
    raise UserError(
        f"{folder} holds no checkpoint (no .index file, no variables/variables.index).\n"
        "  Give the folder, the .index file, or a SavedModel."
    )


def _latest(folder: Path) -> Path | None:
    """What the state file names, if it is in this folder; a path in it is not followed."""
    state = folder / STATE_FILE
    if not state.is_file():
        return None
    with state.open("rb") as file:
        text = file.read(LARGEST_STATE_BYTES).decode(errors="replace")
    named = re.search(r'^model_checkpoint_path: "([^"\n]+)"', text, re.MULTILINE)
    if named is None:
        return None
    latest = folder / re.split(r"[/\\]", named[1])[-1]
    return latest if latest.with_name(f"{latest.name}.index").is_file() else None
