"""Writing tar shards in WebDataset's convention: KEY.png and KEY.cls side by side.

A shard is a unit of work of its own, is made under another name, and gets its own when it is whole.
The same pictures give the same bytes: no time, no user, one mode.
"""

import hashlib
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.data.examine import digest, read_bounded
from stages.data.sources import Picture
from stages.data.tar_reader import BLOCK, CLASS_ENDING, Member, list_members
from stages.errors import UserError

_RECORD = 20 * BLOCK  # tar files end on a multiple of this


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a shard: what to read, what it must contain, and its class (-1: none)."""

    picture: Picture
    bytes_digest: bytes
    class_number: int


@dataclass(frozen=True)
class ShardPlan:
    """A shard that is to be: its name, its samples, and a digest of all that decides its bytes."""

    name: str
    samples: Sequence[Sample]

    @property
    def digest(self) -> str:
        content = hashlib.sha256(b"1")  # the version of the layout
        for sample in self.samples:
            line = f"{sample.picture.key}\n{sample.picture.suffix}\n{sample.class_number}\n"
            content.update(line.encode() + sample.bytes_digest)
        return content.hexdigest()


@dataclass(frozen=True)
class WrittenShard:
    """A whole shard: what the index says of it, and where the image of each sample stands."""

    name: str
    path: Path
    n_bytes: int
    sha256: str
    images: Sequence[Member]


def plan_shards(split: str, samples: Sequence[Sample], images_per_shard: int) -> list[ShardPlan]:
    """Deal the samples of a split to shards, in their order."""
    starts = range(0, len(samples), images_per_shard)
    return [
        ShardPlan(f"{split}-{number:05d}.tar", samples[start : start + images_per_shard])
        for number, start in enumerate(starts)
    ]


def make_shard(plan: ShardPlan, workdir: Path) -> WrittenShard:
    """Write a shard into workdir, or take the whole one that an earlier run left there.

    The file's name holds the plan's digest, so a shard of other params or images is never taken.
    """
    path = workdir / f"{plan.name.removesuffix('.tar')}-{plan.digest[:32]}.tar"
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
    return WrittenShard(plan.name, path, path.stat().st_size, file_sha256(path), images)


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
