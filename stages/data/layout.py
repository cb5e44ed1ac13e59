"""Which kind of source a folder is, for `python -m pipeline init`.

Rules, in this order. What a data set of torchvision unpacks to is that data set. Files .tar and no
images are WebDataset shards. A list of labels that names images of the folder (--labels, else a
.csv in it, else labels.csv beside it) makes it a flat folder with a list. Else folders in it are
classes, but for those whose name starts with unlabel; a folder `labelled` (or `labeled`) holds all
classes, and what stands beside it has no labels.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stages.data.folders import KEY_HEADS, UNLABELLED, image_files
from stages.data.sources import some
from stages.errors import UserError

_DATA_SETS = {  # what stands in the root of one of torchvision's
    "cifar-10-batches-py": "CIFAR10",
    "cifar-100-python": "CIFAR100",
    "stl10_binary": "STL10",
    "train_32x32.mat": "SVHN",
    "food-101": "Food101",
    "SUN397": "SUN397",
    "stanford_cars": "StanfordCars",
    "fgvc-aircraft-2013b": "FGVCAircraft",
    "dtd": "DTD",
    "oxford-iiit-pet": "OxfordIIITPet",
    "caltech101": "Caltech101",
    "flowers-102": "Flowers102",
}
_LABELLED = ("labelled", "labeled")
_MOST_ROWS = 1000  # of a list, looked at to see whether it names images


def recognise(folder: Path, labels: Path | None, unlabelled: Sequence[Path]) -> dict[str, Any]:
    """The `data` of params.yaml that says how to read a folder.

    Args:
        folder: of images.
        labels: a list of key,label; None: looked for.
        unlabelled: further folders.

    Raises:
        UserError: no images, no labels, or more than one list that would fit.
    """
    further = [str(place) for place in unlabelled]
    if folder.is_file() and folder.suffix == ".tar":
        return _data("webdataset", folder, further)
    known = [name for place, name in _DATA_SETS.items() if (folder / place).exists()]
    if len(known) == 1 and labels is None:
        return _data("torchvision", folder, further, name=known[0])
    files, _ = image_files(folder)
    if not files and any(folder.rglob("*.tar")):
        return _data("webdataset", folder, further)
    listed = _list_and_root(folder, labels, files)
    if listed is not None:
        labels_csv, root = listed
        return _data("labels_csv", root, further, labels_csv=str(labels_csv))
    tops = sorted({file.partition("/")[0] for file in files if "/" in file})
    if files and not tops and (folder / "labels.csv").is_file():  # whose reader says what is wrong
        return _data("labels_csv", folder, further, labels_csv=str(folder / "labels.csv"))
    if files and not tops:
        raise UserError(
            f"{folder} holds {len(files)} images and no word on what any of them shows.\n"
            "  Name the classes of a few: a file labels.csv in it with lines of key,label, like "
            f"{files[0]},cat; or move those few into a folder per class and the rest into "
            "unlabelled/."
        )
    for name in _LABELLED:
        if name in tops and len(tops) > 1:
            rest = [str(folder / top) for top in tops if top != name]
            return _data("folder", folder / name, [*rest, *further])
    named = [top for top in tops if top.lower().startswith("unlabel") and top not in UNLABELLED]
    return _data("folder", folder, [*(str(folder / top) for top in named), *further])


def _data(source: str, root: Path, unlabelled: list[str], **more: str) -> dict[str, Any]:
    return {"source": source, "root": str(root), "unlabelled": unlabelled, **more}


def _list_and_root(
    folder: Path, labels: Path | None, files: Sequence[str]
) -> tuple[Path, Path] | None:
    """A list of labels, and the folder below which its keys stand."""
    if labels is not None:
        return labels, _root_of(_keys(labels), folder, files) or folder
    beside = folder.parent / "labels.csv"
    for places in (sorted(folder.glob("*.csv")), [beside] if beside.is_file() else []):
        found = [
            (place, root) for place in places if (root := _root_of(_keys(place), folder, files))
        ]
        if len(found) > 1:
            raise UserError(
                f"{folder} holds several lists that name its images: "
                f"{some([place.name for place, _ in found])}.\n  Say which: --labels FILE."
            )
        if found:
            return found[0]
    return None


def _root_of(keys: Iterable[str], folder: Path, files: Sequence[str]) -> Path | None:
    """The folder, or one in it, below which any of the keys is an image."""
    wanted = set(keys)
    if any(file in wanted or file.rpartition(".")[0] in wanted for file in files):
        return folder
    for top in sorted({file.partition("/")[0] for file in files if "/" in file}):
        below = (file.partition("/")[2] for file in files if file.startswith(f"{top}/"))
        if any(file in wanted or file.rpartition(".")[0] in wanted for file in below):
            return folder / top
    return None


def _keys(path: Path) -> list[str]:
    """The first column of a list; none where it is no such list."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for _, row in zip(range(_MOST_ROWS), csv.reader(file), strict=False)]
    except (csv.Error, UnicodeDecodeError, FileNotFoundError):
        return []  # the reader of the source has the message
    keys = [row[0].strip().removeprefix("./") for row in rows if len(row) in {2, 3}]
    return keys[1:] if keys and keys[0].lower() in KEY_HEADS else keys
