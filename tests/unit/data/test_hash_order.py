import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data.hash_order import even_order, hash_ranks, proportional_order


def keys_of(n_images: int) -> list[str]:
    return [f"image-{number}" for number in range(n_images)]


def test_ranks_are_these_on_every_machine():
    assert hash_ranks(["a", "b"], 0, "test").tolist() == [7611924020720653441, 7379409346480247620]


def test_ranks_of_another_seed_or_purpose_are_independent():
    ranks = [
        hash_ranks(keys_of(2000), seed, purpose).astype(float)
        for seed, purpose in ((0, "test"), (1, "test"), (0, "validation"))
    ]
    assert np.abs(np.corrcoef(ranks) - np.eye(3)).max() < 0.08


def test_every_prefix_of_the_even_order_is_balanced():
    classes = np.repeat([0, 1, 2], [40, 40, 40])
    order = even_order(keys_of(120), classes, 5, "test")
    for count in range(1, 121):
        sizes = np.bincount(classes[order[:count]], minlength=3)
        assert sizes.max() - sizes.min() <= 1


def test_a_class_that_runs_out_leaves_its_turns_to_the_others():
    classes = np.repeat([0, 1], [3, 20])
    order = even_order(keys_of(23), classes, 0, "test")
    assert np.bincount(classes[order[:6]]).tolist() == [3, 3]
    assert np.bincount(classes[order[:12]]).tolist() == [3, 9]


def test_every_prefix_of_the_proportional_order_keeps_the_shares():
    classes = np.repeat([0, 1, 2], [10, 100, 890])
    order = proportional_order(keys_of(1000), classes, 5, "test")
    for count in (3, 10, 100, 500, 1000):
        sizes = np.bincount(classes[order[:count]], minlength=3)
        assert sizes.min() >= 1
        assert np.abs(sizes - count * np.array([0.01, 0.1, 0.89])).max() <= 2


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(30)), st.integers(0, 5))
def test_a_choice_does_not_depend_on_the_order_of_what_it_is_given(places: list[int], seed: int):
    keys, classes = keys_of(30), np.arange(30) % 3 - 1  # one class is "no label"
    for choose in (even_order, proportional_order):
        straight = [keys[p] for p in choose(keys, classes, seed, "test")]
        mixed_keys = [keys[p] for p in places]
        mixed = [mixed_keys[p] for p in choose(mixed_keys, classes[places], seed, "test")]
        assert mixed == straight
