"""Labelled data sets for the transfer stage: images one by one, splits, and the measure of each.

The twelve of SimCLR's appendix B.8 with their splits, what can be had without a download, and any
folder or shard set beside them. Shapes: N images, K classes, C H W.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.data.folders import read_class_folders
from stages.data.images import decode
from stages.data.reading import read_source
from stages.data.sources import SPLITS, Picture, Source, Split
from stages.data.splits import SplitSizes, assign_splits, class_numbers
from stages.data.torchvision_source import KINDS, read_torchvision
from stages.data.voc2007 import CLASSES as VOC_CLASSES
from stages.data.voc2007 import read_voc2007
from stages.errors import UserError
from stages.sections.data import DataParams
from stages.sections.transfer import TransferDataset, TransferMetric

CALTECH_TRAIN, CALTECH_HELD_OUT = 30, 5  # images of each class
SPLIT_SHARES = (0.6, 0.75)  # ends of training and validation where nothing else is known


class NotHere(Exception):
    """A data set that is not on this machine; the message says how to get it."""


@dataclass(frozen=True)
class LabelledImages:
    """Images of one or several classes each, and their splits.

    Attributes:
        name: as in params.yaml.
        keys: of the N images.
        image: from a position to uint8 (C, H, W).
        targets: (N,) class numbers, or (N, K) bool where an image has several classes.
        class_names: by class number.
        split: positions of the training, validation and test images.
        metric: what the papers report of it.
        counted_NK: False leaves an image out of a class's score (VOC's difficult ones).
    """

    name: str
    keys: Sequence[str]
    image: Callable[[int], Tensor]
    targets: Tensor
    class_names: tuple[str, ...]
    split: dict[Split, Tensor]
    metric: TransferMetric = "accuracy"
    counted_NK: Tensor | None = None

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    @property
    def has_one_class_each(self) -> bool:
        return self.targets.dim() == 1

    def at(self, positions: Sequence[int]) -> list[Tensor]:
        """The images at these positions, decoded in several threads."""
        return list(_decoders().map(self.image, positions))


@cache
def _decoders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="decode")


@dataclass(frozen=True)
class Suite:
    """Where the data sets are and what an image becomes."""

    root: Path
    channels: Literal[1, 3]
    image_size: int
    max_pixels: int
    seed: int

    def read(self, wanted: TransferDataset | str) -> LabelledImages:
        """A data set by its name, or by a description of its own.

        Raises:
            NotHere: not on this machine.
            UserError: a description that can't be used.
        """
        if not isinstance(wanted, str):
            return self._described(wanted)
        if wanted in ARRAYS:
            return ARRAYS[wanted](self)
        try:
            return READERS[wanted](self)
        except UserError as error:
            raise NotHere(" ".join(str(error).split())) from error

    def listed(
        self, name: str, source: Source, metric: TransferMetric, sizes: SplitSizes
    ) -> LabelledImages:
        """The labelled images of a source, split as it says, else stratified by hash."""
        labelled = [picture for picture in source.pictures if picture.class_name is not None]
        source = Source(labelled, source.class_names, source.refused, source.notes)
        split_of = assign_splits(source, sizes, self.seed)
        sides = [split_of.get(picture.key) for picture in labelled]
        return LabelledImages(
            name,
            [picture.key for picture in labelled],
            self.reader(labelled),
            torch.from_numpy(class_numbers(source)),
            source.class_names,
            {side: _where([found == side for found in sides]) for side in SPLITS},
            metric,
        )

    def reader(self, pictures: Sequence[Picture]) -> Callable[[int], Tensor]:
        def image(position: int) -> Tensor:
            data = pictures[position].location.read_bytes()
            pixels_HWC = decode(data, self.channels, self.max_pixels)
            return torch.from_numpy(pixels_HWC.transpose(2, 0, 1).copy())

        return image

    def _described(self, wanted: TransferDataset) -> LabelledImages:
        data = DataParams(
            source=wanted.source,
            root=wanted.root,
            labels_csv=wanted.labels_csv,
            json_label=wanted.json_label,
            image_size=self.image_size,
            channels=self.channels,
            validation_images=1,
        )
        if wanted.root is not None and "://" not in wanted.root and not Path(wanted.root).is_dir():
            raise NotHere(f"put the data set into {wanted.root}, or name its folder in root")
        source = read_source(data)
        sizes = held_out(source, wanted.held_out, wanted.test_fraction)
        limited = SplitSizes(
            sizes.validation_images, sizes.test_fraction, wanted.train_limit, wanted.test_limit
        )
        return self.listed(wanted.name, source, wanted.metric, limited)


def held_out(source: Source, share: float, test_fraction: float = 0.25) -> SplitSizes:
    """Sizes that set a share of the labelled training images apart for choosing."""
    sides = [picture.split or "train" for picture in source.pictures if picture.class_name]
    n_train = sides.count("train")
    if "test" not in sides:
        n_train -= int(test_fraction * n_train)
    return SplitSizes(max(round(share * n_train), 1), test_fraction)


def _where(marked: Sequence[bool]) -> Tensor:
    return torch.from_numpy(np.flatnonzero(marked))


def stratified(classes_N: Tensor, seed: int) -> dict[Split, Tensor]:
    """60% training, 15% validation and 25% test: a pure function of classes and seed."""
    rng = np.random.default_rng(seed)
    parts: tuple[list[int], ...] = ([], [], [])
    for number in classes_N.unique().tolist():
        members = rng.permutation(torch.nonzero(classes_N == number).flatten().numpy())
        ends = [round(share * len(members)) for share in SPLIT_SHARES]
        for part, chunk in zip(parts, np.split(members, ends), strict=True):
            part.extend(chunk.tolist())
    return {side: torch.tensor(sorted(part)) for side, part in zip(SPLITS, parts, strict=True)}


def _in_memory(
    suite: Suite,
    name: str,
    images: Sequence[NDArray[np.uint8]],
    classes_N: Tensor,
    class_names: tuple[str, ...],
) -> LabelledImages:
    """Grey images (H, W), shown with as many equal channels as the net takes."""

    def image(position: int) -> Tensor:
        grey_HW = torch.from_numpy(np.ascontiguousarray(images[position]))
        return grey_HW.expand(suite.channels, -1, -1)

    keys = [f"{name}-{number:06d}" for number in range(len(images))]
    return LabelledImages(
        name, keys, image, classes_N, class_names, stratified(classes_N, suite.seed)
    )


def read_digits(suite: Suite) -> LabelledImages:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels."""
    from sklearn.datasets import load_digits  # heavy, and only this stage needs it

    bunch = load_digits()
    pixels_NHW = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    classes_N = torch.from_numpy(bunch.target.astype(np.int64))
    names = tuple(str(name) for name in bunch.target_names)
    return _in_memory(suite, "digits", list(pixels_NHW), classes_N, names)


