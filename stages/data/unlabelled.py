"""Images without labels from further folders, beside a source that has some."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stages.data.folders import image_files, picture_in
from stages.data.sources import Picture, Source, check_keys, some
from stages.data.webdataset_source import read_shard, shard_paths
from stages.errors import UserError


def add_unlabelled(source: Source, folders: Sequence[Path]) -> Source:
    """The source and, for training only and without a label, the images of more folders.

    Key: unlabelled/NAME/ and the path below the folder of that name without its ending, so it
    does not depend on where the folder lies.

    Raises:
        UserError: a folder is not there or holds no image, or two have the same name.
    """
    names = [folder.resolve().name for folder in folders]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"params.yaml, data.unlabelled: several folders are called {some(twice)}.\n"
            "  The name is part of every key; rename one, or link to it under another name."
        )
    pictures, refused = list(source.pictures), list(source.refused)
    for folder, name in zip(folders, names, strict=True):
        found, problems = _read(folder, f"unlabelled/{name}/")
        pictures += found
        refused += problems
    pictures.sort(key=lambda picture: picture.key)
    check_keys(pictures, "data.root and data.unlabelled")
    return replace(source, pictures=pictures, refused=tuple(sorted(refused)))


def _read(folder: Path, head: str) -> tuple[list[Picture], list[tuple[str, str]]]:
    if folder.suffix == ".tar" or (folder.is_dir() and any(folder.rglob("*.tar"))):
        return _read_shards(folder, head)
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "is not there"
        raise UserError(
            f"{folder} {what}.\n  params.yaml, data.unlabelled must name folders of images or of "
            ".tar shards."
        )
    files, refused = image_files(folder)
    if not files:
        raise UserError(
            f"{folder} holds no image that can be used ({len(refused)} files refused).\n"
            "  Take it out of data.unlabelled in params.yaml, or name the folder that has them."
        )
    found = [picture_in(folder, file) for file in files]
    return (
        [replace(picture, key=f"{head}{picture.key}") for picture in found],
        [(f"{head}{file}", reason) for file, reason in refused],
    )


def _read_shards(folder: Path, head: str) -> tuple[list[Picture], list[tuple[str, str]]]:
    """Every key after its shard's name: shards of different makers may count alike."""
    pictures, refused = [], []
    for path in shard_paths(folder):
        found = read_shard(path, None)
        where = f"{head}{path.stem}/"
        pictures += [replace(picture, key=f"{where}{picture.key}") for picture in found.pictures]
        refused += [(f"{head}{name}", reason) for name, reason in found.refused]
    if not pictures:
        raise UserError(
            f"{folder} holds shards without an image.\n  Take it out of data.unlabelled."
        )
    return pictures, refused
