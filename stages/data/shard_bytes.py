"""The bytes of images, wherever their shards are: in the folder, or fetched into a cache."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from stages.data.cache import ShardCache, ShardsAt
from stages.data.index import ShardEntry, check_file, check_headers
from stages.data.member_table import MemberTable
from stages.errors import UserError

_MOST_OPEN = 256  # files; with more shards than that, each reading opens its own


class ShardBytes(Protocol):
    """The shards of a split, by number."""

    def read(self, number: int, offset: int, n_bytes: int) -> bytes: ...

    def name(self, number: int) -> str:
        """For messages."""
        ...

    def read_ahead(self, numbers: Iterable[int]) -> None:
        """These will be read soon."""
        ...

    def check_order(self, shards_at_once: int) -> None:
        """Whether images may be read at random out of so many shards.

        Raises:
            UserError: they would have to be fetched again and again.
        """
        ...


class LocalShards:
    """Shards in a folder of this machine."""

    def __init__(
        self, folder: Path, shards: Sequence[ShardEntry], table: MemberTable, digests: bool
    ) -> None:
        """Check every shard, and open them.

        Raises:
            UserError: missing, damaged, cut short or not what the table says.
        """
        self.paths = [folder / shard.name for shard in shards]
        for number, (path, shard) in enumerate(zip(self.paths, shards, strict=True)):
            check_file(path, shard.n_bytes, shard.sha256, digests)
            check_headers(path, table, number)
        kept = self.paths if len(shards) <= _MOST_OPEN else []
        self.files = [os.open(path, os.O_RDONLY) for path in kept]

    def __del__(self) -> None:
        for file in getattr(self, "files", []):
            os.close(file)

    def read(self, number: int, offset: int, n_bytes: int) -> bytes:
        if self.files:
            return os.pread(self.files[number], n_bytes, offset)
        file = os.open(self.paths[number], os.O_RDONLY)
        try:
            return os.pread(file, n_bytes, offset)
        finally:
            os.close(file)

    def name(self, number: int) -> str:
        return str(self.paths[number])

    def read_ahead(self, numbers: Iterable[int]) -> None:
        pass

    def check_order(self, shards_at_once: int) -> None:
        pass


class RemoteShards:
    """Shards at an address; each is checked when it comes."""

    def __init__(self, at: ShardsAt, shards: Sequence[ShardEntry], table: MemberTable) -> None:
        self.at, self.shards, self.table = at, shards, table
        self.cache = ShardCache(at)
        self.fitting: set[int] = set()

    def __del__(self) -> None:
        if hasattr(self, "cache"):
            self.cache.close()

    def read(self, number: int, offset: int, n_bytes: int) -> bytes:
        shard = self.shards[number]
        if number not in self.fitting:
            check_headers(self.cache.fetch(shard), self.table, number)
            self.fitting.add(number)
        return self.cache.read(shard, offset, n_bytes)

    def name(self, number: int) -> str:
        return f"{self.at.address}/{self.shards[number].name}"

    def read_ahead(self, numbers: Iterable[int]) -> None:
        self.cache.fetch_ahead(self.shards[number] for number in numbers)

    def check_order(self, shards_at_once: int) -> None:
        largest = sorted((shard.n_bytes for shard in self.shards), reverse=True)
        needed = sum(largest[:shards_at_once])
        if needed <= self.at.cache_bytes:
            return
        raise UserError(
            f"params.yaml: shuffling reads {min(shards_at_once, len(largest))} shards at a time, "
            f"{needed / 1e9:.3g} GB, more than runtime.cache_gigabytes "
            f"({self.at.cache_bytes / 1e9:.3g}) holds.\n"
            "  Raise it, or shuffle in smaller blocks: data.shuffle_shards counts shards."
        )
