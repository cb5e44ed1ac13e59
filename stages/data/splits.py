"""Train, validation and test: as the source says, else by the hash of each image's key.

Shapes: N pictures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.data.hash_order import proportional_order
from stages.data.sources import Picture, Source, Split
from stages.errors import UserError


@dataclass(frozen=True)
class SplitSizes:
    """How large the parts are to be.

    Attributes:
        validation_images: labelled images set apart from training, where the source names none.
        test_fraction: share of the labelled images set apart, where the source names no test.
        train_limit: at most so many for training; None: all.
        test_limit: at most so many to report on; None: all.
    """

    validation_images: int
    test_fraction: float
    train_limit: int | None = None
    test_limit: int | None = None


def assign_splits(source: Source, sizes: SplitSizes, seed: int) -> dict[str, Split]:
    """The split of each image that is used, by key; images past a limit are not in it.

    What is set apart is labelled and holds each class in its share of the whole; images without a
    label are for training.

    Raises:
        UserError: nothing to test on, or nothing left to train on.
    """
    classes_N = class_numbers(source)
    sides_N = np.array([_named_side(p) for p in source.pictures], dtype=object)
    chooser = _Chooser(source.pictures, classes_N, seed)
    labelled_N = classes_N >= 0
    if not (sides_N == "test").any():
        pool_N = labelled_N & (sides_N == "train")
        count = math.floor(sizes.test_fraction * pool_N.sum())
        if count < len(source.class_names):
            raise UserError(
                f"params.yaml, data.test_fraction: {sizes.test_fraction:g} of {pool_N.sum()} "
                f"labelled images is {count}, too few to test {len(source.class_names)} classes.\n"
                "  The source brings no test split: write a larger share, or label more images."
            )
        sides_N[chooser.first(count, pool_N, "test")] = "test"
    if not (sides_N == "validation").any():
        pool_N = labelled_N & (sides_N == "train")
        most = int(pool_N.sum()) - len(source.class_names)
        if sizes.validation_images > most:
            raise UserError(
                f"params.yaml, data.validation_images: {sizes.validation_images} of "
                f"{pool_N.sum()} labelled training images would leave too few to train on.\n"
                f"  Write at most {max(most, 0)}; a tenth of the labels is plenty."
            )
        sides_N[chooser.first(sizes.validation_images, pool_N, "validation")] = "validation"
    for side, limit in (("train", sizes.train_limit), ("test", sizes.test_limit)):
        side_N = sides_N == side
        if limit is not None and limit < side_N.sum():
            keep = chooser.first(limit, side_N, f"{side}_limit")
            sides_N[np.setdiff1d(np.flatnonzero(side_N), keep)] = ""
    return {
        picture.key: side
        for picture, side in zip(source.pictures, sides_N.tolist(), strict=True)
        if side
    }


def check_splits(source: Source, split_of: dict[str, Split], pictures: Sequence[Picture]) -> None:
    """What remains after damaged images and copies are gone must still train and test.

    Raises:
        UserError: a class without a labelled training image, or no labelled image to test or
            choose with.
    """
    labelled = [picture for picture in pictures if picture.class_name is not None]
    taught = {p.class_name for p in labelled if split_of[p.key] == "train"}
    untaught = [name for name in source.class_names if name not in taught]
    if untaught:
        raise UserError(
            f"no labelled training image is left of {len(untaught)} classes, the first of them "
            f"{untaught[0]!r}.\n  Label more images of it, remove the class, or lower "
            "data.test_fraction, data.validation_images or raise data.train_limit."
        )
    for side in ("validation", "test"):
        if not any(split_of[picture.key] == side for picture in labelled):
            raise UserError(
                f"no labelled image is left for {side}.\n  Label some of that split, or leave the "
                "split out of the source to have it drawn from the labelled images."
            )


def class_numbers(source: Source) -> NDArray[np.int64]:
    """The class (N,) of each picture, -1 without a label."""
    number_of = {name: number for number, name in enumerate(source.class_names)}
    return np.array(
        [-1 if p.class_name is None else number_of[p.class_name] for p in source.pictures],
        dtype=np.int64,
    )


def _named_side(picture: Picture) -> Split:
    return picture.split or "train"


@dataclass(frozen=True)
class _Chooser:
    pictures: Sequence[Picture]
    classes_N: NDArray[np.int64]
    seed: int

    def first(self, count: int, among_N: NDArray[np.bool_], purpose: str) -> NDArray[np.int64]:
        """Positions of the first `count` images of those that among_N marks, by hash."""
        positions = np.flatnonzero(among_N)
        keys = [self.pictures[position].key for position in positions]
        order = proportional_order(keys, self.classes_N[positions], self.seed, purpose)
        return positions[order[:count]]
