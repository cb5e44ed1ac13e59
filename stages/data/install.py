"""Finished shards to their folder, and out of it again: whole or absent at any moment.

Files are linked where the disk allows, else copied, so that what waits in the work folder stays
there until the index is written: a kill in between costs nothing.
"""

import csv
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.data.index import INDEX_NAME, check_file, read_index
from stages.data.shards import ShardPlan, path_in
from stages.errors import UserError
from stages.records import write_json


def take_over(plans: Iterable[ShardPlan], folder: Path, workdir: Path) -> int:
    """Put into workdir those shards of the folder that are planned again, each checked.

    Returns:
        How many of the plans need no writing, be it from the folder or from a run that was killed.
    """
    finished = _finished(folder)
    taken = 0
    for plan in plans:
        path = path_in(workdir, plan.digest)
        old = finished.get(plan.digest)
        if not path.exists() and old is not None and _is_whole(*old):
            workdir.mkdir(parents=True, exist_ok=True)
            _place(old[0], path)
        taken += path.exists()
    return taken


def install(
    tars: Mapping[str, Path],
    tables: Mapping[str, bytes],
    content: Mapping[str, Any],
    quarantine: Sequence[tuple[str, str]],
    folder: Path,
) -> None:
    """Make the folder hold these files and no others. Without its index, it counts as empty.

    Args:
        tars: by name in the folder, where each is now.
        tables: the member tables by name.
        content: of index.json, which is written last.
        quarantine: key and reason of what was left out.
        folder: made when missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX_NAME).unlink(missing_ok=True)
    for old in folder.iterdir():
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        elif old.name not in tars:
            old.unlink()
    for name, path in tars.items():
        _place(path, folder / name)
    for name, table in tables.items():
        (folder / name).write_bytes(table)
    with (folder / "quarantine.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("key", "reason"))
        rows.writerows(quarantine)
    write_json(folder / INDEX_NAME, content)


def _finished(folder: Path) -> dict[str, tuple[Path, int, str]]:
    """Path, size and SHA-256 of the shards of a folder, by what they are made of."""
    try:
        index = read_index(folder)
    except UserError:
        return {}  # none yet, or one that can't be trusted
    return {
        shard.made_of: (folder / shard.name, shard.n_bytes, shard.sha256)
        for split in index.splits.values()
        for shard in split.shards
    }


def _is_whole(path: Path, n_bytes: int, sha256: str) -> bool:
    try:
        check_file(path, n_bytes, sha256)
    except UserError:
        return False  # it is written anew
    return True


def _place(path: Path, target: Path) -> None:
    partial = target.with_name(f"{target.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(path.resolve(), partial)
    except OSError:  # another disk, or one without links
        shutil.copyfile(path, partial)
    partial.replace(target)
    partial.unlink(missing_ok=True)  # renaming a file to another name of itself does nothing
