"""The stage's units of work on a Dask cluster of two processes of this machine."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.data.build import Wanted, build_shards
from stages.data.engine import Engine
from stages.data.folders import read_class_folders
from stages.data.images import encode_png
from stages.data.remote import Remote
from stages.data.splits import SplitSizes
from stages.errors import Interrupted, UserError

WANTED = Wanted(SplitSizes(20, 0.2), 0, 1, 10_000, 15, 0.1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for number in range(150):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            (root / name / f"{number}.png").write_bytes(encode_png(pixels))
    (root / "cat/damaged.png").write_bytes(b"no picture")
    return root


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def build(pictures: Path, folder: Path, **options: Any) -> dict[str, bytes]:
    source = read_class_folders(pictures)
    build_shards(source, WANTED, folder / "shards", folder / "work", 1, **options)
    return content_of(folder / "shards")


def process_number(_: int) -> int:
    return os.getpid()


def fail(number: int) -> int:
    raise UserError(f"unit {number} is wrong")


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(marker: Path) -> str:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


@pytest.mark.equality
def test_a_cluster_writes_the_same_bytes_as_one_process(
    cluster: str, pictures: Path, tmp_path: Path
):
    alone = build(pictures, tmp_path / "alone")
    assert build(pictures, tmp_path / "cluster", scheduler=cluster) == alone
    assert len([name for name in alone if name.endswith(".tar")]) > 10
    assert alone["quarantine.csv"].endswith(b"cat/damaged,not an image\n")


@pytest.mark.equality
def test_workers_put_shards_to_an_address_themselves(
    cluster: str, pictures: Path, bucket: str, tmp_path: Path, wire: Any
):
    import distributed

    def see_the_bucket(**variables: str) -> None:
        os.environ.update(variables)

    with distributed.Client(cluster, set_as_default=False) as client:
        client.run(see_the_bucket, **{n: v for n, v in os.environ.items() if n.startswith("AWS_")})
    alone = build(pictures, tmp_path / "alone")
    build(pictures, tmp_path / "cluster", scheduler=cluster, remote=Remote(bucket))
    there = Remote(bucket)
    assert {name: there.read(name, 10**6) for name in there.sizes()} == alone


@pytest.mark.equality
def test_units_run_on_both_workers_in_order(cluster: str):
    engine = Engine(scheduler=cluster)
    assert list(engine.each(abs, range(-50, 0))) == list(range(50, 0, -1))
    where = set(engine.each(process_number, range(50)))
    assert len(where) == 2
    assert os.getpid() not in where


@pytest.mark.equality
def test_an_error_for_the_user_comes_through_as_it_is(cluster: str):
    with pytest.raises(UserError, match=r"^unit 0 is wrong$"):
        list(Engine(scheduler=cluster).each(fail, [0, 1]))


@pytest.mark.equality
@pytest.mark.kill
def test_a_worker_that_is_killed_is_replaced_and_its_unit_done_again(cluster: str, tmp_path: Path):
    markers = [tmp_path / "one", tmp_path / "other"]
    assert list(Engine(scheduler=cluster).each(die_once, markers)) == ["done", "done"]


@pytest.mark.equality
@pytest.mark.kill
def test_a_unit_that_kills_every_worker_is_an_interruption(cluster: str):
    with pytest.raises(Interrupted, match=r"was lost .*\n.*the same command continues"):
        list(Engine(scheduler=cluster).each(die, [0]))


def test_no_cluster_at_the_address_says_what_to_start(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("stages.data.engine.CONNECT_SECONDS", 1)
    with pytest.raises(UserError, match=r"no Dask cluster answers at tcp://127.0.0.1:9.*\n.*dask"):
        list(Engine(scheduler="tcp://127.0.0.1:9").each(abs, [1]))
