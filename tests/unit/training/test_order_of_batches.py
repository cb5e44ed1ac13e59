"""Which images a step sees, and as which views: the same for any number of workers and ranks."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.data.store import ImageStore
from stages.data.views import ViewRecipe
from stages.training.batches import Batch, ViewLoader, Waited, ahead

ALL = slice(None)
BATCH = 8
STEPS = 25  # three epochs and some


@pytest.fixture(scope="module")
def shards(
    tmp_path_factory: pytest.TempPathFactory, make_noise_shards: Callable[..., Path]
) -> Path:
    return make_noise_shards(
        tmp_path_factory.mktemp("data"), per_class=45, side=16, validation_images=6
    )


def loader(shards: Path, shuffle_shards: int | None, rows: slice = ALL) -> ViewLoader:
    """A loader as a fresh process makes it; nothing is kept in memory."""
    store = ImageStore.open(
        shards,
        "train",
        with_labels=False,
        channels=1,
        max_pixels=1000,
        cache_bytes=0,
        shuffle_shards=shuffle_shards,
    )
    return ViewLoader(store, ViewRecipe.official(16), BATCH, n_views=2, seed=3, rows=rows)


@pytest.fixture(params=[None, 2], ids=["all", "blocks"])
def shuffle_shards(request: pytest.FixtureRequest) -> int | None:
    return request.param


@pytest.fixture
def expected(shards: Path, shuffle_shards: int | None) -> list[Batch]:
    """Step after step, in this thread."""
    alone = loader(shards, shuffle_shards)
    return [alone.batch(step) for step in range(STEPS)]


def assert_same(found: Sequence[Batch], expected: Sequence[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.positions_B.tolist() == other.positions_B.tolist()
        assert torch.equal(one.views_VBCHW, other.views_VBCHW)


@pytest.mark.parametrize("n_threads", [0, 1, 2, 4])
def test_any_number_of_threads_gives_the_same_batches(
    shards: Path, shuffle_shards: int | None, expected: list[Batch], n_threads: int
):
    own = replace(loader(shards, shuffle_shards), n_threads=n_threads)
    assert_same(list(own.batches(0, STEPS)), expected)


def test_several_batches_are_made_at_once_and_taken_in_their_turn():
    met = threading.Barrier(3)  # one that waits for the others alone would wait for ever

    def make(step: int) -> int:
        met.wait(timeout=20)
        time.sleep(0.01 * (step % 3))
        return step

    assert list(ahead(make, range(9), Waited(), n_threads=3)) == list(range(9))


@pytest.mark.parametrize("n_threads", [0, 1, 3])
def test_an_error_comes_where_its_result_would_have_and_no_thread_stays(n_threads: int):
    def make(step: int) -> int:
        if step == 4:
            raise ValueError("the fifth")
        return step

    before = threading.active_count()
    coming = ahead(make, range(9), Waited(), n_threads=n_threads)
    assert [next(coming) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="the fifth"):
        next(coming)
    dropped = ahead(make, range(3), Waited(), n_threads=n_threads)
    next(dropped)
    dropped.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("depth", [1, 4])
def test_how_far_ahead_batches_are_made_changes_none(
    shards: Path, shuffle_shards: int | None, expected: list[Batch], depth: int
):
    own = loader(shards, shuffle_shards)
    assert_same(list(ahead(own.batch, range(STEPS), Waited(), depth)), expected)


@pytest.mark.parametrize("n_ranks", [1, 2, 4])
def test_ranks_have_equal_batches_that_together_are_the_global_one(
    shards: Path, shuffle_shards: int | None, expected: list[Batch], n_ranks: int
):
    share = BATCH // n_ranks
    ranks = [
        loader(shards, shuffle_shards, slice(rank * share, (rank + 1) * share))
        for rank in range(n_ranks)
    ]
    for step, whole in enumerate(expected):
        parts = [rank.batch(step) for rank in ranks]
        assert {len(part.positions_B) for part in parts} == {share}
        joined = torch.cat([part.views_VBCHW for part in parts], dim=1)
        assert torch.equal(joined, whole.views_VBCHW)


def test_an_epoch_shows_no_image_twice_and_leaves_less_than_a_batch_out(
    shards: Path, expected: list[Batch], shuffle_shards: int | None
):
    own = loader(shards, shuffle_shards)
    n_steps = own.steps_per_epoch
    epochs = [
        np.concatenate([b.positions_B for b in expected[start : start + n_steps]])
        for start in (0, n_steps)
    ]
    for seen in epochs:
        assert len(set(seen.tolist())) == len(seen) > own.store.n_images - BATCH
    assert epochs[0].tolist() != epochs[1].tolist()


def test_a_run_that_starts_at_a_step_reads_nothing_that_came_before(
    shards: Path, shuffle_shards: int | None, expected: list[Batch]
):
    own = loader(shards, shuffle_shards)
    reader: Any = own.store._reader
    read: list[tuple[int, int]] = []
    original = reader.shards.read

    def note(number: int, offset: int, n_bytes: int) -> bytes:
        read.append((number, offset))
        return original(number, offset, n_bytes)

    reader.shards.read = note
    assert_same([own.batch(STEPS - 1)], expected[-1:])
    table = reader.table
    positions = expected[-1].positions_B
    assert sorted(read) == sorted(
        zip(table.shard[positions].tolist(), table.offset[positions].tolist(), strict=True)
    )


def test_another_seed_is_another_order(shards: Path, shuffle_shards: int | None):
    one = loader(shards, shuffle_shards)
    other = replace(one, seed=4)
    assert one.batch(0).positions_B.tolist() != other.batch(0).positions_B.tolist()


@pytest.mark.parametrize(("n_threads", "n_batches"), [(0, 1), (1, 4), (3, 6)])
def test_memory_of_batches_made_ahead_on_a_gpu(shards: Path, n_threads: int, n_batches: int):
    on_cpu = replace(loader(shards, None, slice(0, 4)), n_threads=n_threads)
    assert on_cpu.bytes_on_device(channels=3) == 0
    on_gpu = replace(on_cpu, device=torch.device("cuda"))
    assert on_gpu.bytes_on_device(channels=3) == n_batches * 4 * 2 * 3 * 16 * 16 * 4
