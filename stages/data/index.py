"""The index of a folder of shards: what is there, where each image stands, and digests of all.

index.json is written last and holds a digest of itself, which covers the digest of every other
file. members-SPLIT-DIGEST.npz tells for each image its shard, offset, size, class, height, width
and a digest of its pixels. Shapes: N images of a split.
"""

import functools
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.data.member_table import MemberTable, headers_fit, load_table, problem_of
from stages.data.shards import file_sha256
from stages.errors import UserError

INDEX_NAME = "index.json"
FORMAT = "simclr shards 1"
MAX_INDEX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ShardEntry:
    """A shard: file name in the folder, number of images, size, SHA-256, digest of its plan."""

    name: str
    images: int
    n_bytes: int
    sha256: str
    made_of: str


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
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise _refused(folder, "has an index too large to be one")
    return parse_index(folder, path.read_bytes())


def parse_index(folder: Path, data: bytes) -> Index:
    """Check the bytes of an index.json of a folder.

    Raises:
        UserError: damaged, edited, or naming files outside its folder.
    """
    try:
        content = json.loads(data.decode())
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
        table = load_table(path)
    except ValueError as error:
        raise _refused(index.folder, f"has a damaged {path.name} ({error})") from error
    shard_bytes = [shard.n_bytes for shard in entry.shards]
    problem = problem_of(table, entry.images, shard_bytes, len(index.class_names))
    if problem:
        raise _refused(index.folder, f"has a {path.name} that {problem}")
    return table


def check_headers(path: Path, table: MemberTable, number: int) -> None:
    """Check that the images of a shard stand where the table says.

    Raises:
        UserError: the table points at something else.
    """
    if not headers_fit(path, table, number):
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
            _sha256(shard["sha256"]),
            _text(shard.get("made_of", "")),
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
        members_sha256=_sha256(members["sha256"]),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text, found {value!r}")
    return value


def _sha256(value: Any) -> str:
    """64 hex digits; the cache makes a file name of them."""
    if not re.fullmatch(r"[0-9a-f]{64}", _text(value)):
        raise ValueError(f"a SHA-256, found {value!r}")
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
