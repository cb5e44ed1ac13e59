import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data.block_order import BlockOrder, mixing
from stages.data.order import EpochOrder


def shards_of(sizes: list[int]) -> np.ndarray:
    """The shard of each image, side by side as in an index."""
    return np.repeat(np.arange(len(sizes)), sizes)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(sum),
    st.integers(-(2**70), 2**70),
    st.integers(0, 2**30),
    st.integers(1, 14),
)
def test_an_epoch_holds_every_image_once(sizes: list[int], seed: int, epoch: int, block: int):
    order = BlockOrder.of(shards_of(sizes), seed, block)
    found = order.positions(epoch, 0, order.n_images)
    assert np.array_equal(np.sort(found), np.arange(sum(sizes)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=10), st.integers(1, 4), st.data())
def test_a_part_of_an_epoch_equals_that_part_of_the_whole(
    sizes: list[int], block: int, data: st.DataObject
):
    order = BlockOrder.of(shards_of(sizes), 3, block)
    start = data.draw(st.integers(0, order.n_images))
    stop = data.draw(st.integers(start, order.n_images))
    whole = order.positions(5, 0, order.n_images)
    assert order.positions(5, start, stop).tolist() == whole[start:stop].tolist()


def test_each_shard_is_read_in_one_block_of_an_epoch_and_blocks_differ_between_epochs():
    shard_N = shards_of([30, 41, 17, 55, 38, 22, 9])
    order = BlockOrder.of(shard_N, seed=1, shards_per_block=3)
    blocks = set()
    for epoch in range(20):
        found = shard_N[order.positions(epoch, 0, order.n_images)]
        changes = [shard for n, shard in enumerate(found) if shard not in found[:n]]
        parts = [frozenset(changes[n : n + 3]) for n in range(0, 7, 3)]
        start = 0
        for part in parts:
            stop = start + sum((shard_N == shard).sum() for shard in part)
            assert set(found[start:stop]) == part
            start = stop
        blocks |= set(parts)
    assert len(blocks) > 20


def test_the_order_is_this_one_on_every_machine():
    order = BlockOrder.of(shards_of([3, 4, 2]), seed=0, shards_per_block=2)
    assert order.positions(0, 0, 9).tolist() == PINNED_EPOCH_0
    assert order.positions(1, 0, 9).tolist() == PINNED_EPOCH_1


def test_images_of_a_subset_need_not_stand_shard_by_shard():
    shard_N = np.array([7, 2, 7, 5, 2, 5, 7])
    order = BlockOrder.of(shard_N, seed=4, shards_per_block=1)
    found = order.positions(0, 0, 7)
    assert sorted(found.tolist()) == list(range(7))
    changes = np.count_nonzero(np.diff(shard_N[found]))
    assert changes == 2  # one shard after the other


@pytest.mark.parametrize("n_ranks", [1, 2, 4])
def test_ranks_together_see_the_global_batch(n_ranks: int):
    order = BlockOrder.of(shards_of([50, 50, 50]), 0, 2)
    _, whole = order.global_batch(7, 8)
    share = 8 // n_ranks
    parts = [order.global_batch(7, 8)[1][r * share : (r + 1) * share] for r in range(n_ranks)]
    assert np.concatenate(parts).tolist() == whole.tolist()


def test_shards_ahead_name_all_that_the_next_steps_read():
    shard_N = shards_of([30, 41, 17, 55, 38, 22, 9])
    order = BlockOrder.of(shard_N, seed=1, shards_per_block=2)
    steps = order.steps_per_epoch(10)
    for step in range(3 * steps):
        told = order.shards_ahead(step, 10)
        assert len(told) <= 6
        for coming in (step, step + 1):
            assert set(shard_N[order.global_batch(coming, 10)[1]]) <= set(told)


def test_one_block_of_all_shards_mixes_like_a_full_shuffle_and_smaller_blocks_less():
    shard_N = shards_of([500] * 64)
    full = mixing(EpochOrder(len(shard_N), 0), shard_N, 256)
    assert full.of_full_shuffle == pytest.approx(1, abs=0.01)
    assert full.shards_per_batch == pytest.approx(64 * (1 - (63 / 64) ** 256), abs=0.4)
    found = [mixing(BlockOrder.of(shard_N, 0, m), shard_N, 256) for m in (1, 4, 16, 64)]
    shares = [one.of_full_shuffle for one in found]
    assert shares == sorted(shares)
    assert found[0].shards_per_batch < 2  # at a border of blocks two
    assert 4 <= found[1].shards_per_batch < 5
    assert shares[-1] == pytest.approx(1, abs=0.01)


def test_ten_million_images_start_at_any_step_within_a_second():
    shard_N = np.repeat(np.arange(2000, dtype=np.int32), 5000)
    begun = time.process_time()
    order = BlockOrder.of(shard_N, 0, 16)
    _, positions = order.global_batch(987_654, 4096)
    order.shards_ahead(987_654, 4096)
    assert time.process_time() - begun < 1
    assert len(np.unique(positions)) == 4096


def test_places_that_do_not_exist_are_refused():
    order = BlockOrder.of(shards_of([5, 5]), 0, 1)
    with pytest.raises(ValueError, match=r"places 5\.\.11 of an epoch of 10 images"):
        order.positions(0, 5, 11)
    with pytest.raises(ValueError, match="at least one shard"):
        BlockOrder.of(shards_of([5]), 0, 0)


PINNED_EPOCH_0 = [3, 1, 0, 2, 5, 6, 4, 8, 7]
PINNED_EPOCH_1 = [4, 7, 8, 5, 6, 3, 2, 0, 1]
