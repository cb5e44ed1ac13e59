from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data.label_fractions import choose_labelled, read_subset
from stages.errors import UserError

KEYS = [f"{number:04d}" for number in range(1000)]
CLASSES = np.arange(1000) % 10


def per_class(chosen: list[str]) -> list[int]:
    return np.bincount(CLASSES[[int(key) for key in chosen]], minlength=10).tolist()


def test_one_percent_is_these_keys_on_every_machine():
    assert choose_labelled(KEYS, CLASSES, "0.01", 0) == PINNED_0
    assert choose_labelled(KEYS, CLASSES, "0.01", 1) == PINNED_1


def test_the_remainder_is_spread_over_classes_that_differ_between_seeds():
    extras = set()
    for seed in range(20):
        sizes = per_class(choose_labelled(KEYS, CLASSES, "0.023", seed))
        assert sorted(sizes) == [2] * 7 + [3] * 3
        extras.add(tuple(np.flatnonzero(np.array(sizes) == 3)))
    assert len(extras) > 10


def test_the_official_sizes_of_imagenet_come_out():
    classes = np.arange(1_281_167) % 1000
    keys = [str(number) for number in range(1_281_167)]
    chosen = np.array(choose_labelled(keys, classes, "0.01", 0), dtype=int)
    assert len(chosen) == 12_811
    assert np.bincount(np.bincount(classes[chosen])).tolist()[12:] == [189, 811]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 8), st.integers(10, 400))
def test_a_smaller_fraction_lies_inside_a_larger_one(seed: int, n_classes: int, n_images: int):
    rng = np.random.default_rng(seed)
    classes = rng.integers(-1, n_classes, n_images)
    classes[:n_classes] = np.arange(n_classes)
    keys = [f"k{number}" for number in range(n_images)]
    fractions = ["1_per_class", "2_per_class", "5_per_class"]
    nested = [set(choose_labelled(keys, classes, f, seed)) for f in fractions]
    labelled = {key for key, c in zip(keys, classes, strict=True) if c >= 0}
    whole = set(choose_labelled(keys, classes, "1.0", seed))
    assert nested[0] <= nested[1] <= nested[2] <= whole == labelled
    for share in ("0.2", "0.5", "0.9"):
        if len(labelled) * float(share) >= n_classes + 1:
            part = set(choose_labelled(keys, classes, share, seed))
            assert nested[0] <= part <= whole


def test_shares_are_counted_exactly():
    assert len(choose_labelled(KEYS[:100], CLASSES[:100], "0.29", 0)) == 29  # not 28.999...


def test_the_choice_belongs_to_keys_and_not_to_their_order():
    mixed = np.random.default_rng(0).permutation(1000)
    found = choose_labelled([KEYS[p] for p in mixed], CLASSES[mixed], "10_per_class", 3)
    assert found == choose_labelled(KEYS, CLASSES, "10_per_class", 3)
    assert found == sorted(found)
    assert per_class(found) == [10] * 10


def test_a_class_with_too_few_gives_all_it_has():
    classes = np.repeat([0, 1], [4, 96])
    found = choose_labelled(KEYS[:100], classes, "10_per_class", 0)
    assert len(found) == 14


def test_too_small_a_fraction_names_the_smallest_that_works():
    with pytest.raises(UserError) as caught:
        choose_labelled(KEYS[:330], CLASSES[:330], "0.02", 0)
    assert str(caught.value) == (
        "params.yaml, finetune.label_fractions: 0.02 of 330 labelled training images is 6, too few "
        "for 10 classes.\n  The smallest fraction that works is 0.031; or write 1_per_class."
    )
    assert per_class(choose_labelled(KEYS[:330], CLASSES[:330], "0.031", 0)) == [1] * 10


@pytest.mark.parametrize("fraction", ["0", "1.5", "-1", "ten", "0_per_class", "../x", "1/0"])
def test_what_is_no_fraction_is_refused(fraction: str):
    with pytest.raises(UserError, match="can't be drawn"):
        choose_labelled(KEYS, CLASSES, fraction, 0)


def test_no_label_at_all_is_the_users_to_mend():
    with pytest.raises(UserError, match="no training image has a label"):
        choose_labelled(KEYS, np.full(1000, -1), "0.1", 0)


def test_an_official_list_is_read_as_it_is(tmp_path: Path):
    path = tmp_path / "1percent.txt"
    path.write_text("n01440764_10183.JPEG\nn02113978_1310.JPEG\n\n")
    keys = ["train/n02113978/n02113978_1310", "train/n01440764/n01440764_10183", "train/x/y"]
    assert read_subset(path, keys) == ([keys[1], keys[0]], [])


def test_names_of_known_images_that_cannot_be_used_are_told_apart(tmp_path: Path):
    path = tmp_path / "list.txt"
    path.write_text("a.JPEG\nb.JPEG\nsame.JPEG\n")
    keys, unusable = ["train/x/a", "train/x/same"], {"test/x/same": "test", "train/x/b": "held"}
    assert read_subset(path, keys, unusable) == (["train/x/a", "train/x/same"], ["train/x/b"])


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00\xd8"])
def test_a_list_that_is_not_there_or_no_text_is_named(tmp_path: Path, content: bytes | None):
    path = tmp_path / "1percent.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"1percent\.txt is (not there|no text)(.|\n)*label_lists"):
        read_subset(path, ["a"])


def test_a_name_twice_is_refused(tmp_path: Path):
    path = tmp_path / "list.txt"
    path.write_text("a.JPEG\nb.JPEG\nx/a\n")
    with pytest.raises(UserError, match=r"1 of its lines(.|\n)*line 3, x/a: named twice"):
        read_subset(path, ["x/a", "x/b"])


def test_a_list_of_keys_is_read_as_it_is(tmp_path: Path):
    path = tmp_path / "seed-0.txt"
    path.write_text("train-00001\ntrain-00002\n")
    expected = (["train-00001", "train-00002"], [])
    assert read_subset(path, ["train-00002", "train-00001"]) == expected


def test_lines_that_name_no_image_or_two_are_listed(tmp_path: Path):
    path = tmp_path / "list.txt"
    path.write_text("a.png\nb\nb.jpg\nc\n")
    with pytest.raises(UserError) as caught:
        read_subset(path, ["b", "x/c", "y/c"])
    assert "3 of its lines" in str(caught.value)
    assert "line 1, a.png: no such image" in str(caught.value)
    assert "line 3, b.jpg: named twice" in str(caught.value)
    assert "line 4, c: several" in str(caught.value)


PINNED_0 = ["0230", "0232", "0271", "0295", "0373", "0388", "0414", "0597", "0726", "0759"]
PINNED_1 = ["0032", "0125", "0161", "0250", "0433", "0479", "0578", "0676", "0904", "0977"]
