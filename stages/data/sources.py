"""What a source of images gives: keys, places to read bytes from, classes, perhaps splits."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Protocol

from stages.errors import UserError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SPLIT_NAMES: dict[str, Split] = {  # as folders, lists and shards write them
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "test": "test",
}
_MOST_SHOWN = 5


class Location(Protocol):
    """Where an image's bytes are; sent to worker processes, so small."""

    def read_bytes(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of a source, unread.

    Attributes:
        key: its name in shards, subsets and reports; no dot after the last slash, because
            WebDataset's readers cut a name there.
        suffix: of its bytes, "png" or another of images.SUFFIXES.
        location: where its bytes are.
        class_name: None without a label.
        split: where the source itself has put it; None: not said.
    """

    key: str
    suffix: str
    location: Location
    class_name: str | None = None
    split: Split | None = None


@dataclass(frozen=True)
class Source:
    """All images of a source, by key.

    Attributes:
        pictures: sorted by key, each key once.
        class_names: by class number.
        refused: (name, reason) of files that look like images and can't be one of them.
        notes: what else is worth telling, for the record.
    """

    pictures: Sequence[Picture]
    class_names: tuple[str, ...]
    refused: Sequence[tuple[str, str]] = ()
    notes: dict[str, object] = field(default_factory=dict)


def make_source(
    pictures: Iterable[Picture], refused: Sequence[tuple[str, str]], where: str
) -> Source:
    """Sort, check and name the classes of what was found.

    Raises:
        UserError: no image, the same key twice, or fewer than two classes.
    """
    ordered = sorted(pictures, key=lambda picture: picture.key)
    if not ordered:
        found = some([f"{name} ({reason})" for name, reason in refused])
        raise UserError(
            f"{where} holds no image that can be used"
            + (f"; {len(refused)} files were refused: {found}" if refused else "")
            + ".\n  Looked for JPEG, PNG, WebP, TIFF, BMP and GIF in it and the folders below; "
            "check data.root in params.yaml."
        )
    check_keys(ordered, where)
    class_names = order_classes({p.class_name for p in ordered if p.class_name is not None})
    if len(class_names) < 2:
        found = f"only the class {class_names[0]!r}" if class_names else "no class at all"
        raise UserError(
            f"{where}: {found}; a classifier needs at least two.\n"
            "  Put images in a folder per class, or name their classes in data.labels_csv."
        )
    return Source(ordered, class_names, tuple(refused))


def check_keys(ordered: Sequence[Picture], where: str) -> None:
    """Each key once.

    Raises:
        UserError: naming the first few that stand twice.
    """
    twice = sorted({one.key for one, other in pairwise(ordered) if one.key == other.key})
    if twice:
        raise UserError(
            f"{where}: the same key twice: {some(twice)}.\n"
            "  A key is the path without its ending (a dot inside the name counts as _); "
            "rename or remove one of each."
        )


def order_classes(names: set[str]) -> tuple[str, ...]:
    """Class names in the order of their numbers: by value where all are numbers, else by name."""
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def key_of(path: str) -> str:
    """The key of a relative POSIX path with its ending already cut off."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.replace('.', '_')}"


def problem_of_name(path: str) -> str | None:
    """Why a relative path can't become a key, or None."""
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    if not path.isprintable() or "\\" in path:
        return "its name has control characters or a backslash"
    return "its name is longer than 400 bytes" if size > 400 else None


def some(names: Sequence[str]) -> str:
    """The first few of many names."""
    more = len(names) - _MOST_SHOWN
    return ", ".join(names[:_MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")
