import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data.order import EpochOrder


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 3000), st.integers(-(2**70), 2**70), st.integers(0, 2**40))
def test_an_epoch_holds_every_image_once(n_images: int, seed: int, epoch: int):
    found = EpochOrder(n_images, seed).positions(epoch, 0, n_images)
    assert np.array_equal(np.sort(found), np.arange(n_images))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 10**12), st.data())
def test_a_part_of_an_epoch_equals_that_part_of_the_whole(n_images: int, data: st.DataObject):
    start = data.draw(st.integers(0, n_images - 1))
    stop = data.draw(st.integers(start, min(start + 50, n_images)))
    order = EpochOrder(n_images, 3)
    found = order.positions(5, start, stop)
    one_by_one = [order.positions(5, p, p + 1)[0] for p in range(start, stop)]
    assert found.tolist() == one_by_one
    assert ((found >= 0) & (found < n_images)).all()


def test_the_order_is_this_one_on_every_machine():
    order = EpochOrder(10, seed=0)
    assert order.positions(0, 0, 10).tolist() == PINNED_EPOCH_0
    assert order.positions(1, 0, 10).tolist() == PINNED_EPOCH_1
    assert EpochOrder(1_281_167, seed=7).positions(3, 1000, 1004).tolist() == PINNED_IMAGENET


@pytest.mark.parametrize("n_images", [2, 3, 5, 16, 100])
def test_over_many_epochs_each_image_stands_at_each_place_equally_often(n_images: int):
    epochs = 200 * n_images
    counts = np.zeros((n_images, n_images))
    for epoch in range(epochs):
        places = EpochOrder(n_images, 11).positions(epoch, 0, n_images)
        counts[np.arange(n_images), places] += 1
    expected = epochs / n_images
    chi_square = ((counts - expected) ** 2 / expected).sum()
    degrees = (n_images - 1) ** 2
    assert abs(chi_square - degrees) < 6 * np.sqrt(2 * degrees) + 6


def test_neighbours_in_the_index_are_strangers_in_a_batch():
    n_images = 20_000
    places = EpochOrder(n_images, 1).positions(0, 0, n_images).astype(float)
    follow = np.corrcoef(places[:-1], places[1:])[0, 1]
    drift = np.corrcoef(np.arange(n_images), places)[0, 1]
    assert abs(follow) < 0.03
    assert abs(drift) < 0.03
    steps = np.abs(np.diff(places))
    assert abs(steps.mean() / n_images - 1 / 3) < 0.01  # of independent uniform places
    # A batch holds its share of any run of the index, here of ten equal runs.
    shares = np.histogram(places[:1000], bins=10, range=(0, n_images))[0]
    assert shares.min() > 60
    assert shares.max() < 140


def test_seeds_and_epochs_give_orders_of_their_own():
    orders = {
        tuple(EpochOrder(50, seed).positions(epoch, 0, 50).tolist())
        for seed in range(-2, 8)
        for epoch in range(10)
    }
    assert len(orders) == 100


def test_global_batches_fill_an_epoch_and_go_on_with_the_next():
    order = EpochOrder(10, seed=4)
    steps = [order.global_batch(step, 3) for step in range(7)]
    assert [epoch for epoch, _ in steps] == [0, 0, 0, 1, 1, 1, 2]
    assert all(len(positions) == 3 for _, positions in steps)
    first = np.concatenate([positions for _, positions in steps[:3]])
    assert first.tolist() == order.positions(0, 0, 9).tolist()
    assert steps[4][1].tolist() == order.positions(1, 3, 6).tolist()


@pytest.mark.parametrize("n_ranks", [1, 2, 4])
def test_ranks_together_see_the_global_batch(n_ranks: int):
    _, whole = EpochOrder(100, 0).global_batch(7, 8)
    share = 8 // n_ranks
    parts = [
        EpochOrder(100, 0).global_batch(7, 8)[1][rank * share : (rank + 1) * share]
        for rank in range(n_ranks)
    ]
    assert np.concatenate(parts).tolist() == whole.tolist()


def test_fewer_images_than_a_batch_are_one_batch_an_epoch():
    order = EpochOrder(3, seed=0)
    for step in range(5):
        epoch, positions = order.global_batch(step, 8)
        assert epoch == step
        assert sorted(positions.tolist()) == [0, 1, 2]


def test_ten_million_images_start_at_any_step_within_a_second():
    begun = time.process_time()
    _, positions = EpochOrder(10_000_000, 0).global_batch(987_654, 4096)
    assert time.process_time() - begun < 1
    assert len(np.unique(positions)) == 4096


def test_places_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"places 5\.\.11 of an epoch of 10 images"):
        EpochOrder(10, 0).positions(0, 5, 11)
    with pytest.raises(ValueError, match="at least one image"):
        EpochOrder(0, 0)


PINNED_EPOCH_0 = [7, 5, 3, 9, 4, 0, 8, 1, 2, 6]
PINNED_EPOCH_1 = [6, 7, 1, 4, 3, 8, 9, 5, 2, 0]
PINNED_IMAGENET = [73959, 232914, 890832, 493895]
