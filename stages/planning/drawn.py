"""Drawn images in place of real ones, so that a machine can be measured before there are any.

Shapes: N images, B asked for, C H W.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stages.data.build import Wanted, build_shards
from stages.data.fast_jpeg import decode_plain_jpeg
from stages.data.folders import read_class_folders
from stages.data.images import decode, encode_png
from stages.data.order import EpochOrder
from stages.data.splits import SplitSizes
from stages.planning.counts import PHOTO_FROM
from stages.sections.data import DataParams

WARM_UP, SHARDED = 10, (50, 350)  # images made into shards; the difference is what they take
PHOTO_SIZE = (375, 500)  # of ImageNet's, the median


@dataclass
class DrawnImages:
    """Images of noise in place of a store, with what a loader needs of one.

    Attributes:
        pixels_NCHW: uint8; images of a data set that is kept decoded.
        jpeg: bytes that are decoded for every image instead, where it would not be.
    """

    pixels_NCHW: Tensor
    jpeg: bytes | None
    channels: int

    @property
    def n_images(self) -> int:
        return len(self.pixels_NCHW)

    @property
    def key_hashes(self) -> np.ndarray:
        return np.arange(self.n_images, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)

    def order(self, seed: int) -> EpochOrder:
        return EpochOrder(self.n_images, seed)

    def read_ahead(self, shards: object) -> None:
        """Nothing is far away."""

    def images(self, positions_B: np.ndarray) -> Tensor | list[Tensor]:
        if self.jpeg is None:
            return self.pixels_NCHW[torch.from_numpy(positions_B)]
        return [self._decoded(self.jpeg) for _ in positions_B]

    def _decoded(self, data: bytes) -> Tensor:
        place_HWC = np.empty((*PHOTO_SIZE, self.channels), np.uint8)
        if decode_plain_jpeg(data, self.channels, 10**9, place_HWC) is None:
            place_HWC = decode(data, self.channels, 10**9)
        return torch.from_numpy(place_HWC).permute(2, 0, 1)

    def class_tensor(self, positions_B: np.ndarray) -> Tensor:
        return torch.from_numpy(positions_B % 2).long()


def drawn_photo(seed: int, channels: int) -> bytes:
    """A JPEG of a photo's size and of about its bytes."""
    rng = np.random.default_rng(seed)
    shape = PHOTO_SIZE if channels == 1 else (*PHOTO_SIZE, channels)
    pixels = rng.integers(96, 160, shape, dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=85)
    return data.getvalue()


def seconds_of_sharding(data: DataParams, now: Callable[[], float]) -> float:
    """Of one image that becomes part of a shard, in one process, by the clock `now`."""
    _time_shards(WARM_UP, data, now)
    few, many = (_time_shards(n, data, now) for n in SHARDED)
    return max(many - few, 0.0) / (SHARDED[1] - SHARDED[0])


def _time_shards(n_images: int, data: DataParams, now: Callable[[], float]) -> float:
    rng = np.random.default_rng(0)
    with TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(n_images):
            place = folder / "images" / f"class{number % 2}"
            place.mkdir(parents=True, exist_ok=True)
            if data.image_size >= PHOTO_FROM:
                (place / f"{number}.jpg").write_bytes(drawn_photo(number, data.channels))
            else:
                pixels = rng.integers(0, 256, (data.image_size,) * 2, dtype=np.uint8)
                (place / f"{number}.png").write_bytes(encode_png(pixels))
        wanted = Wanted(
            SplitSizes(2, 0.2), 0, data.channels, data.max_pixels, data.images_per_shard, 0.0
        )
        source = read_class_folders(folder / "images")
        begun = now()
        build_shards(source, wanted, folder / "shards", folder / "work", workers=1)
        return now() - begun
