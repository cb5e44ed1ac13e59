"""Images in folders: a folder per class, or a flat folder with a list of labels."""

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from stages.data.images import SUFFIXES, UNREAD_SUFFIXES
from stages.data.sources import (
    SPLIT_NAMES,
    Picture,
    Source,
    Split,
    key_of,
    make_source,
    problem_of_name,
    some,
)
from stages.errors import UserError

UNLABELLED = {"unlabelled", "unlabeled"}
KEY_HEADS = {
    *("key", "id", "name", "path", "file", "filename", "file_name", "filepath"),
    *("image", "img", "picture", "photo", "image_id", "image_name", "image_path"),
}


def read_class_folders(root: Path, without: Sequence[Path] = ()) -> Source:
    """A folder per class, perhaps below train/, validation/ (or val/) and test/.

    Images in a folder `unlabelled`, beside the class folders or beside train/, have no label.
    Key: the path below root without its ending.

    Args:
        root: the folder.
        without: folders, perhaps below root, that are no classes of it.

    Raises:
        UserError: no folder, no image, an image outside every class, one class, a key twice.
    """
    files, refused = image_files(root, without)
    tops = {PurePosixPath(file).parts[0] for file in files if "/" in file}
    splits = tops - UNLABELLED
    depth = 1 if splits and splits <= SPLIT_NAMES.keys() else 0
    pictures, outside = [], []
    for file in files:
        folders = PurePosixPath(file).parts[:-1]
        if folders and folders[0] in UNLABELLED:
            pictures.append(picture_in(root, file))
            continue
        if len(folders) <= depth:
            outside.append(file)
            continue
        pictures.append(
            replace(
                picture_in(root, file),
                class_name=None if folders[depth] in UNLABELLED else folders[depth],
                split=SPLIT_NAMES[folders[0]] if depth else None,
            )
        )
    if outside:
        raise UserError(
            f"{root}: {len(outside)} images lie outside the class folders: {some(outside)}.\n"
            "  Move them into the folder of their class, or into unlabelled/ beside the classes."
        )
    return make_source(pictures, refused, str(root))


def read_labels_csv(root: Path, labels_csv: Path, without: Sequence[Path] = ()) -> Source:
    """All images below root; those that labels_csv names have a class, the others none.

    Lines are key,label or key,label,split, with or without a first line of titles; key is the
    path below root, with or without its ending; an empty label means none. Folders of `without`
    are passed over.

    Raises:
        UserError: a label for an image that is not there, a line that can't be read, a key twice.
    """
    files, refused = image_files(root, without)
    labels = _read_labels(labels_csv)
    pictures = []
    for file in files:
        names = [name for name in (file, file.rpartition(".")[0]) if name in labels]
        if len(names) > 1:
            raise UserError(f"{labels_csv} names {file} twice, with and without its ending.")
        label = labels.pop(names[0]) if names else _Label()
        found = picture_in(root, file)
        pictures.append(replace(found, class_name=label.class_name, split=label.split))
    refused_names = {name for file, _ in refused for name in (file, file.rpartition(".")[0])}
    missing = sorted(labels.keys() - refused_names)
    if missing:
        raise UserError(
            f"{labels_csv} has labels for {len(missing)} images that are not in {root}: "
            f"{some(missing)}.\n  Its first column must be the path below that folder, with or "
            "without its ending. Mend or remove those lines, or add the images."
            + _what_is_there(missing[0], files, root)
        )
    return make_source(pictures, refused, str(root))


def _what_is_there(named: str, files: Sequence[str], root: Path) -> str:
    """A hint where a name that is not there is close to one that is."""
    below = named.removeprefix(f"{root.as_posix()}/").removeprefix(f"{root.name}/")
    known = {name: file for file in files for name in (file, file.rpartition(".")[0])}
    if below != named and below in known:
        return f"\n  Found: {below}; leave out {named[: -len(below)]}"
    alike = {name.lower(): file for name, file in known.items()}
    if named.lower() in alike:
        return f"\n  Found: {alike[named.lower()]}; capitals count."
    return ""


def picture_in(root: Path, file: str) -> Picture:
    """The picture of a file below root, without label and split."""
    stem, _, suffix = file.rpartition(".")
    return Picture(key_of(stem), SUFFIXES[f".{suffix.lower()}"], root / file)


def image_files(
    root: Path, without: Sequence[Path] = ()
) -> tuple[list[str], list[tuple[str, str]]]:
    """Relative POSIX paths of image files below root, sorted; and those whose name is no key.

    Raises:
        UserError: no folder there, or one in it that can't be read.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "is not there"
        home = (
            " A path is taken as written: ~ is not your home." if root.parts[:1] == ("~",) else ""
        )
        raise UserError(
            f"{root} {what}.\n  params.yaml, data.root must name a folder of images.{home}"
        )
    files, refused = [], []
    for file in files_below(root, without):
        suffix = Path(file).suffix.lower()
        if suffix not in SUFFIXES and suffix not in UNREAD_SUFFIXES:
            continue
        problem = problem_of_name(file)
        if suffix in UNREAD_SUFFIXES:
            problem = f"{suffix[1:].upper()} is not read here: convert it to JPEG or PNG"
        if problem is None:
            files.append(file)
        else:
            refused.append((file.encode("utf-8", "backslashreplace").decode(), problem))
    return sorted(files), sorted(refused)


def files_below(root: Path, without: Sequence[Path] = ()) -> Iterator[str]:
    """Relative POSIX paths of files; links are followed, each folder is visited once.

    Raises:
        UserError: a folder that can't be read.
    """
    visited = {_identity(folder) for folder in without if folder.exists()}
    for folder, below, names in os.walk(root, onerror=_stop, followlinks=True):
        place = _identity(Path(folder))
        if place in visited:
            below.clear()
            continue
        visited.add(place)
        below[:] = sorted(name for name in below if not name.startswith("."))
        inside = Path(folder).relative_to(root).as_posix()
        for name in names:
            if not name.startswith("."):
                yield name if inside == "." else f"{inside}/{name}"


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _stop(error: OSError) -> None:
    raise UserError(
        f"{error.filename} can't be read ({error.strerror}).\n"
        "  Give this user the right to read every folder below data.root."
    ) from error


@dataclass(frozen=True)
class _Label:
    class_name: str | None = None
    split: Split | None = None


def _read_labels(path: Path) -> dict[str, _Label]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if any(row)]
    except FileNotFoundError:
        raise UserError(
            f"{path} is not there.\n  params.yaml, data.labels_csv must name a file of key,label."
        ) from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} can't be read as lines of key,label ({error}).\n  Save it as CSV in UTF-8."
        ) from error
    if rows and rows[0][1][0].strip().lower() in KEY_HEADS:
        del rows[0]
    labels: dict[str, _Label] = {}
    for number, row in rows:
        cells = [cell.strip() for cell in row]
        if not 2 <= len(cells) <= 3 or not cells[0]:
            raise UserError(
                f"{path}, line {number}: found {','.join(row)!r}; write key,label or "
                "key,label,split."
            )
        split = cells[2].lower() if len(cells) == 3 else ""
        if split and split not in SPLIT_NAMES:
            raise UserError(
                f"{path}, line {number}: no split {cells[2]!r}; write train, validation or test, "
                "or leave it empty."
            )
        key = cells[0].removeprefix("./")
        if key in labels:
            raise UserError(
                f"{path}, line {number}: the same key twice: {key}.\n  Keep one line per image."
            )
        labels[key] = _Label(cells[1] or None, SPLIT_NAMES.get(split))
    return labels
