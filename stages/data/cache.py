"""Remote shards on this machine's disk: fetched when needed or a little before, never too many.

A file of the folder is named by its SHA-256 and appears when it is whole and right, so processes,
runs and data sets can share a folder. What was not used for longest makes room for what comes; a
file that is being fetched is locked and counts with its whole size. A shard is opened for each
reading, so one that makes room takes no disk a moment later.
"""

import fcntl
import os
import re
import time
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from stages.data.index import ShardEntry
from stages.data.remote import Remote
from stages.data.shards import file_sha256
from stages.errors import UserError

FETCHERS = 4  # shards that are fetched ahead at a time
ROOM_SECONDS = 60.0  # to wait for what others are fetching to be done

_OURS = re.compile(r"[0-9a-f]{64}\.(tar|(\d+)\.partial)")


@dataclass(frozen=True)
class ShardsAt:
    """Where the shards of a folder are, when they are not in it.

    Attributes:
        address: s3://, gs:// or http(s)://.
        cache: folder for what was fetched.
        cache_bytes: that it may hold.
    """

    address: str
    cache: Path
    cache_bytes: int


class ShardCache:
    """The shards of an address, read through a bounded folder."""

    def __init__(self, at: ShardsAt, room_seconds: float = ROOM_SECONDS) -> None:
        self.remote = Remote(at.address)
        self.folder, self.max_bytes = at.cache, at.cache_bytes
        self.room_seconds = room_seconds
        self.folder.mkdir(parents=True, exist_ok=True)
        self._checked: set[str] = set()  # by this process
        self._coming: dict[str, Future[None]] = {}
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(FETCHERS, thread_name_prefix="fetch")

    def path_of(self, shard: ShardEntry) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    def read(self, shard: ShardEntry, offset: int, n_bytes: int) -> bytes:
        """Bytes of a shard, which is fetched first where it is not there.

        Raises:
            UserError: not there, not what the index says, or no room for it.
            Interrupted: the network failed.
        """
        path = self.path_of(shard)
        while True:
            if shard.sha256 not in self._checked:
                self.fetch(shard)
            try:
                file = os.open(path, os.O_RDONLY)
            except FileNotFoundError:  # it made room for another
                self._checked.discard(shard.sha256)
                continue
            try:
                now = time.time_ns()
                os.utime(file, ns=(now, now))  # last used
                return os.pread(file, n_bytes, offset)
            finally:
                os.close(file)

    def fetch(self, shard: ShardEntry) -> Path:
        """Make sure that a shard is there, whole and right."""
        with self._lock:
            coming = self._coming.pop(shard.sha256, None)
        if coming is not None and not coming.cancel():
            wait([coming])  # its errors come again below
        self._make_sure_of(shard, self.room_seconds)
        return self.path_of(shard)

    def fetch_ahead(self, shards: Iterable[ShardEntry]) -> None:
        """Begin to fetch what is not there, as far as there is room."""
        with self._lock:
            for shard in shards:
                coming = self._coming.get(shard.sha256)
                is_there = shard.sha256 in self._checked and self.path_of(shard).exists()
                if is_there or (coming is not None and not coming.done()):
                    continue
                self._coming[shard.sha256] = self._pool.submit(self._make_sure_of, shard, 0.0)

    def close(self) -> None:
        """Give up what was to be fetched ahead."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _make_sure_of(self, shard: ShardEntry, room_seconds: float) -> None:
        path = self.path_of(shard)
        partial = path.with_name(f"{shard.sha256}.{shard.n_bytes}.partial")
        while not self._is_there(path, shard):
            self._checked.discard(shard.sha256)
            held = self._reserve(partial, shard.n_bytes, room_seconds)
            if held is None:
                _wait_until_free(partial)
                continue
            with held:
                if path.exists():
                    partial.unlink()
                    continue
                self.remote.download(shard.name, shard.n_bytes, shard.sha256, partial)
                with self._counting():  # seen by whoever makes room under one name, not under none
                    partial.replace(path)
                break
        self._checked.add(shard.sha256)

    def _is_there(self, path: Path, shard: ShardEntry) -> bool:
        """Whether a file is there and right, looked at once; a wrong one is removed."""
        if shard.sha256 in self._checked:
            return path.exists()
        with suppress(FileNotFoundError):
            if path.stat().st_size == shard.n_bytes and file_sha256(path) == shard.sha256:
                return True
            path.unlink()
        return False

    def _reserve(self, partial: Path, n_bytes: int, seconds: float) -> BinaryIO | None:
        """Make room for a file that is to come, and hold its locked partial file.

        Returns:
            The file, to be closed; None while another thread or process is fetching it.

        Raises:
            UserError: there was no room in time.
        """
        deadline = time.monotonic() + seconds
        while True:
            with self._counting():
                if self._made_room(partial, n_bytes):
                    # Locked before anyone else may look for room: what is not counts as left over.
                    return _locked(partial)
            if time.monotonic() >= deadline:
                raise UserError(
                    f"the cache {self.folder} ({self.max_bytes / 1e9:.3g} GB) has no room for a "
                    f"shard of {n_bytes / 1e9:.3g} GB beside those that are being fetched.\n"
                    "  Raise runtime.cache_gigabytes in params.yaml."
                )
            time.sleep(0.05)

    @contextmanager
    def _counting(self) -> Generator[None]:
        """Alone with the folder's names, among all processes."""
        with (self.folder / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _made_room(self, partial: Path, n_bytes: int) -> bool:
        sizes = {
            file: _reserved(file)
            for file in self.folder.iterdir()
            if file != partial and _OURS.fullmatch(file.name)
        }
        excess = sum(sizes.values()) + n_bytes - self.max_bytes
        for file in sorted(sizes, key=_last_used):
            if excess <= 0:
                break
            if _remove_unless_coming(file):
                excess -= sizes[file]
        return excess <= 0


def _locked(partial: Path) -> BinaryIO | None:
    """The file of that name, locked; None where another holds it or it was renamed just now."""
    file = partial.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    if not _is_still_at(file, partial):
        file.close()
        return None
    return file


def _wait_until_free(partial: Path) -> None:
    with suppress(FileNotFoundError), partial.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)


def _is_still_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is the one of that name; it may have been renamed or removed."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _reserved(file: Path) -> int:
    """The size that a file has or, while it is fetched, will have."""
    found = _OURS.fullmatch(file.name)
    if found and found[2]:
        return int(found[2])
    with suppress(FileNotFoundError):  # just now
        return file.stat().st_size
    return 0


def _last_used(file: Path) -> int:
    with suppress(FileNotFoundError):
        return file.stat().st_mtime_ns
    return 0


def _remove_unless_coming(file: Path) -> bool:
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