def read_elpv(suite: Suite) -> LabelledImages:
    """2,624 photographs of solar cells, sound or defective (elpv-dataset, CC BY-NC-SA 4.0).

    The four levels of defect probability become two classes at one half, as in the data set's
    own evaluation (Deitsch et al. 2019).
    """
    try:
        from elpv_dataset.utils import load_dataset  # ty: ignore[import-not-found]
    except ImportError:
        raise NotHere("install it into the environment: pip install elpv-dataset") from None
    images, probability, _kinds = load_dataset()
    classes_N = torch.from_numpy((np.asarray(probability) >= 0.5).astype(np.int64))
    return _in_memory(suite, "elpv", list(images), classes_N, ("sound", "defective"))


def read_fashion_mnist_images(suite: Suite) -> LabelledImages:
    """70,000 articles of clothing, 10,000 of them to test; downloaded where they are not here."""
    data = DataParams(
        source="fashion_mnist",
        image_size=suite.image_size,
        channels=suite.channels,
        validation_images=1,
    )
    source = read_source(data)
    return suite.listed("fashion_mnist", source, "accuracy", held_out(source, 1 / 12))


def _of_torchvision(
    name: str, metric: TransferMetric = "accuracy", share: float = 0.1
) -> Callable[[Suite], LabelledImages]:
    """`share` is held out of the training images where the authors name no validation split."""

    def read(suite: Suite) -> LabelledImages:
        try:
            source = read_torchvision(name, suite.root, download=False)
        except UserError as error:
            reason = str(error).splitlines()[0]
            ways = f"torchvision.datasets.{name} reads it from there"
            ways += " and can download it" if KINDS[name].fetched else ""
            raise NotHere(f"{reason}; put {KINDS[name].where} into {suite.root}: {ways}") from error
        return suite.listed(name.lower(), source, metric, held_out(source, share))

    return read


