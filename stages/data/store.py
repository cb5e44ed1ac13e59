"""Reading images by position: shards open, a table of where each image stands, decode on demand.

Shapes: N images of the store, B asked for, C H W.
"""

import os
import sys
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.data.block_order import BlockOrder, Mixing, mixing
from stages.data.cache import ShardsAt
from stages.data.fast_jpeg import decode_plain_jpeg, plain_size
from stages.data.images import DamagedImageError, decode
from stages.data.index import Index, read_index, read_members
from stages.data.member_table import MemberTable
from stages.data.order import EpochOrder, Order
from stages.data.random_numbers import key_hashes
from stages.data.shard_bytes import LocalShards, RemoteShards, ShardBytes
from stages.errors import UserError

CACHE_BYTES = 2**30  # of decoded images of one size that are kept in memory
DIGEST_BYTES = 4 * 2**30  # of shards whose SHA-256 is checked on opening, unless asked otherwise
_WORTH_THREADS = 64 * 64  # pixels of an image; below, handing it to a thread costs more
_PARTS_PER_CORE = 4  # of a batch; a few, since pictures differ in size


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
    _shuffle_shards: int | None = None

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
        at: ShardsAt | None = None,
        shuffle_shards: int | None = None,
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
            at: where the shards are; None: in the folder. The index is in the folder always.
            shuffle_shards: shards that `order` shuffles at a time; None: all.

        Raises:
            UserError: shards missing, damaged, cut short or not what the index says; or a key
                that is not in the split.
        """
        index = read_index(folder)
        table = read_members(index, split)
        shards = _shard_bytes(index, split, table, check_digests, at)
        reader = _Reader.open(shards, table, channels, max_pixels, cache_bytes)
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
            _shuffle_shards=shuffle_shards,
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

    def plain_jpegs(self, positions_B: NDArray[np.int64]) -> list[bytes | None]:
        """The files of images that `fast_jpeg` takes for plain, for a decoder of another kind."""
        return self._reader.plain_jpegs(self._rows[positions_B])

    def order(self, seed: int) -> Order:
        """Which image of this store stands at which place of an epoch.

        Raises:
            UserError: the shards are remote, and their cache does not hold what is shuffled.
        """
        shard_N = self._reader.table.shard[self._rows]
        if self._shuffle_shards is None:
            shards = np.unique(shard_N).tolist()
            self._reader.shards.check_order(len(shards))
            self.read_ahead(shards)
            return EpochOrder(self.n_images, seed)
        self._reader.shards.check_order(2 * self._shuffle_shards)
        return BlockOrder.of(shard_N, seed, self._shuffle_shards)

    def mixing(self, order: Order, batch_size: int) -> Mixing:
        """How diverse the batches of an order are."""
        return mixing(order, self._reader.table.shard[self._rows], batch_size)

    def read_ahead(self, shards: Iterable[int]) -> None:
        """These shards will be read soon, so remote ones may be fetched meanwhile."""
        self._reader.shards.read_ahead(shards)

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


def _shard_bytes(
    index: Index, split: str, table: MemberTable, check_digests: bool | None, at: ShardsAt | None
) -> ShardBytes:
    shards = index.split(split).shards
    if at is not None:
        return RemoteShards(at, shards, table)
    if check_digests is None:
        check_digests = sum(shard.n_bytes for shard in shards) <= DIGEST_BYTES
    return LocalShards(index.folder, shards, table, check_digests)


@dataclass
class _Reader:
    """Shards, their table, and the decoded images where they are kept; shared by stores."""

    shards: ShardBytes
    table: MemberTable
    channels: int
    max_pixels: int
    one_size: bool
    cache_NHWC: NDArray[np.uint8] | None
    cached_N: NDArray[np.bool_]
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_cores()))

    @classmethod
    def open(
        cls,
        shards: ShardBytes,
        table: MemberTable,
        channels: int,
        max_pixels: int,
        cache_bytes: int,
    ) -> "_Reader":
        n_images = len(table.keys)
        one_size = len(np.unique(table.height)) == 1 and len(np.unique(table.width)) == 1
        cache = None
        if one_size:
            shape = (n_images, int(table.height[0]), int(table.width[0]), channels)
            if np.prod(shape, dtype=np.int64) <= cache_bytes:
                cache = np.empty(shape, dtype=np.uint8)
        return cls(
            shards=shards,
            table=table,
            channels=channels,
            max_pixels=max_pixels,
            one_size=one_size,
            cache_NHWC=cache,
            cached_N=np.zeros(n_images, dtype=bool),
        )

    def images(self, rows_B: NDArray[np.int64]) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        """As `ImageStore.images`; in memory a pixel's channels lie side by side, as decoded."""
        if self.cache_NHWC is None:
            found = self._decode(rows_B)
            if isinstance(found, list):
                return [pixels_HWC.transpose(2, 0, 1) for pixels_HWC in found]
            return found.transpose(0, 3, 1, 2)
        missing = np.unique(rows_B[~self.cached_N[rows_B]])
        if len(missing):
            self.cache_NHWC[missing] = self._decode(missing)
            self.cached_N[missing] = True  # after the pixels: another thread may be reading
        return self.cache_NHWC[rows_B].transpose(0, 3, 1, 2)

    def _decode(self, rows_B: NDArray[np.int64]) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        """(B, H, W, C), or a list of (H_i, W_i, C)."""
        self._expect_what_follows(rows_B)
        height_B, width_B = (
            lengths[rows_B].astype(np.int64) for lengths in (self.table.height, self.table.width)
        )
        # One piece of memory for all: the system gives a large one in far fewer steps.
        pixels_B = height_B * width_B
        memory = np.empty(int(pixels_B.sum()) * self.channels, dtype=np.uint8)
        if self.one_size:
            found = memory.reshape(-1, self.table.height[0], self.table.width[0], self.channels)
            places = list(found)
        else:
            ends = (np.cumsum(pixels_B) * self.channels).tolist()
            found = places = [
                memory[start:end].reshape(height, width, self.channels)
                for start, end, height, width in zip(
                    [0, *ends], ends, height_B.tolist(), width_B.tolist(), strict=False
                )
            ]
        n_parts = 1
        if len(rows_B) and _cores() > 1 and pixels_B.mean() >= _WORTH_THREADS:
            n_parts = min(len(rows_B), _PARTS_PER_CORE * _cores())
        if n_parts > 1:
            parts = ((rows_B[i::n_parts], places[i::n_parts]) for i in range(n_parts))
            list(self.pool.map(lambda part: self._decode_each(*part), parts))
        else:
            self._decode_each(rows_B, places)
        return found

    def _expect_what_follows(self, rows_B: NDArray[np.int64]) -> None:
        """One who reads out of one or two shards goes through them in order."""
        if not len(rows_B):
            return
        first, last = int(self.table.shard[rows_B].min()), int(self.table.shard[rows_B].max())
        if last - first <= 1:
            self.shards.read_ahead(range(last + 1, min(last + 2, int(self.table.shard[-1]) + 1)))

    def plain_jpegs(self, rows_B: NDArray[np.int64]) -> list[bytes | None]:
        """None where a file is not plain, or its picture not of the size that the index says."""
        self._expect_what_follows(rows_B)
        table, found = self.table, []
        where = (column[rows_B].tolist() for column in (table.shard, table.offset, table.n_bytes))
        sizes = (column[rows_B].tolist() for column in (table.height, table.width))
        for height, width, *at in zip(*sizes, *where, strict=True):
            data = self.shards.read(*at)
            plain = plain_size(data, self.channels, self.max_pixels)
            found.append(data if plain == (height, width) else None)
        return found

    def _decode_each(self, rows_B: NDArray[np.int64], places: Sequence[NDArray[np.uint8]]) -> None:
        """Each image to its place, (H, W, C)."""
        table, read = self.table, self.shards.read
        where = (column[rows_B].tolist() for column in (table.shard, table.offset, table.n_bytes))
        for row, place_HWC, *at in zip(rows_B.tolist(), places, *where, strict=True):
            data = read(*at)
            if decode_plain_jpeg(data, self.channels, self.max_pixels, place_HWC) is None:
                self._decode_with_pillow(row, data, place_HWC)

    def _decode_with_pillow(self, row: int, data: bytes, place_HWC: NDArray[np.uint8]) -> None:
        try:
            pixels_HWC = decode(data, self.channels, self.max_pixels)
        except DamagedImageError as error:
            raise self._damaged(row, str(error)) from error
        if pixels_HWC.shape != place_HWC.shape:
            height, width, _ = pixels_HWC.shape
            raise self._damaged(row, f"{height} x {width} pixels, not what the index says")
        place_HWC[:] = pixels_HWC

    def _damaged(self, row: int, what: str) -> UserError:
        return UserError(
            f"{self.shards.name(self.table.shard[row])}: the image {self.table.keys[row]} does not "
            f"decode ({what}).\n  The shard changed, or data.max_pixels was lowered since it was "
            "written: dvc repro --force shard."
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
