"""From a source to a folder of shards: split, examined, written, and the index last."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.data.duplicates import Copies, find_copies
from stages.data.engine import Engine
from stages.data.examine import Examined, check_quarantine, examine
from stages.data.hash_order import hash_ranks
from stages.data.index import FORMAT, fingerprint_of
from stages.data.install import install, take_over
from stages.data.member_table import MemberTable
from stages.data.near_duplicates import NearCopies, find_near_copies
from stages.data.publish import already_published, make_published, publish_index, write_receipt
from stages.data.remote import Remote
from stages.data.shards import Sample, ShardPlan, WrittenShard, make_shard, path_in, plan_shards
from stages.data.sources import SPLITS, Picture, Source, Split
from stages.data.splits import SplitSizes, assign_splits, check_splits


@dataclass(frozen=True)
class Wanted:
    """What decides the shards, beside the source.

    Attributes:
        sizes: of the splits.
        seed: of splits and order.
        channels: 1 or 3, to examine with; the bytes are kept as found.
        max_pixels: a larger picture is quarantined.
        images_per_shard: at most.
        quarantine_tolerance: share of images that may be unusable.
        drop_near_duplicates: leave near copies of held-out images out of training.
    """

    sizes: SplitSizes
    seed: int
    channels: int
    max_pixels: int
    images_per_shard: int
    quarantine_tolerance: float
    drop_near_duplicates: bool = False


def build_shards(
    source: Source,
    wanted: Wanted,
    folder: Path,
    workdir: Path,
    workers: int,
    tell: Callable[[str, int, int], None] = lambda *_: None,
    *,
    scheduler: str | None = None,
    remote: Remote | None = None,
) -> dict[str, Any]:
    """Make the folder of shards, or leave what was there when something is wrong.

    Args:
        source: the images.
        wanted: what decides the result; the same source and the same `wanted` give the same bytes.
        folder: replaced as a whole, its index last; shards in it that fit are taken over.
        workdir: finished shards wait here; those of a run that was killed are taken over.
        workers: processes of this machine.
        tell: called with what is being done, how many of it are done, and of how many.
        scheduler: of a Dask cluster that does the work instead.
        remote: where the shards are put; the folder then has the index and the tables only.

    Returns:
        The content of index.json.

    Raises:
        UserError: splits that can't be made, too many damaged images, images that change.
    """
    split_of = assign_splits(source, wanted.sizes, wanted.seed)
    used = [picture for picture in source.pictures if picture.key in split_of]
    engine = Engine(workers, scheduler)
    seen = _examine(used, wanted, engine, tell)
    damaged = [(key, found.problem) for key, found in seen.items() if found.problem]
    quarantine = sorted([*source.refused, *damaged])
    n_found = len(used) + len(source.refused)
    check_quarantine(quarantine, n_found, wanted.quarantine_tolerance)
    copies = find_copies(
        {key: found.pixels_digest for key, found in seen.items() if not found.problem},
        split_of,
        {picture.key: picture.class_name for picture in used},
    )
    out = {key for group in copies for key in group.dropped} | {key for key, _ in damaged}
    alike = find_near_copies(
        {key: found.look for key, found in seen.items() if key not in out},
        {key: found.pixels_digest for key, found in seen.items()},
        split_of,
        {picture.key: picture.class_name for picture in used},
        drop=wanted.drop_near_duplicates,
    )
    out |= {key for group in alike for key in group.dropped}
    pictures = [picture for picture in used if picture.key not in out]
    check_splits(source, split_of, pictures)
    samples = _samples(source, pictures, split_of, seen, wanted.seed)
    plans = {
        split: plan_shards(split, own, ranks, wanted.images_per_shard)
        for split, (own, ranks) in samples.items()
    }
    everything = [plan for split in SPLITS for plan in plans[split]]
    shards = {} if remote is None else already_published(everything, folder, workdir, remote)
    missing = [plan for plan in everything if plan.digest not in shards]
    taken = len(shards) + take_over(missing, folder, workdir)
    tell("shards taken over", taken, len(everything))
    for shard in _write(missing, workdir, engine, remote):
        shards[shard.made_of] = shard
        tell("shards ready", len(shards), len(everything))
    written = [
        _WrittenSplit(
            split,
            own := [shards[plan.digest] for plan in plans[split]],
            _member_table(own, samples[split][0], seen),
        )
        for split in SPLITS
    ]
    content = _index_content(source, written, quarantine, copies, alike, seen)
    tables = {split.table_name: split.table_bytes for split in written}
    tars = {}
    if remote is None:
        tars = {s.name: path_in(workdir, s.made_of) for split in written for s in split.shards}
    else:
        publish_index(remote, tables, content, quarantine)
    install(tars, tables, content, quarantine, folder)
    shutil.rmtree(workdir, ignore_errors=True)
    return content


def _examine(
    used: Sequence[Picture], wanted: Wanted, engine: Engine, tell: Callable[[str, int, int], None]
) -> dict[str, Examined]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        tell("images examined", done, len(used))

    found = examine(used, wanted.channels, wanted.max_pixels, engine, advance)
    return {picture.key: result for picture, result in zip(used, found, strict=True)}


@dataclass(frozen=True)
class _WrittenSplit:
    name: Split
    shards: Sequence[WrittenShard]
    table: MemberTable

    @cached_property
    def table_bytes(self) -> bytes:
        return self.table.to_bytes()

    @cached_property
    def table_sha256(self) -> str:
        return hashlib.sha256(self.table_bytes).hexdigest()

    @property
    def table_name(self) -> str:
        return f"members-{self.name}-{self.table_sha256[:8]}.npz"


def _samples(
    source: Source,
    pictures: Sequence[Picture],
    split_of: Mapping[str, Split],
    seen: Mapping[str, Examined],
    seed: int,
) -> dict[Split, tuple[list[Sample], NDArray[np.uint64]]]:
    """The samples of each split by the hash of their key: any run of them holds all classes.

    Returns:
        By split: N samples, and the hashes (N,), rising.
    """
    number_of = {name: number for number, name in enumerate(source.class_names)}
    ranks = hash_ranks([picture.key for picture in pictures], seed, "order in shards")
    samples: dict[Split, list[Sample]] = {split: [] for split in SPLITS}
    places: dict[Split, list[int]] = {split: [] for split in SPLITS}
    for place in np.argsort(ranks, kind="stable").tolist():
        p = pictures[place]
        sample = Sample(p, seen[p.key].bytes_digest, number_of.get(p.class_name or "", -1))
        samples[split_of[p.key]].append(sample)
        places[split_of[p.key]].append(place)
    return {split: (samples[split], ranks[places[split]]) for split in SPLITS}


def _write(
    plans: Sequence[ShardPlan], workdir: Path, engine: Engine, remote: Remote | None
) -> Iterator[WrittenShard]:
    """Write the shards of these plans; where they go to an address, note each that is there."""
    few = sum(len(plan.samples) for plan in plans) < 2000
    workdir.mkdir(parents=True, exist_ok=True)
    if remote is None:
        yield from engine.each(partial(make_shard, workdir=workdir.absolute()), plans, few=few)
        return
    make = partial(make_published, workdir=workdir.absolute(), remote=remote)
    for shard in engine.each(make, plans, few=few):
        write_receipt(workdir, shard)
        yield shard


def _member_table(
    shards: Sequence[WrittenShard], samples: Sequence[Sample], seen: Mapping[str, Examined]
) -> MemberTable:
    members = [member for shard in shards for member in shard.images]
    keys = [member.key for member in members]
    if keys != [sample.picture.key for sample in samples]:
        raise ValueError("shards do not hold the images they were planned with")
    found = [seen[key] for key in keys]
    return MemberTable(
        keys=keys,
        shard=np.repeat(
            np.arange(len(shards), dtype=np.int32), [len(shard.images) for shard in shards]
        ),
        offset=np.array([member.offset for member in members], dtype=np.int64),
        n_bytes=np.array([member.n_bytes for member in members], dtype=np.int64),
        class_number=np.array([sample.class_number for sample in samples], dtype=np.int32),
        height=np.array([image.height for image in found], dtype=np.int32),
        width=np.array([image.width for image in found], dtype=np.int32),
        content=np.frombuffer(b"".join(i.pixels_digest[:8] for i in found), dtype="<u8"),
    )


def _index_content(
    source: Source,
    written: Sequence[_WrittenSplit],
    quarantine: Sequence[tuple[str, str]],
    copies: Sequence[Copies],
    alike: Sequence[NearCopies],
    seen: Mapping[str, Examined],
) -> dict[str, Any]:
    content: dict[str, Any] = {
        "format": FORMAT,
        "class_names": list(source.class_names),
        "splits": {split.name: _split_content(split, len(source.class_names)) for split in written},
        "statistics": _statistics([seen[key] for key in written[0].table.keys]),
        "quarantine": [{"key": key, "reason": reason} for key, reason in quarantine],
        "duplicates": [group.as_record() for group in copies],
        "near_duplicates": [group.as_record() for group in alike],
        "notes": source.notes,
    }
    return {"fingerprint": fingerprint_of(content), **content}


def _split_content(split: _WrittenSplit, n_classes: int) -> dict[str, Any]:
    table = split.table
    labelled = table.class_number[table.class_number >= 0]
    return {
        "images": len(table.keys),
        "labelled": len(labelled),
        "per_class": np.bincount(labelled, minlength=n_classes).tolist(),
        "height": [int(table.height.min()), int(table.height.max())],
        "width": [int(table.width.min()), int(table.width.max())],
        "members": {
            "name": split.table_name,
            "bytes": len(split.table_bytes),
            "sha256": split.table_sha256,
        },
        "shards": [
            {
                "name": shard.name,
                "images": len(shard.images),
                "bytes": shard.n_bytes,
                "sha256": shard.sha256,
                "made_of": shard.made_of,
            }
            for shard in split.shards
        ],
    }


def _statistics(images: Sequence[Examined]) -> dict[str, Any]:
    """Mean and deviation of each channel over the pixels of all training images, in 0..1."""
    n_pixels = sum(image.height * image.width for image in images)
    means = [sum(values) / n_pixels for values in zip(*(i.sums for i in images), strict=True)]
    squares = [sum(values) / n_pixels for values in zip(*(i.squares for i in images), strict=True)]
    deviations = [
        max(square - mean**2, 0.0) ** 0.5 for mean, square in zip(means, squares, strict=True)
    ]
    return {
        "mean": [round(mean / 255, 6) for mean in means],
        "std": [round(deviation / 255, 6) for deviation in deviations],
    }
