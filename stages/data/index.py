"""The index of a folder of shards: what is there, where each image stands, and digests of all.

index.json is written last and holds a digest of itself, which covers the digest of every other
file. members-SPLIT.npz tells for each image its shard, offset, size, class, height, width and a
digest of its pixels. Shapes: N images of a split.
"""

import functools
import hashlib
import io
import json
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

from stages.data.shards import file_sha256
from stages.data.tar_reader import BLOCK
from stages.errors import UserError

INDEX_NAME = "index.json"
FORMAT = "simclr shards 1"
_MAX_INDEX_BYTES = 256 * 2**20
_COLUMNS = {
    "shard": np.dtype("<i4"),
    "offset": np.dtype("<i8"),
    "n_bytes": np.dtype("<i8"),
    "class_number": np.dtype("<i4"),
    "height": np.dtype("<i4"),
    "width": np.dtype("<i4"),
    "content": np.dtype("<u8"),
}

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
class ShardEntry:
    """A shard: file name in the folder, number of images, size, SHA-256."""

    name: str
    images: int
    n_bytes: int
    sha256: str


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


@dataclass(frozen=True)
class SplitEntry:
    """What the index says of a split."""

    name: str
    images: int
    shards: tuple[ShardEntry, ...]
    members_name: str
    members_bytes: int
    members_sha256: str


@dataclass(frozen=True)
class Index:
    """The index of a folder, checked.

    Attributes:
        folder: where the shards are.
        fingerprint: SHA-256 that covers every file.
        class_names: by class number.
        splits: by name.
        content: all of index.json.
    """

    folder: Path
    fingerprint: str
    class_names: tuple[str, ...]
    splits: dict[str, SplitEntry]
    content: dict[str, Any]

    def split(self, name: str) -> SplitEntry:
        if name not in self.splits:
            raise _refused(self.folder, f"has no split {name!r}, only {', '.join(self.splits)}")
        return self.splits[name]


