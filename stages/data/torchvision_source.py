"""Data sets that torchvision knows, read by its classes, with their own splits.

torchvision checks the MD5 sum of CIFAR's files before it unpickles them; of the others none holds
code. What lies on disk as files is taken as it is; what lies in arrays becomes PNG. A data set
without a split of its own has it drawn by the stage, as any source. Shapes: N images, H W C.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.data.images import SUFFIXES, encode_png
from stages.data.sources import Picture, Source, Split, check_keys, key_of, problem_of_name
from stages.errors import UserError

STL10_IMAGE = (3, 96, 96)  # channels, columns, rows: as the authors' Matlab wrote them


@dataclass(frozen=True)
class Part:
    """A part of a data set: its name in keys, how its class is called, and our split of it."""

    name: str
    options: dict[str, object]
    split: Split | None = None


@dataclass(frozen=True)
class Kind:
    """How one data set is read.

    Attributes:
        parts: of which it is made; of "train" without a split of ours, validation is drawn.
        content: from torchvision's object to (files or None, class numbers, class names).
        where: what must lie in data.root.
        fetched: whether torchvision can download it.
    """

    parts: Sequence[Part]
    content: Callable[[Any], tuple[Sequence[Any] | None, Sequence[int], Sequence[str]]]
    where: str
    fetched: bool = True


def _by_split(train: str = "train", val: str | None = None) -> list[Part]:
    """Parts of a class that takes split=..., with its own validation where it has one."""
    parts = [Part("train", {"split": train}, "train" if val else None)]
    if val:
        parts.append(Part("validation", {"split": val}, "validation"))
    return [*parts, Part("test", {"split": "test"}, "test")]


_WHOLE = [Part("all", {})]
_TRAIN_OR_TEST = [Part("train", {"train": True}), Part("test", {"train": False}, "test")]
_STL10 = [*_by_split(), Part("unlabelled", {"split": "unlabeled"})]


def _arrays(data: Any) -> tuple[None, Sequence[int], Sequence[str]]:
    return None, data.targets, data.classes


def _digits(data: Any) -> tuple[None, Sequence[int], Sequence[str]]:
    return None, data.labels.tolist(), [str(digit) for digit in range(10)]


def _stl10(data: Any) -> tuple[None, Sequence[int], Sequence[str]]:
    return None, data.labels.astype(int).tolist(), data.classes


def _image_files(data: Any) -> tuple[Sequence[Any], Sequence[int], Sequence[str]]:
    return data._image_files, data._labels, data.classes


def _pets(data: Any) -> tuple[Sequence[Any], Sequence[int], Sequence[str]]:
    return data._images, data._labels, data.classes


def _pairs(data: Any) -> tuple[Sequence[Any], Sequence[int], Sequence[str]]:
    files, classes = zip(*data._samples, strict=True)
    return files, classes, data.classes


def _image_folder(data: Any) -> tuple[Sequence[Any], Sequence[int], Sequence[str]]:
    files, classes = zip(*data.samples, strict=True)
    return files, classes, data.classes


def _caltech(data: Any) -> tuple[Sequence[Any], Sequence[int], Sequence[str]]:
    folder = Path(data.root) / "101_ObjectCategories"
    files = [
        folder / data.categories[y] / f"image_{number:04d}.jpg"
        for y, number in zip(data.y, data.index, strict=True)
    ]
    return files, data.y, data.categories


KINDS: dict[str, Kind] = {
    "CIFAR10": Kind(_TRAIN_OR_TEST, _arrays, "cifar-10-batches-py/"),
    "CIFAR100": Kind(_TRAIN_OR_TEST, _arrays, "cifar-100-python/"),
    "STL10": Kind(_STL10, _stl10, "stl10_binary/"),
    "SVHN": Kind(_by_split(), _digits, "train_32x32.mat and test_32x32.mat"),
    "ImageNet": Kind(
        [Part("train", {"root": "train"}), Part("test", {"root": "val"}, "test")],
        _image_folder,
        "train/ and val/, each with a folder per class",
        fetched=False,
    ),
    "Food101": Kind(_by_split(), _image_files, "food-101/"),
    "SUN397": Kind(
        _WHOLE,
        _image_files,
        "SUN397/, and in it or beside it the authors' Training_01.txt and Testing_01.txt",
    ),
    "StanfordCars": Kind(_by_split(), _pairs, "stanford_cars/", fetched=False),
    "FGVCAircraft": Kind(_by_split(val="val"), _image_files, "fgvc-aircraft-2013b/"),
    "DTD": Kind(_by_split(val="val"), _image_files, "dtd/dtd/"),
    "OxfordIIITPet": Kind(_by_split("trainval"), _pets, "oxford-iiit-pet/"),
    "Caltech101": Kind(_WHOLE, _caltech, "caltech101/101_ObjectCategories/"),
    "Flowers102": Kind(_by_split(val="val"), _image_files, "flowers-102/"),
}


def read_torchvision(name: str, root: Path, *, download: bool) -> Source:
    """The images of a data set in its own splits; its test images are the test split.

    ImageNet's validation images are its test split, as in the papers; SUN397 is split by the
    authors' first partition where that lies beside it.

    Args:
        name: of torchvision's class.
        root: the folder that torchvision takes as root.
        download: let torchvision fetch what is not there.

    Raises:
        UserError: it is not there or damaged, or can't be downloaded; the message says how to
            get it.
    """
    kind = KINDS[name]
    if download and not kind.fetched:
        raise UserError(
            f"torchvision can't download {name}.\n  Put {kind.where} into {root}, and write "
            "data.download: false."
        )
    pictures: list[Picture] = []
    refused: list[tuple[str, str]] = []
    class_names: tuple[str, ...] = ()
    for number, part in enumerate(kind.parts):
        files, classes, names = _part(name, root, number, download=download)
        class_names = class_names or _different(names)
        if _different(names) != class_names:
            raise UserError(
                f"{root}: the parts of {name} have other classes each.\n  Put the whole data set "
                f"there: {kind.where}."
            )
        places = _files(files, root) if files is not None else _in_arrays(name, root, number)
        for (key, suffix, location), label in zip(places, classes, strict=True):
            if problem := problem_of_name(key) or ("not a known format" if not suffix else None):
                refused.append((key, problem))
                continue
            class_name = class_names[label] if label >= 0 else None
            pictures.append(Picture(key, suffix, location, class_name, part.split))
    pictures.sort(key=lambda picture: picture.key)
    check_keys(pictures, str(root))
    if name == "SUN397":
        pictures = _first_partition(pictures, root / "SUN397")
    return Source(pictures, class_names, tuple(sorted(refused)), {"torchvision": name})


@dataclass(frozen=True, slots=True)
class ArrayImage:
    """Where one picture stands in the arrays of a data set; read as PNG."""

    name: str
    root: Path
    part: int
    number: int

    def read_bytes(self) -> bytes:
        return encode_png(np.asarray(_pixels(self.name, self.root, self.part)[self.number]))


def _in_arrays(name: str, root: Path, part: int) -> Iterator[tuple[str, str, ArrayImage]]:
    head = KINDS[name].parts[part].name
    for number in range(len(_pixels(name, root, part))):
        yield f"{head}-{number:06d}", "png", ArrayImage(name, root, part, number)


def _files(files: Sequence[Any], root: Path) -> Iterator[tuple[str, str, Path]]:
    for file in map(Path, files):
        inside = file.relative_to(root).as_posix()
        yield key_of(inside.rpartition(".")[0]), SUFFIXES.get(file.suffix.lower(), ""), file


def _different(names: Sequence[str]) -> tuple[str, ...]:
    """Class names, with the class number where several are called alike."""
    names = [str(name).strip() for name in names]
    return tuple(
        name if names.count(name) == 1 else f"{name} ({number})"
        for number, name in enumerate(names)
    )


def _part(
    name: str, root: Path, number: int, *, download: bool = False
) -> tuple[Sequence[Any] | None, Sequence[int], Sequence[str]]:
    if name == "STL10" and KINDS[name].parts[number].name == "unlabelled":
        # The class would read all 2.8 GB; checked by it already with the training images.
        _, _, names = _part(name, root, 0)
        return None, [-1] * len(_pixels(name, root, number)), names
    return KINDS[name].content(_opened(name, root, number, download=download))


@functools.lru_cache(maxsize=2)
def _pixels(name: str, root: Path, part: int) -> NDArray[np.uint8]:
    """All images of a part (N, H, W, C), in each process once."""
    if name == "STL10":
        file = {"train": "train", "test": "test", "unlabelled": "unlabeled"}[_name(name, part)]
        path = root / "stl10_binary" / f"{file}_X.bin"
        return np.memmap(path, np.uint8, "r").reshape(-1, *STL10_IMAGE).transpose(0, 3, 2, 1)
    data = _opened(name, root, part).data
    return data.transpose(0, 2, 3, 1) if name == "SVHN" else data


def _name(name: str, part: int) -> str:
    return KINDS[name].parts[part].name


def _opened(name: str, root: Path, part: int, *, download: bool = False) -> Any:
    """The object of torchvision for a part of a data set.

    Raises:
        UserError: not there, damaged, or not to be had.
    """
    from torchvision import datasets  # seconds, and only this source needs it

    kind = KINDS[name]
    options = dict(kind.parts[part].options)
    try:
        if name == "ImageNet":
            return datasets.ImageFolder(root / str(options["root"]))
        options |= {"download": True} if download else {}
        return getattr(datasets, name)(root, **options)
    except (RuntimeError, OSError, ValueError, LookupError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        way = "write data.download: true, or put" if kind.fetched and not download else "put"
        raise UserError(
            f"torchvision can't read {name} in {root}: {reason}\n  To have it, {way} the data set "
            f"there, whole: {kind.where}."
        ) from error


def _first_partition(pictures: Sequence[Picture], folder: Path) -> list[Picture]:
    """SUN397 as its authors split it; all of it, unsplit, where their lists are not there."""
    split_of: dict[str, Split] = {}
    lists: tuple[tuple[str, Split], ...] = (
        ("Training_01.txt", "train"),
        ("Testing_01.txt", "test"),
    )
    for list_name, split in lists:
        places = [place / list_name for place in (folder, folder.parent, folder / "Partitions")]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            return list(pictures)
        for line in path.read_text(encoding="utf-8").split():
            split_of[f"SUN397{line.rpartition('.')[0]}"] = split
    return [
        Picture(p.key, p.suffix, p.location, p.class_name, _unless_train(split_of[p.key]))
        for p in pictures
        if p.key in split_of
    ]


def _unless_train(split: Split) -> Split | None:
    """Validation is drawn from what has no split."""
    return None if split == "train" else split
