"""Reading tar shards that may come from strangers: listed, checked, never unpacked.

Only the list of members is trusted to Python's tarfile; no name becomes a path on disk, no content
is unpickled or run, and a size that the file can't hold is an error.
"""

import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stages.data.images import SUFFIXES
from stages.errors import UserError

IMAGE_ENDINGS = frozenset(SUFFIXES.values()) | {suffix[1:] for suffix in SUFFIXES}
CLASS_ENDING = "cls"
BLOCK = 512
_MAX_NAME = 500
_END_BLOCKS = 2 * BLOCK


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a shard: its sample's key, the ending of its name, where its bytes are."""

    key: str
    ending: str
    offset: int
    n_bytes: int


def list_members(path: Path) -> list[Member]:
    """The members of a shard in order, every one checked.

    Raises:
        UserError: naming the shard: not a tar, cut short, or holding what has no place in a shard.
    """
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            members = [_checked(path, info, size) for info in tar]
            end = tar.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise _refused(path, f"can't be read as a tar ({error})") from error
    with path.open("rb") as file:
        file.seek(end)  # where tarfile stopped, be it at the end or at a header it can't read
        tail = file.read(_END_BLOCKS)
    if len(tail) < _END_BLOCKS or any(tail):
        raise _refused(path, f"is damaged or cut short: no end of the tar at byte {end}")
    return members


def _checked(path: Path, info: tarfile.TarInfo, size: int) -> Member:
    name = info.name
    if not info.isreg() or info.sparse is not None:
        raise _refused(path, f"holds {name!r}, which is no plain file")
    parts = PurePosixPath(name).parts
    if (
        not name.isprintable()
        or len(name) > _MAX_NAME
        or "\\" in name
        or PurePosixPath(name).is_absolute()
        or ".." in parts
        or not parts
    ):
        raise _refused(path, f"holds a member with the unsafe name {name[:_MAX_NAME]!r}")
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    if not dot or not stem or ending.lower() not in IMAGE_ENDINGS | {CLASS_ENDING}:
        raise _refused(path, f"holds {name!r}; only images and .cls have a place in it")
    if info.size < 0 or info.offset_data + info.size > size:
        raise _refused(path, f"is cut short: {name!r} should have {info.size} bytes")
    return Member(f"{folder}{slash}{stem}", ending.lower(), info.offset_data, info.size)


def _refused(path: Path, what: str) -> UserError:
    return UserError(
        f"shard {path} {what}.\n  Delete it and run the stage shard again, or fetch it again from "
        "where it came."
    )