def fingerprint_of(content: dict[str, Any]) -> str:
    """SHA-256 over all of an index but its own fingerprint."""
    rest = {name: value for name, value in content.items() if name != "fingerprint"}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_index(folder: Path) -> Index:
    """Read and check index.json; nothing else in the folder is opened.

    Raises:
        UserError: it is missing, damaged, edited or names files outside its folder.
    """
    path = folder / INDEX_NAME
    if not path.is_file():
        raise UserError(
            f"{path} is not there, so there are no shards to read.\n"
            "  Run the stage shard first: dvc repro shard."
        )
    if path.stat().st_size > _MAX_INDEX_BYTES:
        raise _refused(folder, "has an index too large to be one")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _refused(folder, f"has an index that is no JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _refused(folder, f"has an index of another kind, expected format {FORMAT!r}")
    if content.get("fingerprint") != fingerprint_of(content):
        raise _refused(folder, "has an index that was changed after it was written")
    try:
        return Index(
            folder=folder,
            fingerprint=content["fingerprint"],
            class_names=tuple(_text(name) for name in content["class_names"]),
            splits={
                _text(name): _split_entry(name, entry) for name, entry in content["splits"].items()
            },
            content=content,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _refused(folder, f"has an index that lacks or garbles {error}") from error


def read_members(index: Index, split: str) -> MemberTable:
    """The member table of a split, every row checked against the sizes in the index.

    Raises:
        UserError: missing, damaged, or a row that points outside its shard.
    """
    entry = index.split(split)
    path = index.folder / entry.members_name
    check_file(path, entry.members_bytes, entry.members_sha256)
    try:
        table = _load_table(path)
    except _DAMAGE as error:
        raise _refused(index.folder, f"has a damaged {path.name} ({error})") from error
    problem = _problem_of_table(table, entry, len(index.class_names))
    if problem:
        raise _refused(index.folder, f"has a {path.name} that {problem}")
    return table


def check_headers(path: Path, table: MemberTable, number: int) -> None:
    """Check that a tar header with the image's size stands before each image of a shard.

    Raises:
        UserError: the table points at something else.
    """
    rows = table.shard == number
    if not rows.any():
        return
    starts_N = table.offset[rows] - BLOCK
    shard = np.memmap(path, dtype=np.uint8, mode="r")
    sizes_N = shard[starts_N[:, None] + np.arange(124, 135)]
    magic_N = shard[starts_N[:, None] + np.arange(257, 262)]
    written_N = np.ascontiguousarray(sizes_N).view("S11")[:, 0]
    expected_N = np.array([f"{size:011o}".encode() for size in table.n_bytes[rows].tolist()])
    if (written_N != expected_N).any() or (magic_N != np.frombuffer(b"ustar", np.uint8)).any():
        raise _refused(path.parent, f"has a member table that does not fit {path.name}")


def check_file(path: Path, n_bytes: int, sha256: str, digest: bool = True) -> None:
    """Check a file's size and, once per process, its digest.

    Raises:
        UserError: missing, cut short, or changed.
    """
    if not path.is_file():
        raise _refused(path.parent, f"lacks {path.name}")
    found = path.stat()
    if found.st_size != n_bytes:
        raise _refused(path.parent, f"has {path.name} with {found.st_size} bytes, not {n_bytes}")
    if digest and _sha256_of(path, found.st_size, found.st_mtime_ns) != sha256:
        raise _refused(
            path.parent, f"has a damaged {path.name}: its SHA-256 is not {sha256[:16]}..."
        )


@functools.lru_cache(maxsize=4096)
def _sha256_of(path: Path, n_bytes: int, mtime_ns: int) -> str:
    return file_sha256(path)


def _split_entry(name: str, entry: dict[str, Any]) -> SplitEntry:
    shards = tuple(
        ShardEntry(
            _file_name(shard["name"]),
            _count(shard["images"]),
            _count(shard["bytes"]),
            _text(shard["sha256"]),
        )
        for shard in entry["shards"]
    )
    members = entry["members"]
    images = _count(entry["images"])
    if images != sum(shard.images for shard in shards):
        raise ValueError(f"the number of images of {name}")
    return SplitEntry(
        name=name,
        images=images,
        shards=shards,
        members_name=_file_name(members["name"]),
        members_bytes=_count(members["bytes"]),
        members_sha256=_text(members["sha256"]),
    )


def _load_table(path: Path) -> MemberTable:
    with zipfile.ZipFile(path) as archive:
        found = {name: _read_column(archive, name, dtype) for name, dtype in _COLUMNS.items()}
        text = _read_column(archive, "keys", np.dtype(np.uint8)).tobytes().decode()
    return MemberTable(keys=text.split("\n") if text else [], **found)


def _read_column(archive: zipfile.ZipFile, name: str, dtype: np.dtype) -> NDArray[Any]:
    """A column without np.load, which would believe the length that the file claims."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"a packed column {name}")  # stored: no larger than the file itself
    file = io.BytesIO(archive.read(info))
    np.lib.format.read_magic(file)
    shape, _, found = np.lib.format.read_array_header_1_0(file)
    data = file.read()
    if found != dtype or len(shape) != 1 or shape[0] * dtype.itemsize != len(data):
        raise ValueError(f"a column {name} of {found} and shape {shape}")
    return np.frombuffer(data, dtype)


def _problem_of_table(table: MemberTable, entry: SplitEntry, n_classes: int) -> str | None:
    lengths = {len(table.keys), *(len(getattr(table, name)) for name in _COLUMNS)}
    if lengths != {entry.images}:
        return f"has not {entry.images} rows"
    if len(set(table.keys)) != entry.images:
        return "names a key twice"
    if not entry.images:
        return None
    if table.shard.min() < 0 or table.shard.max() >= len(entry.shards):
        return "names a shard that is not there"
    limit_N = np.array([shard.n_bytes for shard in entry.shards])[table.shard]
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


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text, found {value!r}")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise TypeError(f"a count, found {value!r}")
    return value


def _file_name(value: Any) -> str:
    """A plain name in the index's own folder: no path, no remote, no command."""
    name = _text(value)
    if not name or name != Path(name).name or name in {".", ".."} or not name.isprintable():
        raise ValueError(f"a plain file name, found {name!r}")
    if set(name) & set("\\:|") or not name.endswith((".tar", ".npz")):
        raise ValueError(f"a plain file name, found {name!r}")
    return name


def _refused(folder: Path, what: str) -> UserError:
    return UserError(
        f"{folder} {what}.\n  Fetch the folder again from where it came, or make it anew: "
        "dvc repro --force shard."
    )
