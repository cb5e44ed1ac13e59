"""Fashion-MNIST as a source (Xiao et al. 2017): 70,000 grey pictures of 28 x 28, ten classes."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.data.fashion_mnist_files import FILES, checked, obtain, unpack
from stages.data.images import encode_png
from stages.data.sources import Picture, Source, Split

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def read_fashion_mnist(root: Path | None, cache: Path) -> Source:
    """The 70,000 images; the authors' test images stay the test split.

    Args:
        root: folder with the four files; None: had from the network and kept in `cache`.
        cache: folder to keep them in.

    Raises:
        UserError: a file of root is missing or damaged, or no way of getting them works.
    """
    folder = obtain(cache) if root is None else checked(root)
    pictures = [*_pictures(folder, "test", "test"), *_pictures(folder, "train", None)]
    return Source(sorted(pictures, key=lambda picture: picture.key), CLASS_NAMES)


@dataclass(frozen=True, slots=True)
class IdxImage:
    """Where one picture stands in an images file; read as PNG."""

    path: Path
    number: int

    def read_bytes(self) -> bytes:
        return encode_png(_read_images(self.path)[self.number])


def _pictures(folder: Path, part: str, split: Split | None) -> Iterator[Picture]:
    """The pictures of one images file, with keys like train-00042."""
    images = FILES[part, "images"]
    labels = FILES[part, "labels"]
    classes = np.frombuffer(unpack(folder / labels.name, labels.n_bytes), np.uint8, offset=8)
    for number, class_number in enumerate(classes.tolist()):
        yield Picture(
            key=f"{part}-{number:05d}",
            suffix="png",
            location=IdxImage(folder / images.name, number),
            class_name=CLASS_NAMES[class_number],
            split=split,
        )


@functools.lru_cache(maxsize=2)
def _read_images(path: Path) -> NDArray[np.uint8]:
    n_bytes = next(file.n_bytes for file in FILES.values() if file.name == path.name)
    return np.frombuffer(unpack(path, n_bytes), np.uint8, offset=16).reshape(-1, 28, 28)
