import numpy as np
import pytest

from stages.data.random_numbers import Streams, join, key_hash, key_hashes, uniform

HASHES = key_hashes(f"image-{i:06d}" for i in range(4000))


def test_key_hash_is_the_same_number_everywhere():
    assert key_hash("") == 0xB4B2797457A0A6E4
    assert key_hash("train/000001") == 0x3F7D144E3C531C48
    assert key_hashes(["", "train/000001"]).tolist() == [key_hash(""), key_hash("train/000001")]
    assert key_hash("Zürich") != key_hash("Zurich")


def test_draws_are_pinned():
    draws = uniform(0, 0, key_hashes(["a", "b"]), 0, 3)
    expected = [
        [0.21994017475375538, 0.7745180832171822, 0.6308754396587216],
        [0.9077061458768502, 0.15266616510886288, 0.35284770160420076],
    ]
    np.testing.assert_allclose(draws, expected, rtol=0, atol=1e-15)
    draws = uniform(7, 3, key_hashes(["a"]), 1, 2)
    expected = [[0.13449680043939494, 0.9360516884057415]]
    np.testing.assert_allclose(draws, expected, rtol=0, atol=1e-15)


def test_draws_do_not_depend_on_the_batch_or_on_how_they_are_asked_for():
    whole = uniform(1, 2, HASHES[:50], 0, 30)
    one_by_one = np.concatenate([uniform(1, 2, HASHES[i : i + 1], 0, 30) for i in range(50)])
    np.testing.assert_array_equal(whole, one_by_one)
    streams = Streams.of(1, 2, HASHES[:50], 0)
    np.testing.assert_array_equal(whole[:, 10:17], streams.uniform(10, 7))
    rows = np.array([40, 3])
    np.testing.assert_array_equal(whole[rows], streams.select(rows).uniform(0, 30))
    both = join([streams.select(rows[:1]), streams.select(rows[1:])])
    np.testing.assert_array_equal(both.state, streams.select(rows).state)


def test_draws_are_uniform():
    draws = uniform(0, 0, HASHES, 0, 50).ravel()
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.histogram(draws, bins=100, range=(0, 1))[0]
    chi_square = ((counts - 2000) ** 2 / 2000).sum()
    assert 50 < chi_square < 160  # 99 degrees of freedom: mean 99, standard deviation 14


@pytest.mark.parametrize(
    "other",
    [
        uniform(1, 0, HASHES, 0, 20),
        uniform(0, 1, HASHES, 0, 20),
        uniform(0, 0, HASHES, 1, 20),
        np.roll(uniform(0, 0, HASHES, 0, 20), 1, axis=0),
        np.roll(uniform(0, 0, HASHES, 0, 20), 1, axis=1),
    ],
    ids=["seed", "epoch", "view", "neighbouring key", "next draw"],
)
def test_draws_of_another_stream_are_unrelated(other):
    draws = uniform(0, 0, HASHES, 0, 20)
    correlation = np.corrcoef(draws.ravel(), other.ravel())[0, 1]
    assert abs(correlation) < 5 / np.sqrt(draws.size)
    joint = np.histogram2d(draws.ravel(), other.ravel(), bins=10, range=((0, 1), (0, 1)))[0]
    expected = draws.size / 100
    assert ((joint - expected) ** 2 / expected).sum() < 160


def test_neighbouring_raw_hashes_give_unrelated_draws():
    draws = uniform(0, 0, np.arange(4000, dtype=np.uint64), 0, 20)
    correlation = np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]
    assert abs(correlation) < 5 / np.sqrt(draws.size)


def test_seed_epoch_and_view_are_not_interchangeable():
    streams = {
        Streams.of(seed, epoch, HASHES[:1], view).state[0].item()
        for seed in range(-2, 5)
        for epoch in range(5)
        for view in range(5)
    }
    assert len(streams) == 7 * 5 * 5
