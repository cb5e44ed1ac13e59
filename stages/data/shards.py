"""Writing tar shards in WebDataset's convention: KEY.png and KEY.cls side by side.

A shard is a unit of work of its own, is made under another name, and gets its own when it is whole.
The same pictures give the same bytes: no time, no user, one mode.

Which shard an image goes to is decided by the hash of its key: a shard is a range of hashes, cut in
halves for as long as more images than allowed fall into it. So an image that joins later changes
the one shard it falls into (or makes two of it), and leaves the bytes and the names of all others.
Shapes: N images of a split.
"""

import hashlib
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.data.examine import digest, read_bounded
from stages.data.sources import Picture
from stages.data.tar_reader import BLOCK, CLASS_ENDING, Member, list_members
from stages.errors import UserError

_RECORD = 20 * BLOCK  # tar files end on a multiple of this
_HASH_BITS = 64


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a shard: what to read, what it must contain, and its class (-1: none)."""

    picture: Picture
    bytes_digest: bytes
    class_number: int


@dataclass(frozen=True)
class ShardPlan:
    """A shard that is to be.

    Attributes:
        stem: split and first hash of its range, in 5 hexadecimal digits.
        samples: by hash.
    """

    stem: str
    samples: Sequence[Sample]

    @cached_property
    def digest(self) -> str:
        """Of all that decides its bytes."""
        content = hashlib.sha256(b"1")  # the version of the layout
        for sample in self.samples:
            line = f"{sample.picture.key}\n{sample.picture.suffix}\n{sample.class_number}\n"
            content.update(line.encode() + sample.bytes_digest)
        return content.hexdigest()

    @property
    def name(self) -> str:
        """Of the file: never used again for other content, so a copy elsewhere is never stale."""
        return f"{self.stem}-{self.digest[:16]}.tar"


@dataclass(frozen=True)
class WrittenShard:
    """A whole shard: what the index says of it, and where the image of each sample stands.

    Attributes:
        name: of the file.
        made_of: the digest of its plan.
        n_bytes: of the file.
        sha256: of the file.
        images: the members that are images, in order.
    """

    name: str
    made_of: str
    n_bytes: int
    sha256: str
    images: Sequence[Member]


def plan_shards(
    split: str, samples: Sequence[Sample], ranks_N: NDArray[np.uint64], images_per_shard: int
) -> list[ShardPlan]:
    """Deal the samples of a split to shards of at most images_per_shard.

    Args:
        split: begins the names.
        samples: N samples in the order of their ranks.
        ranks_N: 64-bit hashes of their keys, rising.
        images_per_shard: more only where hashes are the same in all bits.
    """
    return [
        ShardPlan(f"{split}-{first >> (_HASH_BITS - 20):05x}", samples[start:stop])
        for first, start, stop in _ranges(ranks_N, images_per_shard, 0, 0, 0, len(samples))
    ]


def _ranges(
    ranks_N: NDArray[np.uint64], most: int, first: int, depth: int, start: int, stop: int
) -> Iterator[tuple[int, int, int]]:
    """(first hash, start, stop) of each range: halves of halves, none empty."""
    if start == stop:
        return
    if stop - start <= most or depth == _HASH_BITS:
        yield first, start, stop
        return
    half = first | 1 << (_HASH_BITS - 1 - depth)
    middle = start + int(np.searchsorted(ranks_N[start:stop], np.uint64(half)))
    yield from _ranges(ranks_N, most, first, depth + 1, start, middle)
    yield from _ranges(ranks_N, most, half, depth + 1, middle, stop)


def path_in(workdir: Path, made_of: str) -> Path:
    """Where a finished shard waits: under the digest of its plan, so no other is taken for it."""
    return workdir / f"{made_of}.tar"


def make_shard(plan: ShardPlan, workdir: Path) -> WrittenShard:
    """Write a shard into workdir, or take the whole one that is there already."""
    path = path_in(workdir, plan.digest)
    if not path.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("wb") as file:
            for block in _tar_blocks(plan.samples):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    images = [member for member in list_members(path) if member.ending != CLASS_ENDING]
    return WrittenShard(plan.name, plan.digest, path.stat().st_size, file_sha256(path), images)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tar_blocks(samples: Iterable[Sample]) -> Iterator[bytes]:
    n_bytes = 0
    for sample in samples:
        for block in _sample_blocks(sample):
            n_bytes += len(block)
            yield block
    yield bytes(2 * BLOCK + -(n_bytes + 2 * BLOCK) % _RECORD)


def _sample_blocks(sample: Sample) -> Iterator[bytes]:
    picture = sample.picture
    data = read_bounded(picture)
    if digest(data) != sample.bytes_digest:
        raise UserError(
            f"the image {picture.key} changed while the shards were written.\n"
            "  Leave the images alone while the stage shard runs, and run it again."
        )
    yield from _file_blocks(f"{picture.key}.{picture.suffix}", data)
    if sample.class_number >= 0:
        yield from _file_blocks(f"{picture.key}.{CLASS_ENDING}", str(sample.class_number).encode())


def _file_blocks(name: str, data: bytes) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)  # mtime 0, uid and gid 0, mode 0644
    info.size = len(data)
    yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
    yield data
    yield bytes(-len(data) % BLOCK)
