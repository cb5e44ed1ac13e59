"""TensorFlow's checkpoint format V2, read without TensorFlow: an index and shards of raw bytes.

PREFIX.index is a table of names to entries (dtype, shape, shard, offset, size, checksum), and
PREFIX.data-00000-of-00001 and its like hold the values. Both are input from strangers: a size is
compared with the file before anything is allocated, and nothing in them is executed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.errors import UserError
from stages.importing.crc32c import masked_crc32c
from stages.importing.table import LARGEST_INDEX_BYTES, read_table
from stages.importing.wire import Damaged, as_bytes, as_int, fields, fixed32, piece, varint

HEADER_KEY = b""
LITTLE_ENDIAN = 0
MOST_SHARDS = 10_000
MOST_DIMENSIONS = 8
FLOAT, STRING = 1, 7
DTYPES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    7: "string",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    19: "float16",
}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies and what it is.

    Attributes:
        dtype: TensorFlow's number for it.
        shape: () for a scalar.
        shard: number of the data file.
        offset: of its first byte there.
        n_bytes: as stored.
        crc: masked CRC-32C of those bytes.
        sliced: it is kept in parts, under names of their own.
    """

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    n_bytes: int
    crc: int
    sliced: bool


@dataclass(frozen=True)
class Bundle:
    """An opened checkpoint: its entries are known, its values still on disk."""

    prefix: Path
    n_shards: int
    entries: Mapping[str, Entry]

    @classmethod
    def open(cls, prefix: Path) -> "Bundle":
        """Read the index and compare every entry with the size of its data file.

        Args:
            prefix: the files' common name, without ".index".

        Raises:
            UserError: a file is missing, damaged or not what the index says.
        """
        index = _index_of(prefix)
        try:
            if index.stat().st_size > LARGEST_INDEX_BYTES:
                raise Damaged(f"it has {index.stat().st_size} bytes, more than any network's")
            table = read_table(memoryview(index.read_bytes()))
            if HEADER_KEY not in table:
                raise Damaged("it has no header")
            n_shards = _n_shards(table.pop(HEADER_KEY))
            entries = {_name(key): _entry(value) for key, value in table.items()}
        except Damaged as fault:
            raise _refusal(index, fault) from None
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise UserError(
                f"there is no checkpoint {prefix}: {index.name} is missing.\n"
                "  Give the folder, the .index file, or the name that its files begin with."
            ) from None
        bundle = cls(prefix, n_shards, entries)
        bundle._check_places()
        return bundle

    def data_file(self, shard: int) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}.data-{shard:05d}-of-{self.n_shards:05d}")

    @property
    def files(self) -> list[Path]:
        """The index and the data files that entries point into."""
        shards = sorted({entry.shard for entry in self.entries.values()})
        return [_index_of(self.prefix), *map(self.data_file, shards)]

    def read(self, name: str) -> np.ndarray:
        """A float32 tensor, its checksum compared.

        Raises:
            UserError: another type, kept in slices, cut short, or the checksum does not fit.
        """
        entry = self.entries[name]
        if entry.dtype != FLOAT:
            raise UserError(
                f"{name} in {self.prefix} holds {dtype_name(entry.dtype)}, not float32.\n"
                "  Weights of the official code are float32: this is another kind of checkpoint."
            )
        if entry.sliced:
            raise UserError(
                f"{name} in {self.prefix} is kept in slices (a partitioned variable), which the "
                "official code does not write.\n  Save it once more unpartitioned."
            )
        if 0 in entry.shape:
            raise _refusal(_index_of(self.prefix), f"{name} is empty: {list(entry.shape)}")
        return np.frombuffer(self._bytes(name), "<f4").reshape(entry.shape)

    def read_text(self, name: str, most_bytes: int) -> memoryview:
        """The bytes of a scalar string, its checksums compared.

        Raises:
            UserError: no such thing, or a checksum does not fit.
        """
        entry = self.entries[name]
        try:
            if entry.dtype != STRING or entry.shape != () or entry.sliced:
                raise Damaged("it is not a text")
            if entry.n_bytes > most_bytes:
                raise Damaged(f"a text of {entry.n_bytes} bytes is longer than any network's")
            stored = memoryview(self._bytes(name, check=False))
            n_bytes, at = varint(stored, 0)
            text = piece(stored, at + 4, len(stored) - at - 4)
            if len(text) != n_bytes:
                raise Damaged(f"a text of {n_bytes} bytes is kept in {len(text)}")
            # The checksum is that of the length as a fixed number, of its own checksum, and of
            # the text.
            length = n_bytes.to_bytes(4 if n_bytes < 1 << 32 else 8, "little")
            if masked_crc32c(length) != fixed32(stored, at):
                raise Damaged("the checksum of its length does not fit")
            if masked_crc32c(length + bytes(stored[at:])) != entry.crc:
                raise Damaged("its checksum does not fit its bytes")
        except Damaged as fault:
            raise _refusal(self.data_file(entry.shard), f"{name}: {fault}") from None
        return text

    def _bytes(self, name: str, *, check: bool = True) -> bytearray:
        entry = self.entries[name]
        file = self.data_file(entry.shard)
        data = bytearray(entry.n_bytes)
        with file.open("rb") as opened:
            opened.seek(entry.offset)
            n_read = opened.readinto(data)
        if n_read != entry.n_bytes:
            raise _refusal(file, f"{name} is cut short")
        if check and masked_crc32c(data) != entry.crc:
            raise _refusal(file, f"the checksum of {name} does not fit its bytes")
        return data

    def _check_places(self) -> None:
        """Every entry within its file, and all of them together no larger than it."""
        sizes: dict[int, int] = {}
        used: dict[int, int] = {}
        for name, entry in self.entries.items():
            if entry.shard >= self.n_shards:
                raise _refusal(
                    _index_of(self.prefix),
                    f"{name} lies in data file {entry.shard} of {self.n_shards}",
                )
            file = self.data_file(entry.shard)
            if entry.shard not in sizes:
                if not file.is_file():
                    raise UserError(
                        f"{file} is missing, which {_index_of(self.prefix)} points into.\n"
                        "  Fetch all files of the checkpoint."
                    )
                sizes[entry.shard] = file.stat().st_size
            if entry.offset + entry.n_bytes > sizes[entry.shard]:
                raise _refusal(
                    file,
                    f"{name} should end at byte {entry.offset + entry.n_bytes}, "
                    f"and the file at {sizes[entry.shard]}",
                )
            used[entry.shard] = used.get(entry.shard, 0) + entry.n_bytes
            if used[entry.shard] > sizes[entry.shard]:
                raise _refusal(file, "its tensors overlap")


