"""The member table of a split: for each image where it stands and what it is.

A .npz that numpy can open, written without pickles and read without trust. Shapes: N images.
"""

import io
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.data.tar_reader import BLOCK

_COLUMNS = {
    "shard": np.dtype("<i4"),
    "offset": np.dtype("<i8"),
    "n_bytes": np.dtype("<i8"),
    "class_number": np.dtype("<i4"),
    "height": np.dtype("<i4"),
    "width": np.dtype("<i4"),
    "content": np.dtype("<u8"),
}

_MAGIC = np.frombuffer(b"ustar", np.uint8)  # of a tar header

# What zipfile and numpy are known to raise on a damaged table.
_DAMAGE = (
    ValueError,
    LookupError,
    ArithmeticError,
    OSError,
    EOFError,
    TypeError,
    SyntaxError,
    RuntimeError,
    struct.error,
    tokenize.TokenError,
    zlib.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class MemberTable:
    """Where each image of a split stands; every column has N rows.

    Attributes:
        keys: N keys.
        shard: number of the shard in the split.
        offset: of the image's bytes in the shard.
        n_bytes: of the image.
        class_number: -1 without a label.
        height: of the decoded picture, pixels.
        width: pixels.
        content: 64 bits of the digest of its pixels; equal for copies.
    """

    keys: Sequence[str]
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    n_bytes: NDArray[np.int64]
    class_number: NDArray[np.int32]
    height: NDArray[np.int32]
    width: NDArray[np.int32]
    content: NDArray[np.uint64]

    def to_bytes(self) -> bytes:
        """As an uncompressed .npz without pickles, the same bytes for the same table."""
        columns = {name: getattr(self, name).astype(dtype) for name, dtype in _COLUMNS.items()}
        text = "\n".join(self.keys).encode()
        file = io.BytesIO()
        np.savez(file, **columns, keys=np.frombuffer(text, np.uint8))
        return file.getvalue()


def load_table(path: Path) -> MemberTable:
    """Read a table; every column has the type it should, and nothing else is certain.

    Raises:
        ValueError: no such table.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = path.stat().st_size
            found = {
                name: _read_column(archive, name, dtype, size) for name, dtype in _COLUMNS.items()
            }
            text = _read_column(archive, "keys", np.dtype(np.uint8), size).tobytes().decode()
    except _DAMAGE as error:
        raise ValueError(str(error)) from error
    return MemberTable(keys=text.split("\n") if text else [], **found)


def problem_of(
    table: MemberTable, n_images: int, shard_bytes: Sequence[int], n_classes: int
) -> str | None:
    """What a table claims that can't be, or None.

    Args:
        table: as read.
        n_images: that it should have.
        shard_bytes: the size of each shard.
        n_classes: K.
    """
    lengths = {len(table.keys), *(len(getattr(table, name)) for name in _COLUMNS)}
    if lengths != {n_images}:
        return f"has not {n_images} rows"
    if len(set(table.keys)) != n_images:
        return "names a key twice"
    if not n_images:
        return None
    if table.shard.min() < 0 or table.shard.max() >= len(shard_bytes):
        return "names a shard that is not there"
    limit_N = np.array(shard_bytes)[table.shard]
    # In this order, so that no sum overflows.
    inside_N = (table.n_bytes >= 0) & (table.n_bytes <= limit_N)
    inside_N &= (table.offset >= BLOCK) & (table.offset <= limit_N - table.n_bytes)
    if not inside_N.all():
        return "points outside its shard"
    if table.class_number.min() < -1 or table.class_number.max() >= n_classes:
        return "names a class that is not there"
    if min(table.height.min(), table.width.min()) < 1:
        return "has an image without pixels"
    return None


def headers_fit(path: Path, table: MemberTable, number: int) -> bool:
    """Whether a tar header with the image's size stands before each image of a shard."""
    rows = table.shard == number
    if not rows.any():
        return True
    starts_N = table.offset[rows] - BLOCK
    shard = np.memmap(path, dtype=np.uint8, mode="r")
    sizes_N = shard[starts_N[:, None] + np.arange(124, 135)]
    magic_N = shard[starts_N[:, None] + np.arange(257, 262)]
    written_N = np.ascontiguousarray(sizes_N).view("S11")[:, 0]
    expected_N = np.array([f"{size:011o}".encode() for size in table.n_bytes[rows].tolist()])
    return bool((written_N == expected_N).all() and (magic_N == _MAGIC).all())


def _read_column(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype, n_bytes: int
) -> NDArray[Any]:
    """A column without np.load, which would believe the length that the file claims."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"a packed column {name}")  # stored: no larger than the file itself
    if info.file_size > n_bytes:
        raise ValueError(f"a column {name} of {info.file_size} bytes in a file of {n_bytes}")
    file = io.BytesIO(archive.read(info))
    np.lib.format.read_magic(file)
    shape, _, found = np.lib.format.read_array_header_1_0(file)
    data = file.read()
    if found != dtype or len(shape) != 1 or shape[0] * dtype.itemsize != len(data):
        raise ValueError(f"a column {name} of {found} and shape {shape}")
    return np.frombuffer(data, dtype)