def read_caltech101(suite: Suite) -> LabelledImages:
    """102 classes, the background among them: 30 images of each to train, 5 of these held out."""
    folder = suite.root / "caltech101" / "101_ObjectCategories"
    if not folder.is_dir():
        raise UserError(f"put caltech-101's 101_ObjectCategories into {folder.parent}")
    source = read_class_folders(folder)
    rng = np.random.default_rng(suite.seed)
    classes_N = class_numbers(source)
    side_N = np.full(len(classes_N), "test", dtype=object)
    for number in range(len(source.class_names)):
        members = rng.permutation(np.flatnonzero(classes_N == number))
        n_train = min(CALTECH_TRAIN, len(members) - 1)  # the smallest class has 31
        side_N[members[:n_train]] = "train"
        side_N[members[: min(CALTECH_HELD_OUT, n_train // 2)]] = "validation"
    return LabelledImages(
        "caltech101",
        [picture.key for picture in source.pictures],
        suite.reader(source.pictures),
        torch.from_numpy(classes_N),
        source.class_names,
        {side: _where((side_N == side).tolist()) for side in SPLITS},
        "balanced_accuracy",
    )


def read_birdsnap(suite: Suite) -> LabelledImages:
    """500 kinds of birds: a folder for each, and the authors' list of test images."""
    folder = suite.root / "birdsnap"
    pictures, listed = folder / "images", folder / "test_images.txt"
    if not pictures.is_dir() or not listed.is_file():
        raise UserError(
            f"put the pictures of birdsnap.com, a folder per kind, into {pictures}, and the "
            f"authors' test_images.txt into {folder}; many of the links are dead"
        )
    test = {Path(line).with_suffix("").as_posix() for line in listed.read_text().splitlines()}
    source = read_class_folders(pictures)
    marked = [
        Picture(p.key, p.suffix, p.location, p.class_name, "test" if p.key in test else None)
        for p in source.pictures
    ]
    source = Source(marked, source.class_names, source.refused, source.notes)
    return suite.listed("birdsnap", source, "accuracy", held_out(source, 4981 / 47386))


def read_voc(suite: Suite) -> LabelledImages:
    """PASCAL VOC 2007, the task of classification: pictures that show several classes each."""
    splits = read_voc2007(suite.root)
    pictures = [picture for side in SPLITS for picture in splits[side].pictures]
    starts = np.cumsum([0] + [len(splits[side].pictures) for side in SPLITS])
    shown_NK = np.concatenate([splits[side].shown_NK for side in SPLITS])
    counted_NK = np.concatenate([splits[side].counted_NK for side in SPLITS])
    return LabelledImages(
        "voc2007",
        [picture.key for picture in pictures],
        suite.reader(pictures),
        torch.from_numpy(shown_NK),
        VOC_CLASSES,
        {
            side: torch.arange(int(starts[place]), int(starts[place + 1]))
            for place, side in enumerate(SPLITS)
        },
        "mean_average_precision",
        torch.from_numpy(counted_NK),
    )


ARRAYS: dict[str, Callable[[Suite], LabelledImages]] = {"digits": read_digits, "elpv": read_elpv}
READERS: dict[str, Callable[[Suite], Any]] = {
    "fashion_mnist": read_fashion_mnist_images,
    "food101": _of_torchvision("Food101"),
    "cifar10": _of_torchvision("CIFAR10"),
    "cifar100": _of_torchvision("CIFAR100", share=5067 / 50_000),
    "birdsnap": read_birdsnap,
    "sun397": _of_torchvision("SUN397", share=0.2),
    "stanfordcars": _of_torchvision("StanfordCars", share=1650 / 8144),
    "fgvcaircraft": _of_torchvision("FGVCAircraft", "balanced_accuracy"),
    "voc2007": read_voc,
    "dtd": _of_torchvision("DTD"),
    "oxfordiiitpet": _of_torchvision("OxfordIIITPet", "balanced_accuracy", 740 / 3680),
    "caltech101": read_caltech101,
    "flowers102": _of_torchvision("Flowers102", "balanced_accuracy"),
}
