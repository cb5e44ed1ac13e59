"""Which training images count as labelled: class-balanced, nested, decided by key and seed alone.

The official subsets of ImageNet were drawn so: 12,811 images at 1%, 12 or 13 of each class, all of
them inside the 10% list (google-research/simclr, imagenet_subsets/).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from stages.data.hash_order import even_order
from stages.errors import UserError

_PER_CLASS = "_per_class"


def choose_labelled(
    keys: Sequence[str], classes_N: NDArray[np.int64], fraction: str, seed: int
) -> list[str]:
    """The keys that count as labelled, sorted.

    Each class gives equally many; what does not divide goes to classes drawn by hash, and a class
    that has too few gives all it has. Of one seed, a smaller fraction lies inside a larger one.

    Args:
        keys: of N images.
        classes_N: their classes; -1 (no label) is never chosen.
        fraction: "0.01" of the labelled images, rounded down, or "10_per_class".
        seed: another seed, another choice.

    Raises:
        UserError: too few for one image of each class, no label at all, or no such fraction.
    """
    if not _is_fraction(fraction):
        raise UserError(
            f"a label fraction of {fraction!r} can't be drawn.\n"
            "  Write a share above 0 and up to 1, like 0.01, or a number like 10_per_class."
        )
    labelled = np.flatnonzero(classes_N >= 0)
    keys = [keys[position] for position in labelled]
    classes_N = classes_N[labelled]
    n_classes = len(np.unique(classes_N))
    if not keys:
        raise UserError(
            "no training image has a label, so no label subset can be drawn.\n"
            "  Give some images a class: a folder per class, or a line in labels_csv."
        )
    order = even_order(keys, classes_N, seed, "label fractions")
    if fraction.endswith(_PER_CLASS):
        each = int(fraction.removesuffix(_PER_CLASS))
        chosen = order[: int(np.minimum(np.bincount(classes_N), each).sum())]
    else:
        count = math.floor(Fraction(fraction) * len(keys))  # exact: 0.29 of 100 is 29, not 28
        if count < n_classes:
            raise UserError(
                f"params.yaml, finetune.label_fractions: {fraction} of {len(keys)} labelled "
                f"training images is {count}, too few for {n_classes} classes.\n"
                f"  The smallest fraction that works is {_smallest(n_classes, len(keys))}; "
                "or write 1_per_class."
            )
        chosen = order[:count]
    return sorted(keys[position] for position in chosen)


def _is_fraction(text: str) -> bool:
    if text.endswith(_PER_CLASS):
        return text.removesuffix(_PER_CLASS).isdecimal() and not text.startswith("0")
    try:
        return 0 < Fraction(text) <= 1
    except (ValueError, ZeroDivisionError):
        return False


def _smallest(n_classes: int, n_images: int) -> str:
    """The smallest short decimal whose share of n_images is n_classes or more."""
    exact = Fraction(n_classes, n_images)
    digits = max(2 - math.floor(math.log10(exact)) - 1, 1)
    return f"{math.ceil(exact * 10**digits) / 10**digits:.{digits}f}"


def read_subset(
    path: Path, keys: Sequence[str], unusable: Mapping[str, str] | None = None
) -> tuple[list[str], list[str]]:
    """The keys that a list names, one per line, in the list's order.

    A line may be a key, a file name with its ending, or only the last part of a key, as in the
    official ImageNet lists (n01440764_10183.JPEG).

    Args:
        path: the list.
        keys: of the images that a line may name.
        unusable: why not, by key, for images that are known but can't be used; looked up last.

    Returns:
        The keys named, and the named ones among the unusable.

    Raises:
        UserError: no list can be read there, or it has a line that names no image, or more than
            one, or the same as another line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        what = "is not there" if isinstance(error, FileNotFoundError) else f"is no text ({error})"
        raise UserError(
            f"{path} {what}.\n  Put the list there, a file name per line (README.md beside it says "
            "where the papers' are), or take it out of finetune.label_lists."
        ) from None
    usable, others = _Names(keys), _Names(unusable or {})
    chosen: dict[str, bool] = {}
    problems = []
    for number, line in enumerate(lines, start=1):
        if not (name := line.strip()):
            continue
        in_use = usable.find(name)
        found = in_use or others.find(name)
        if len(found) == 1 and found[0] not in chosen:
            chosen[found[0]] = bool(in_use)
        else:
            why = "no such image" if not found else "named twice" if len(found) == 1 else "several"
            problems.append(f"line {number}, {name}: {why}")
    if problems:
        shown = "\n  ".join(problems[:5])
        raise UserError(
            f"{path}: {len(problems)} of its lines can't be used as labels:\n  {shown}\n"
            "  Each line must name one training image, by key or by file name."
        )
    used = [key for key, is_used in chosen.items() if is_used]
    return used, [key for key in chosen if not chosen[key]]


class _Names:
    """Images by key, and by the last part of it."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = set(keys)
        self.by_name: dict[str, list[str]] = {}
        for key in self.keys:
            self.by_name.setdefault(PurePosixPath(key).name, []).append(key)

    def find(self, name: str) -> list[str]:
        """The image of that key, else all of that name; with or without the file's ending."""
        stem = name.rpartition(".")[0] or name
        whole = [key for key in (name, stem) if key in self.keys]
        return whole[:1] or self.by_name.get(name) or self.by_name.get(stem) or []
