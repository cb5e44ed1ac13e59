"""Reading tar shards that may come from strangers: listed, checked, never unpacked.

Only the list of members is trusted to Python's tarfile; no name becomes a path on disk, no content
is unpickled or run, and a size that the file can't hold is an error. Tarfile reads headers whole,
so it gets them through a file that refuses one of a size no header has.
"""

import io
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stages.data.images import SUFFIXES
from stages.errors import UserError

# Whose readers run what the file says; in a stranger's shard they are refused, never passed over.
CODE_ENDINGS = frozenset({"pyd", "pickle", "pkl", "pth", "pt", "ckpt", "joblib", "dill", "py"})
IMAGE_ENDINGS = frozenset(SUFFIXES.values()) | {suffix[1:] for suffix in SUFFIXES}
CLASS_ENDING = "cls"
BLOCK = 512
_MAX_NAME = 500
_META = re.compile(r"__[^/]*__($|/)")
_END_BLOCKS = 2 * BLOCK
_MOST_HEADER_BYTES = 2**20  # of one name, or of all that PAX says of one member


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a shard: its sample's key, the ending of its name, where its bytes are."""

    key: str
    ending: str
    offset: int
    n_bytes: int


def list_members(path: Path, *, foreign: bool = False) -> list[Member]:
    """The members of a shard in order, every one checked.

    Args:
        path: the shard.
        foreign: someone else's WebDataset shard: folders and files without an ending or with a
            name in __underscores__ are left out as WebDataset does, and any other ending but
            CODE_ENDINGS may be in it.

    Raises:
        UserError: naming the shard: not a tar, cut short, or holding what has no place in a shard.
    """
    size = path.stat().st_size
    members = []
    try:
        with _Headers(io.FileIO(path)) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # ty: ignore[missing-attribute] - else a kilobyte of each stays
                if info.size < 0:
                    raise _refused(path, f"holds {info.name[:_MAX_NAME]!r} of {info.size} bytes")
                if not (foreign and _is_passed_over(info)):
                    members.append(_checked(path, info, size, foreign))
            end = tar.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise _refused(path, f"can't be read as a tar ({error})") from error
    with path.open("rb") as file:
        file.seek(end)  # where tarfile stopped, be it at the end or at a header it can't read
        tail = file.read(_END_BLOCKS)
    if len(tail) < _END_BLOCKS or any(tail):
        raise _refused(path, f"is damaged or cut short: no end of the tar at byte {end}")
    return members


class _Headers(io.BufferedReader):
    """A file of which nothing larger than a header is read."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes at byte {self.tell()}")
        return super().read(size)

    def seek(self, target: int, whence: int = os.SEEK_SET, /) -> int:
        if target < 0:
            raise tarfile.ReadError(f"a member that ends at byte {target}")
        return super().seek(target, whence)


def _is_passed_over(info: tarfile.TarInfo) -> bool:
    base = info.name.rpartition("/")[2]
    return info.isdir() or base[:1] in {".", ""} or "." not in base or bool(_META.match(info.name))


def _checked(path: Path, info: tarfile.TarInfo, size: int, foreign: bool) -> Member:
    name = info.name.removeprefix("./") if foreign else info.name
    if not info.isreg() or info.sparse is not None:
        raise _refused(path, f"holds {name!r}, which is no plain file")
    parts = PurePosixPath(name).parts
    if (
        not name.isprintable()
        or len(name) > _MAX_NAME
        or "\\" in name
        or name.lower().startswith("pipe:")  # which WebDataset's own readers run
        or PurePosixPath(name).is_absolute()
        or ".." in parts
        or not parts
    ):
        raise _refused(path, f"holds a member with the unsafe name {name[:_MAX_NAME]!r}")
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    last = ending.lower().rpartition(".")[2]
    if foreign and last in CODE_ENDINGS:
        raise _refused(path, f"holds {name!r}, a kind of file that can hold code")
    known = foreign or ending.lower() in IMAGE_ENDINGS | {CLASS_ENDING}
    if not dot or not stem or not known:
        raise _refused(path, f"holds {name!r}; only images and .cls have a place in it")
    if info.size < 0 or info.offset_data + info.size > size:
        raise _refused(path, f"is cut short: {name!r} should have {info.size} bytes")
    return Member(f"{folder}{slash}{stem}", ending.lower(), info.offset_data, info.size)


def _refused(path: Path, what: str) -> UserError:
    return UserError(
        f"shard {path} {what}.\n  Delete it and run the stage shard again, or fetch it again from "
        "where it came."
    )
