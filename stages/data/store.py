"""Reading images by position: shards open, a table of where each image stands, decode on demand.

Shapes: N images of the store, B asked for, C H W.
"""

import os
import sys
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.data.images import DamagedImageError, decode
from stages.data.index import (
    Index,
    check_file,
    check_headers,
    read_index,
    read_members,
)
from stages.data.member_table import MemberTable
from stages.data.random_numbers import key_hashes
from stages.errors import UserError

CACHE_BYTES = 2**30  # of decoded images of one size that are kept in memory
DIGEST_BYTES = 4 * 2**30  # of shards whose SHA-256 is checked on opening, unless asked otherwise
_WORTH_THREADS = 64 * 64  # pixels of an image; below, handing it to a thread costs more


@dataclass(frozen=True)
class ImageStore:
    """A split of a folder of shards, or a part of it.

    Attributes:
        keys: of the N images, in the order of the shards.
        key_hashes: (N,) uint64, `random_numbers.key_hash` of each.
        class_names: by class number.
        fingerprint: of the whole folder.
    """

    keys: Sequence[str]
    key_hashes: NDArray[np.uint64]
    class_names: tuple[str, ...]
    fingerprint: str
    _reader: "_Reader"
    _rows: NDArray[np.int64]  # (N,) of the reader's table
    _classes: NDArray[np.int64] | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        split: str,
        *,
        with_labels: bool,
        keys: Sequence[str] | None = None,
        channels: int,
        max_pixels: int,
        check_digests: bool | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> "ImageStore":
        """Open a split; nothing is decoded yet.

        Args:
            folder: of the shards and their index.
            split: "train", "validation" or "test".
            with_labels: whether classes can be seen at all.
            keys: a part of the split, in this order; None: all of it, in the order of the shards.
            channels: C, 1 or 3.
            max_pixels: a larger picture is refused.
            check_digests: compare each shard with its SHA-256, once per process; None: when they
                have less than DIGEST_BYTES. Sizes, and the header of each image, always are.
            cache_bytes: most memory for decoded images; kept only where all have one size.

        Raises:
            UserError: shards missing, damaged, cut short or not what the index says; or a key
                that is not in the split.
        """
        index = read_index(folder)
        table = read_members(index, split)
        reader = _Reader.open(index, split, table, channels, max_pixels, check_digests, cache_bytes)
        rows = np.arange(len(table.keys)) if keys is None else _rows_of(keys, table, split)
        keys = table.keys if keys is None else list(keys)
        return cls(
            keys=keys,
            key_hashes=key_hashes(keys),
            class_names=index.class_names,
            fingerprint=index.fingerprint,
            _reader=reader,
            _rows=rows,
            _classes=table.class_number[rows].astype(np.int64) if with_labels else None,
        )

    @property
    def n_images(self) -> int:
        return len(self._rows)

    @property
    def classes(self) -> NDArray[np.int64]:
        """(N,) class numbers, -1 without a label.

        Raises:
            ValueError: the store was opened without labels.
        """
        if self._classes is None:
            raise ValueError("this store was opened without labels")
        return self._classes

    def class_tensor(self, positions_B: NDArray[np.int64]) -> Tensor | None:
        """(B,) int64 classes; None where the store was opened without labels."""
        if self._classes is None:
            return None
        return torch.from_numpy(self._classes[positions_B])

    def images(self, positions_B: NDArray[np.int64]) -> Tensor | list[Tensor]:
        """The images at these positions, uint8.

        Returns:
            (B, C, H, W) where all images of the split have one size, else a list of (C, H_i, W_i).

        Raises:
            UserError: the shard changed since it was opened and no longer decodes.
        """
        found = self._reader.images(self._rows[positions_B])
        if isinstance(found, list):
            return [torch.from_numpy(image_CHW) for image_CHW in found]
        return torch.from_numpy(found)

    def at(self, positions_B: NDArray[np.int64]) -> "ImageStore":
        """A store of the images at these positions, in this order."""
        return replace(
            self,
            keys=[self.keys[position] for position in positions_B.tolist()],
            key_hashes=self.key_hashes[positions_B],
            _rows=self._rows[positions_B],
            _classes=None if self._classes is None else self._classes[positions_B],
        )

    def with_labels_of(self, named: Collection[str]) -> "ImageStore":
        """The same images, of which only those named keep their class; the others have -1."""
        known = np.fromiter((key in named for key in self.keys), dtype=bool, count=self.n_images)
        return replace(self, _classes=np.where(known, self.classes, -1))


