"""Finished shards to an address and, elsewhere, from there: the index last, or nothing at all.

Shards and tables are named by what is in them and an object is seen only when it is whole, so one
of the right name and size is the right one, whoever put it there; nothing is ever overwritten but
the index. So who reads by an older index is not disturbed, and a run that was killed goes on.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stages.data.index import INDEX_NAME, MAX_INDEX_BYTES, Index, parse_index, read_index
from stages.data.index import read_members as read_members_of
from stages.data.install import install
from stages.data.remote import Remote
from stages.data.shards import ShardPlan, WrittenShard, make_shard
from stages.data.tar_reader import Member
from stages.errors import UserError
from stages.records import write_json


def make_published(plan: ShardPlan, workdir: Path, remote: Remote) -> WrittenShard:
    """Write a shard and put it to the address; it stays here only as long as that takes.

    Args:
        plan: of the shard.
        workdir: where a finished one may be already; the disk of a worker elsewhere has none.
        remote: the address.
    """
    with TemporaryDirectory(prefix="shard-") as folder:
        own = workdir if workdir.is_dir() else Path(folder)
        shard = make_shard(plan, own)
        path = own / f"{plan.digest}.tar"
        if remote.size(shard.name) != shard.n_bytes:
            remote.upload(path, shard.name)
        path.unlink()
    return shard


def write_receipt(workdir: Path, shard: WrittenShard) -> None:
    """Note a published shard, so that a run that is killed need not make it again."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(_receipt(workdir, shard.made_of), asdict(shard))


def already_published(
    plans: Iterable[ShardPlan], folder: Path, workdir: Path, remote: Remote
) -> dict[str, WrittenShard]:
    """Those of the plans whose shards are at the address, by the digest of the plan."""
    known = _in_index(folder)
    sizes = remote.sizes()
    found = {}
    for plan in plans:
        path = _receipt(workdir, plan.digest)
        shard = _from_receipt(path) if path.exists() else known.get(plan.digest)
        if shard is not None and sizes.get(shard.name) == shard.n_bytes:
            found[plan.digest] = shard
    return found


def publish_index(
    remote: Remote,
    tables: Mapping[str, bytes],
    content: Mapping[str, Any],
    quarantine: Sequence[tuple[str, str]],
) -> None:
    """Put tables, the list of what was left out and, last, the index to the address."""
    for name, table in tables.items():
        if remote.size(name) != len(table):
            remote.write(name, table)
    with TemporaryDirectory(prefix="index-") as folder:
        install({}, tables, content, quarantine, Path(folder))
        remote.upload(Path(folder) / "quarantine.csv", "quarantine.csv")
        remote.upload(Path(folder) / INDEX_NAME, INDEX_NAME)


def take_published(remote: Remote, folder: Path) -> dict[str, Any]:
    """Make the folder hold the index and the tables of an address, checked; no shard is fetched.

    Raises:
        UserError: no index there, or not one that can be used; the folder is as it was.
    """
    data = remote.read(INDEX_NAME, MAX_INDEX_BYTES)
    with TemporaryDirectory(prefix="index-") as staging:
        index = parse_index(Path(staging), data)
        tables = {}
        for name, split in index.splits.items():
            path = Path(staging) / split.members_name
            remote.download(split.members_name, split.members_bytes, split.members_sha256, path)
            read_members_of(index, name)
            tables[split.members_name] = path.read_bytes()
        quarantine = [
            (str(entry["key"]), str(entry["reason"])) for entry in index.content["quarantine"]
        ]
        install({}, tables, index.content, quarantine, folder)
    return index.content


def _in_index(folder: Path) -> dict[str, WrittenShard]:
    """The shards that the last index names, where the address was the same or holds them too."""
    try:
        index = read_index(folder)
        return {shard.made_of: shard for name in index.splits for shard in _written(index, name)}
    except UserError:
        return {}  # none yet, or one that can't be trusted


def _written(index: Index, split: str) -> Iterable[WrittenShard]:
    table = read_members_of(index, split)
    start = 0
    for shard in index.split(split).shards:
        stop = start + shard.images
        members = [
            Member(key, "", offset, n_bytes)
            for key, offset, n_bytes in zip(
                table.keys[start:stop],
                table.offset[start:stop].tolist(),
                table.n_bytes[start:stop].tolist(),
                strict=True,
            )
        ]
        yield WrittenShard(shard.name, shard.made_of, shard.n_bytes, shard.sha256, members)
        start = stop


def _receipt(workdir: Path, made_of: str) -> Path:
    return workdir / f"{made_of}.json"


def _from_receipt(path: Path) -> WrittenShard:
    noted = json.loads(path.read_text(encoding="utf-8"))
    images = [Member(**image) for image in noted.pop("images")]
    return WrittenShard(images=images, **noted)