def dtype_name(number: int) -> str:
    return DTYPES.get(number, f"TensorFlow's type {number}")


def _index_of(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.index")


def _refusal(file: Path, fault: Damaged | str) -> UserError:
    return UserError(
        f"{file} can't be used as a TensorFlow checkpoint: {fault}.\n"
        "  Fetch or copy it once more; nothing was written."
    )


def _name(key: bytes) -> str:
    # A slice's key is binary; such names stand for nothing and match nothing.
    return key.decode(errors="backslashreplace")


def _n_shards(header: memoryview) -> int:
    n_shards, endianness = 0, LITTLE_ENDIAN
    for number, value in fields(header):
        if number == 1:
            n_shards = as_int(value)
        elif number == 2:
            endianness = as_int(value)
    if endianness != LITTLE_ENDIAN:
        raise Damaged("it was written on a big-endian machine")
    if not 1 <= n_shards <= MOST_SHARDS:
        raise Damaged(f"it announces {n_shards} data files")
    return n_shards


def _entry(message: memoryview) -> Entry:
    numbers = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}  # dtype, shard, offset, size, checksum
    shape: tuple[int, ...] = ()
    sliced = False
    for number, value in fields(message):
        if number == 2:
            shape = _shape(as_bytes(value))
        elif number == 7:
            sliced = True
        elif number in numbers:
            numbers[number] = as_int(value)
    dtype, shard, offset, n_bytes, crc = numbers.values()
    if dtype == FLOAT and not sliced and n_bytes != 4 * math.prod(shape):
        raise Damaged(f"a float32 tensor of shape {list(shape)} is said to have {n_bytes} bytes")
    return Entry(dtype, shape, shard, offset, n_bytes, crc, sliced)


def _shape(message: memoryview) -> tuple[int, ...]:
    sizes = []
    for number, value in fields(message):
        if number == 2:
            sizes.append(_size(as_bytes(value)))
        elif number == 3 and value:
            raise Damaged("a tensor has no shape")
        if len(sizes) > MOST_DIMENSIONS:
            raise Damaged(f"a tensor has more than {MOST_DIMENSIONS} dimensions")
    return tuple(sizes)


def _size(dimension: memoryview) -> int:
    size = 0
    for number, value in fields(dimension):
        if number == 1:
            size = as_int(value)
    return size
