"""How many images a run will see: from the shards, from the source, or assumed and said so."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from stages.data.folders import image_files, read_class_folders, read_labels_csv
from stages.data.index import INDEX_NAME, read_index
from stages.data.splits import SplitSizes, assign_splits
from stages.params import Params
from stages.sections.data import DataParams
from stages.training.images import SHARDS

# (training, test, classes) of the data sets, as their authors publish them.
PUBLISHED = {
    "fashion_mnist": (60_000, 10_000, 10),
    "CIFAR10": (50_000, 10_000, 10),
    "CIFAR100": (50_000, 10_000, 100),
    "STL10": (105_000, 8_000, 10),
    "SVHN": (73_257, 26_032, 10),
    "ImageNet": (1_281_167, 50_000, 1000),
    "Food101": (75_750, 25_250, 101),
    "SUN397": (81_565, 27_189, 397),
    "StanfordCars": (8_144, 8_041, 196),
    "FGVCAircraft": (6_667, 3_333, 100),
    "DTD": (3_760, 1_880, 47),
    "OxfordIIITPet": (3_680, 3_669, 37),
    "Caltech101": (6_507, 2_170, 101),
    "Flowers102": (2_040, 6_149, 102),
}
STL10_UNLABELLED = 100_000
ASSUMED = (10_000, 2_000, 10)
SAMPLED_FILES = 500  # whose sizes are looked at
TAR_BYTES = 2_170  # of headers and padding that an image and its class take in a shard
PHOTO_BYTES = 110_000  # of a JPEG of ImageNet, the mean
PHOTO_FROM = 96  # pixels of data.image_size from which the pictures are taken for photos


@dataclass(frozen=True)
class Counts:
    """Images of a run.

    Attributes:
        train: for training, with and without labels.
        labelled: of these, with a label.
        validation: set apart to choose with.
        test: to report on.
        classes: K.
        image_bytes: of one in a shard, the mean.
        known_from: where these numbers are from, in words.
        are_assumed: nothing to count was found.
    """

    train: int
    labelled: int
    validation: int
    test: int
    classes: int
    image_bytes: float
    known_from: str
    are_assumed: bool = False

    @property
    def all_images(self) -> int:
        return self.train + self.validation + self.test

    def labels_of(self, fraction: str) -> int:
        """Labels of a subset: "0.01" is a share of the training labels, "10_per_class" a count."""
        if fraction.endswith("_per_class"):
            return min(int(fraction.partition("_")[0]) * self.classes, self.labelled)
        return max(round(float(fraction) * self.labelled), 1)


def count_images(params: Params, *, by_shards: bool = True) -> Counts:
    """From the shards where they are there; else from the source, split as params say.

    Args:
        params: that say where the images are.
        by_shards: False where the shards that are there were made with other params.

    Raises:
        UserError: the images are there, and can't be split so.
    """
    if by_shards and (SHARDS / INDEX_NAME).is_file():
        return _from_shards()
    data = params.data
    name = data.name if data.source == "torchvision" else data.source
    if name in PUBLISHED:
        return _as_published(PUBLISHED[name], data, f"{name} as published")
    if data.source in {"folder", "labels_csv"} and data.root and Path(data.root).is_dir():
        return _from_files(data, Path(data.root))
    if params.profile.startswith("imagenet"):
        words = f"assumed to be ImageNet's, as {data.root or data.shards_at} is not there"
        return _as_published(PUBLISHED["ImageNet"], data, words, are_assumed=True)
    words = f"assumed, as the images of source {data.source} can't be counted ahead"
    return _as_published(ASSUMED, data, words, are_assumed=True)


def _from_shards() -> Counts:
    index = read_index(SHARDS)
    parts = index.content["splits"]
    n_bytes = sum(shard.n_bytes for split in index.splits.values() for shard in split.shards)
    return Counts(
        train=parts["train"]["images"],
        labelled=parts["train"]["labelled"],
        validation=parts["validation"]["images"],
        test=parts["test"]["images"],
        classes=len(index.class_names),
        image_bytes=n_bytes / sum(part["images"] for part in parts.values()),
        known_from=f"{SHARDS} as they are",
    )


def _as_published(
    counts: tuple[int, int, int], data: DataParams, words: str, *, are_assumed: bool = False
) -> Counts:
    train, test, classes = counts
    unlabelled = STL10_UNLABELLED if data.name == "STL10" else 0
    validation = min(data.validation_images, train - unlabelled)
    train = min(train - validation, data.train_limit or train)
    return Counts(
        train=train,
        labelled=max(train - unlabelled, 0),
        validation=validation,
        test=min(test, data.test_limit or test),
        classes=classes,
        image_bytes=_bytes_of(data),
        known_from=words,
        are_assumed=are_assumed,
    )


def _from_files(data: DataParams, root: Path) -> Counts:
    """Names and labels are read as the stage shard reads them; no picture is."""
    if data.labels_csv is not None and data.source == "labels_csv":
        source = read_labels_csv(root, Path(data.labels_csv))
    else:
        source = read_class_folders(root)
    sizes = SplitSizes(
        data.validation_images, data.test_fraction, data.train_limit, data.test_limit
    )
    side_of = assign_splits(source, sizes, data.seed)
    sides = Counter(side_of.values())
    labelled = sum(
        picture.class_name is not None and side_of.get(picture.key) == "train"
        for picture in source.pictures
    )
    sampled = source.pictures[:: max(len(source.pictures) // SAMPLED_FILES, 1)]
    n_bytes = [len(picture.location.read_bytes()) for picture in sampled[:SAMPLED_FILES]]
    more = sum(len(image_files(Path(folder))[0]) for folder in data.unlabelled)
    return Counts(
        train=sides["train"] + more,
        labelled=labelled,
        validation=sides["validation"],
        test=sides["test"],
        classes=len(source.class_names),
        image_bytes=sum(n_bytes) / len(n_bytes) + TAR_BYTES,
        known_from=f"the files below {root}",
    )


def _bytes_of(data: DataParams) -> float:
    """Small pictures are PNG of about half their pixels, larger ones photos."""
    if data.image_size >= PHOTO_FROM:
        return PHOTO_BYTES + TAR_BYTES
    return data.image_size**2 * data.channels / 2 + TAR_BYTES