def _rows_of(keys: Sequence[str], table: MemberTable, split: str) -> NDArray[np.int64]:
    row_of = {key: row for row, key in enumerate(table.keys)}
    missing = [key for key in keys if key not in row_of]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(keys)} keys are not in the split {split}, the first of them "
            f"{missing[0]!r}.\n  The label subsets belong to other shards: run dvc repro subsets."
        )
    return np.array([row_of[key] for key in keys], dtype=np.int64)


@dataclass
class _Reader:
    """Open shards, their table, and the decoded images where they are kept; shared by stores."""

    table: MemberTable
    paths: Sequence[Path]
    files: Sequence[int]
    channels: int
    max_pixels: int
    one_size: bool
    cache_NCHW: NDArray[np.uint8] | None
    cached_N: NDArray[np.bool_]
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_cores()))

    @classmethod
    def open(
        cls,
        index: Index,
        split: str,
        table: MemberTable,
        channels: int,
        max_pixels: int,
        check_digests: bool | None,
        cache_bytes: int,
    ) -> "_Reader":
        shards = index.split(split).shards
        if check_digests is None:
            check_digests = sum(shard.n_bytes for shard in shards) <= DIGEST_BYTES
        paths = [index.folder / shard.name for shard in shards]
        for number, (path, shard) in enumerate(zip(paths, shards, strict=True)):
            check_file(path, shard.n_bytes, shard.sha256, check_digests)
            check_headers(path, table, number)
        n_images = len(table.keys)
        one_size = len(np.unique(table.height)) == 1 and len(np.unique(table.width)) == 1
        cache = None
        if one_size:
            shape = (n_images, channels, int(table.height[0]), int(table.width[0]))
            if np.prod(shape, dtype=np.int64) <= cache_bytes:
                cache = np.empty(shape, dtype=np.uint8)
        return cls(
            table=table,
            paths=paths,
            files=[os.open(path, os.O_RDONLY) for path in paths],
            channels=channels,
            max_pixels=max_pixels,
            one_size=one_size,
            cache_NCHW=cache,
            cached_N=np.zeros(n_images, dtype=bool),
        )

    def __del__(self) -> None:
        for file in self.files:
            os.close(file)

    def images(self, rows_B: NDArray[np.int64]) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        if self.cache_NCHW is None:
            found = self._decode(rows_B)
            return np.stack(found) if self.one_size and found else found
        missing = np.unique(rows_B[~self.cached_N[rows_B]])
        if len(missing):
            self.cache_NCHW[missing] = self._decode(missing)
            self.cached_N[missing] = True  # after the pixels: another thread may be reading
        return self.cache_NCHW[rows_B]

    def _decode(self, rows_B: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        rows = rows_B.tolist()
        pixels_B = self.table.height[rows_B].astype(np.int64) * self.table.width[rows_B]
        if len(rows) < 2 or pixels_B.mean() < _WORTH_THREADS:
            return [self._decode_one(row) for row in rows]
        return list(self.pool.map(self._decode_one, rows))

    def _decode_one(self, row: int) -> NDArray[np.uint8]:
        """One image as (C, H, W)."""
        table = self.table
        shard, n_bytes = int(table.shard[row]), int(table.n_bytes[row])
        data = os.pread(self.files[shard], n_bytes, int(table.offset[row]))
        try:
            pixels_HWC = decode(data, self.channels, self.max_pixels)
        except DamagedImageError as error:
            raise self._damaged(row, str(error)) from error
        height, width, _ = pixels_HWC.shape
        if (height, width) != (table.height[row], table.width[row]):
            raise self._damaged(row, f"{height} x {width} pixels, not what the index says")
        return np.array(pixels_HWC.transpose(2, 0, 1), order="C")  # a copy: writable

    def _damaged(self, row: int, what: str) -> UserError:
        return UserError(
            f"{self.paths[self.table.shard[row]]}: the image {self.table.keys[row]} does not "
            f"decode ({what}).\n  The shard changed, or data.max_pixels was lowered since it was "
            "written: dvc repro --force shard."
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
