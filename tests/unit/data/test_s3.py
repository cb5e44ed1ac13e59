"""Shards in a bucket, against a real server: put there, read through a small cache, and trouble."""

import fcntl
import hashlib
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.data import remote as remotes
from stages.data.build import Wanted, build_shards
from stages.data.cache import ShardCache, ShardsAt
from stages.data.fetch import fetch_shards
from stages.data.folders import read_class_folders
from stages.data.images import encode_png
from stages.data.index import ShardEntry, fingerprint_of, read_index
from stages.data.publish import take_published
from stages.data.reading import read_source
from stages.data.remote import Remote
from stages.data.splits import SplitSizes
from stages.data.store import ImageStore
from stages.data.webdataset_source import read_webdataset
from stages.errors import Interrupted, UserError
from stages.params import load_params

WANTED = Wanted(SplitSizes(6, 0.2), 0, 1, 10_000, 10, 0.0)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Remote.__init__, "__defaults__", ((0.05, 0.1, 0.2),))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "unlabelled"):
        (root / name).mkdir()
        for number in range(24):
            pixels = rng.integers(0, 256, (24, 24), dtype=np.uint8)
            (root / name / f"{number:02d}.png").write_bytes(encode_png(pixels))
    return root


@pytest.fixture(scope="module")
def local(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards as they are without a bucket."""
    folder = tmp_path_factory.mktemp("local")
    build_shards(read_class_folders(pictures), WANTED, folder / "s", folder / "w", workers=1)
    return folder / "s"


def publish(pictures: Path, folder: Path, address: str, told: dict[str, Any] | None = None) -> dict:
    told = {} if told is None else told
    return build_shards(
        read_class_folders(pictures),
        WANTED,
        folder / "shards",
        folder / "work",
        1,
        lambda phase, done, total: told.update({phase: (done, total)}),
        remote=Remote(address),
    )


@pytest.fixture
def published(pictures: Path, bucket: str, tmp_path: Path) -> Path:
    """A folder with the index of shards that are in the bucket."""
    publish(pictures, tmp_path, bucket)
    return tmp_path / "shards"


def size_of_shards(folder: Path) -> int:
    return sum(shard.n_bytes for shard in read_index(folder).split("train").shards)


def open_train(folder: Path, at: ShardsAt | None, **options: Any) -> ImageStore:
    return ImageStore.open(
        folder, "train", with_labels=True, channels=1, max_pixels=10_000, at=at, **options
    )


def in_cache(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def bytes_in(folder: Path) -> int:
    """Of whole shards in a cache at one moment, in which none comes or makes room."""
    with (folder / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return sum(path.stat().st_size for path in in_cache(folder))


def first_shard(folder: Path) -> ShardEntry:
    return read_index(folder).split("train").shards[0]


def test_a_bucket_holds_the_same_bytes_as_a_folder(
    published: Path, local: Path, bucket: str, wire: Any
):
    here = {path.name: path.read_bytes() for path in local.iterdir()}
    remote = Remote(bucket)
    assert remote.sizes() == {name: len(data) for name, data in here.items()}
    name, before = "index.json", remote.marks()
    assert set(before) == set(here)
    assert remote.marks([name, "absent"]) == {name: before[name]}
    remote.write(name, here[name].swapcase())  # as many bytes
    assert remote.marks()[name] != before[name]
    remote.write(name, here[name])
    for name, data in here.items():
        assert remote.read(name, 10**6) == data
    without_tars = {name: data for name, data in here.items() if not name.endswith(".tar")}
    assert {path.name: path.read_bytes() for path in published.iterdir()} == without_tars


def test_images_and_order_are_those_of_local_shards(
    published: Path, local: Path, bucket: str, tmp_path: Path
):
    at = ShardsAt(bucket, tmp_path / "cache", 10**9)
    for options in ({}, {"shuffle_shards": 2}):
        there, here = open_train(published, at, **options), open_train(local, None, **options)
        assert list(there.keys) == list(here.keys)
        assert there.fingerprint == here.fingerprint
        order, expected = there.order(5), here.order(5)
        for step in range(2 * order.steps_per_epoch(16)):
            there.read_ahead(order.shards_ahead(step, 16))
            epoch, positions = order.global_batch(step, 16)
            assert (epoch, positions.tolist()) == (
                expected.global_batch(step, 16)[0],
                expected.global_batch(step, 16)[1].tolist(),
            )
            assert torch.equal(there.images(positions), here.images(positions))
            assert torch.equal(there.class_tensor(positions), here.class_tensor(positions))


def test_a_cache_smaller_than_the_data_is_never_overfilled(
    published: Path, local: Path, bucket: str, tmp_path: Path
):
    n_bytes = size_of_shards(published) * 2 // 3
    at = ShardsAt(bucket, tmp_path / "cache", n_bytes)
    there = open_train(published, at, shuffle_shards=2, cache_bytes=0)
    here = open_train(local, None, shuffle_shards=2, cache_bytes=0)
    order = there.order(0)
    for step in range(3 * order.steps_per_epoch(8)):
        there.read_ahead(order.shards_ahead(step, 8))
        _, positions = order.global_batch(step, 8)
        assert torch.equal(there.images(positions), here.images(positions))
        assert bytes_in(tmp_path / "cache") <= n_bytes
    with pytest.raises(UserError, match=r"more than runtime.cache_gigabytes.*\n.*shuffle_shards"):
        open_train(published, at).order(0)


def test_what_was_not_used_for_longest_makes_room_and_other_files_never_do(
    published: Path, bucket: str, tmp_path: Path
):
    shards = read_index(published).split("train").shards[:3]
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/somebodys.tar").write_bytes(bytes(10**6))
    cache = ShardCache(
        ShardsAt(bucket, tmp_path / "cache", sum(shard.n_bytes for shard in shards) - 1)
    )
    for shard in (shards[0], shards[1], shards[0], shards[2]):
        cache.read(shard, 0, 512)
    kept = {path.stem for path in in_cache(tmp_path / "cache")}
    assert kept == {shards[0].sha256, shards[2].sha256, "somebodys"}
    cache.fetch_ahead([shards[1]])  # it was here, and is fetched again all the same
    deadline = time.monotonic() + 30
    while not cache.path_of(shards[1]).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_cache_with_no_room_for_one_shard_says_what_to_raise(
    published: Path, bucket: str, tmp_path: Path
):
    cache = ShardCache(ShardsAt(bucket, tmp_path / "cache", 1000), room_seconds=0.0)
    with pytest.raises(UserError, match=r"no room for a shard.*\n.*runtime.cache_gigabytes"):
        cache.read(first_shard(published), 0, 512)


def test_many_readers_share_a_cache(published: Path, local: Path, bucket: str, tmp_path: Path):
    at = ShardsAt(bucket, tmp_path / "cache", size_of_shards(published) // 2)
    expected = open_train(local, None, cache_bytes=0)
    everything = np.arange(expected.n_images)
    found: list[bool] = []

    def look() -> None:
        store = open_train(published, at, cache_bytes=0)
        found.append(torch.equal(store.images(everything), expected.images(everything)))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4


READER = """
import hashlib, random, sys
from pathlib import Path
from stages.data.cache import ShardCache, ShardsAt
from stages.data.index import read_index
folder, cache, address, n_bytes, seed = sys.argv[1:]
shards = ShardCache(ShardsAt(address, Path(cache), int(n_bytes)))
random.seed(seed)
for _ in range(60):
    shard = random.choice(read_index(Path(folder)).split("train").shards)
    shards.fetch_ahead([shard])
    data = shards.read(shard, 0, shard.n_bytes)
    assert hashlib.sha256(data).hexdigest() == shard.sha256
"""


@pytest.mark.equality
def test_processes_share_a_cache_and_one_that_is_killed_harms_none(
    published: Path, bucket: str, tmp_path: Path
):
    n_bytes = size_of_shards(published) // 2
    root = Path(__file__).resolve().parents[3]
    readers = [
        subprocess.Popen(
            [
                *(sys.executable, "-c", READER, published, tmp_path / "cache", bucket),
                *(str(n_bytes), str(seed)),
            ],
            cwd=root,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(4)
    ]
    killed = readers.pop()
    most = 0
    while any(reader.poll() is None for reader in readers):
        found = in_cache(tmp_path / "cache")
        if len(found) > 2:
            killed.kill()
        if found:
            most = max(most, bytes_in(tmp_path / "cache"))
        time.sleep(0.01)
    killed.communicate()
    for reader in readers:
        _, problems = reader.communicate()
        assert reader.returncode == 0, problems
    assert 0 < most <= n_bytes


def test_an_object_that_is_not_what_the_index_says_is_refused(
    published: Path, bucket: str, tmp_path: Path
):
    shard = first_shard(published)
    remote = Remote(bucket)
    damaged = bytearray(remote.read(shard.name, 10**6))
    damaged[700] ^= 1
    remote.write(shard.name, bytes(damaged))
    cache = ShardCache(ShardsAt(bucket, tmp_path / "cache", 10**9))
    with pytest.raises(UserError, match=rf"{shard.name} is not what the index says: its SHA-256"):
        cache.read(shard, 0, 512)
    remote.write(shard.name, bytes(damaged[:-512]))
    with pytest.raises(UserError, match="not of the size that the index names"):
        cache.read(shard, 0, 512)
    assert in_cache(tmp_path / "cache") == []


def test_a_table_that_does_not_fit_what_arrives_is_refused(
    published: Path, bucket: str, tmp_path: Path
):
    entry = replace(first_shard(published), name="other.tar")
    data = bytes(entry.n_bytes)  # an empty tar, and an index that was made to fit it
    Remote(bucket).write("other.tar", data)
    entry = replace(entry, n_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    store = open_train(published, ShardsAt(bucket, tmp_path / "cache", 10**9))
    shards: Any = store._reader.shards
    shards.shards = [entry, *shards.shards[1:]]
    with pytest.raises(UserError, match="a member table that does not fit"):
        store.images(np.array([0]))


def test_a_file_that_went_bad_in_the_cache_is_fetched_again(
    published: Path, bucket: str, tmp_path: Path
):
    shard = first_shard(published)
    at = ShardsAt(bucket, tmp_path / "cache", 10**9)
    good = ShardCache(at).read(shard, 0, shard.n_bytes)
    path = tmp_path / f"cache/{shard.sha256}.tar"
    path.write_bytes(bytes(len(good)))
    assert ShardCache(at).read(shard, 0, shard.n_bytes) == good


def test_an_object_that_is_gone_is_named(published: Path, bucket: str, tmp_path: Path):
    shard = replace(first_shard(published), name="train-00000-0000000000000000.tar")
    with pytest.raises(UserError, match=f"lacks {shard.name}, which the index names"):
        ShardCache(ShardsAt(bucket, tmp_path / "cache", 10**9)).read(shard, 0, 512)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(remotes, "PART_BYTES", 2000)
    return 2000


@pytest.mark.usefixtures("small_parts")
def test_a_network_that_comes_back_is_not_noticed(
    published: Path, bucket: str, tmp_path: Path, wire: Any
):
    shard = first_shard(published)
    wire.left, wire.passed = shard.n_bytes // 2, 0
    threading.Timer(0.12, wire.mend).start()
    data = ShardCache(ShardsAt(bucket, tmp_path / "cache", 10**9)).read(shard, 0, shard.n_bytes)
    assert hashlib.sha256(data).hexdigest() == shard.sha256
    assert wire.left is None


@pytest.mark.usefixtures("small_parts")
def test_a_network_that_dies_leaves_what_came_and_the_same_command_goes_on(
    published: Path, bucket: str, tmp_path: Path, wire: Any
):
    shard = first_shard(published)
    at = ShardsAt(bucket, tmp_path / "cache", 10**9)
    wire.left = shard.n_bytes // 2  # with headers, some parts
    with pytest.raises(Interrupted, match=r"can't be reached .* tried 4 times in \d+ seconds.\n.*"):
        ShardCache(at).read(shard, 0, shard.n_bytes)
    (partial,) = (tmp_path / "cache").glob("*.partial")
    kept = partial.stat().st_size
    assert 2000 <= kept < shard.n_bytes
    assert in_cache(tmp_path / "cache") == []
    wire.mend()
    wire.passed = 0
    ShardCache(at).read(shard, 0, 512)
    n_parts = -(-(shard.n_bytes - kept) // 2000)
    assert wire.passed < (shard.n_bytes - kept) + n_parts * 1000  # the rest, and its headers
    assert in_cache(tmp_path / "cache")[0].stat().st_size == shard.n_bytes


def test_a_stage_that_loses_the_network_goes_on_at_the_first_missing_shard(
    pictures: Path, local: Path, bucket: str, tmp_path: Path, wire: Any, monkeypatch: Any
):
    uploaded: list[str] = []
    original = Remote.upload

    def upload(self: Remote, path: Path, name: str) -> None:
        if len(uploaded) == 4:
            wire.left = 0  # cut in the middle of the run
            wire._break()
        original(self, path, name)
        uploaded.append(name)

    monkeypatch.setattr(Remote, "upload", upload)
    with pytest.raises(Interrupted, match="can't be reached"):
        publish(pictures, tmp_path, bucket)
    wire.mend()
    with pytest.raises(UserError, match=r"has no index.json"):
        take_published(Remote(bucket), tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()
    monkeypatch.setattr(Remote, "upload", original)
    told: dict[str, Any] = {}
    content = publish(pictures, tmp_path, bucket, told)
    assert told["shards taken over"][0] == 5  # four are there, one was made and not sent
    assert content["fingerprint"] == read_index(local).fingerprint
    again: dict[str, Any] = {}
    publish(pictures, tmp_path, bucket, again)
    assert again["shards taken over"] == (told["shards ready"][1],) * 2
    assert "shards ready" not in again


def test_elsewhere_the_index_is_enough(published: Path, bucket: str, tmp_path: Path):
    content = take_published(Remote(bucket), tmp_path / "elsewhere")
    assert content["fingerprint"] == read_index(published).fingerprint
    assert {path.name: path.read_bytes() for path in (tmp_path / "elsewhere").iterdir()} == {
        path.name: path.read_bytes() for path in published.iterdir()
    }


def test_an_index_in_a_bucket_that_lies_changes_nothing_here(
    published: Path, bucket: str, tmp_path: Path
):
    content = dict(read_index(published).content)
    content["splits"] = {**content["splits"], "train": {**content["splits"]["train"]}}
    content["splits"]["train"]["members"] = {
        **content["splits"]["train"]["members"],
        "name": "../../outside.npz",
    }
    content["fingerprint"] = fingerprint_of(content)
    import json

    Remote(bucket).write("index.json", json.dumps(content).encode())
    before = {path.name: path.read_bytes() for path in published.iterdir()}
    with pytest.raises(UserError, match="lacks or garbles"):
        take_published(Remote(bucket), published)
    assert {path.name: path.read_bytes() for path in published.iterdir()} == before


@pytest.fixture
def forbidding(wire: Any, s3_server: str) -> Iterator[None]:
    """From here on the server asks for permissions, and nobody has any."""

    def ask(count: str) -> None:
        request = urllib.request.Request(
            f"{s3_server}/moto-api/reset-auth", count.encode(), {"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(request).close()

    ask("0")
    yield
    ask("inf")


def test_a_bucket_without_permission_says_so(
    published: Path, bucket: str, tmp_path: Path, forbidding: None
):
    at = ShardsAt(bucket, tmp_path / "cache", 10**9)
    for act, what in (
        (lambda: ShardCache(at).read(first_shard(published), 0, 512), "read"),
        (lambda: Remote(bucket).write("x", b"1"), "write"),
        (lambda: Remote(bucket).sizes(), "list"),
    ):
        with pytest.raises(UserError, match=rf"no permission to {what} s3://.*\n.*credentials"):
            act()


def test_a_bucket_that_is_not_there_says_so(wire: Any):
    with pytest.raises(UserError, match="its bucket is not there"):
        Remote("s3://nowhere/shards").write("x", b"1")
    for name in ("x", "No_Bucket"):
        with pytest.raises(UserError, match=r"Mend the address in params.yaml|is not there"):
            Remote(f"s3://{name}/shards").write("x", b"1")
    with pytest.raises(UserError, match=r"s3://nowhere/shards has no index.json"):
        take_published(Remote("s3://nowhere/shards"), Path("unused"))


def test_images_that_join_later_upload_only_the_shards_they_fall_into(
    pictures: Path, published: Path, bucket: str, tmp_path: Path
):
    more = Path(shutil.copytree(pictures, tmp_path / "more"))
    (more / "unlabelled/new.png").write_bytes(encode_png(np.zeros((24, 24), np.uint8)))
    before = set(Remote(bucket).sizes())
    told: dict[str, Any] = {}
    publish(more, tmp_path, bucket, told)
    taken, planned = told["shards taken over"]
    assert planned - taken in {1, 2}
    new = {name for name in set(Remote(bucket).sizes()) - before if name.endswith(".tar")}
    assert len(new) == planned - taken


def test_someones_shards_in_a_bucket_are_a_source(
    local: Path, wire: Any, bucket: str, tmp_path: Path
):
    remote = Remote("s3://pictures/theirs")
    tars = {path.name: path for path in local.glob("*.tar")}
    for name, path in tars.items():
        remote.upload(path, name)
    remote.write("readme.txt", b"not a shard")
    folder = fetch_shards(remote, (), tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: path.read_bytes() for name, path in tars.items()
    }
    source = read_webdataset(folder, (), "label")
    assert len(source.pictures) == 72
    wire.passed = 0
    fetch_shards(remote, (), tmp_path)
    assert wire.passed < 20_000  # the list, and no shard again
    (name, *_) = sorted(tars)
    path = folder / name
    path.with_name(f"{name}.partial").write_bytes(path.read_bytes()[:5000])
    path.unlink()
    fetch_shards(remote, (), tmp_path)
    assert path.read_bytes() == tars[name].read_bytes()
    assert [found.name for found in fetch_shards(remote, [name], tmp_path).iterdir()] == [name]
    with pytest.raises(UserError, match=r"has no gone.tar, which data.shards names"):
        fetch_shards(remote, ["gone.tar"], tmp_path)
    with pytest.raises(UserError, match=r"lists no .tar file"):
        fetch_shards(Remote("s3://pictures/nothing"), (), tmp_path)


def test_a_folder_of_pictures_at_an_address_is_no_source():
    params = load_params(Path(__file__).resolve().parents[3] / "params.yaml").data
    there = params.model_copy(update={"source": "folder", "root": "s3://pictures/x"})
    with pytest.raises(UserError, match=r"s3://pictures/x is no folder of this disk"):
        read_source(there)
