from collections import Counter
from pathlib import Path

import pytest

from stages.data.sources import Picture, Source, Split, make_source
from stages.data.splits import SplitSizes, assign_splits, check_splits
from stages.errors import UserError


def source_of(
    counts: dict[str | None, int], split: Split | None = None, first: int = 0
) -> list[Picture]:
    """Pictures of each class; nobody reads them."""
    return [
        Picture(f"{split}-{name}-{number:04d}", "png", Path("unread"), name, split)
        for name, count in counts.items()
        for number in range(first, first + count)
    ]


def composition(source: Source, split_of: dict[str, Split]) -> dict[str, Counter]:
    found: dict[str, Counter] = {"train": Counter(), "validation": Counter(), "test": Counter()}
    for picture in source.pictures:
        if picture.key in split_of:
            found[split_of[picture.key]][picture.class_name] += 1
    return found


def test_without_splits_of_its_own_a_source_is_split_by_class():
    source = make_source(source_of({"cat": 100, "dog": 300}), (), "here")
    found = composition(source, assign_splits(source, SplitSizes(40, 0.15), 0))
    assert found["test"] == {"cat": 15, "dog": 45}
    assert found["validation"] == {"cat": 10, "dog": 30}
    assert found["train"] == {"cat": 75, "dog": 225}


def test_a_test_split_of_the_source_is_left_as_it_is():
    pictures = [*source_of({"cat": 50, "dog": 50}), *source_of({"cat": 7, "dog": 5}, "test")]
    source = make_source(pictures, (), "here")
    found = composition(source, assign_splits(source, SplitSizes(20, 0.5), 0))
    assert found["test"] == {"cat": 7, "dog": 5}
    assert found["validation"] == {"cat": 10, "dog": 10}
    assert found["train"] == {"cat": 40, "dog": 40}


def test_a_validation_split_of_the_source_is_kept_and_none_is_drawn():
    pictures = [
        *source_of({"cat": 50, "dog": 50}),
        *source_of({"cat": 3, "dog": 3}, "validation"),
    ]
    source = make_source(pictures, (), "here")
    found = composition(source, assign_splits(source, SplitSizes(20, 0.1), 0))
    assert found["validation"] == {"cat": 3, "dog": 3}
    assert found["test"] == {"cat": 5, "dog": 5}


def test_images_without_a_label_are_for_training_only():
    source = make_source(source_of({"cat": 40, "dog": 40, None: 1000}), (), "here")
    found = composition(source, assign_splits(source, SplitSizes(8, 0.25), 0))
    assert found["train"][None] == 1000
    assert found["test"] == {"cat": 10, "dog": 10}
    assert found["validation"] == {"cat": 4, "dog": 4}


def test_limits_take_a_balanced_part_that_lies_inside_a_larger_one():
    source = make_source(source_of({"cat": 200, "dog": 200}), (), "here")
    small, large = (
        assign_splits(source, SplitSizes(20, 0.2, train_limit=n, test_limit=n // 2), 3)
        for n in (40, 60)
    )
    assert composition(source, small)["train"] == {"cat": 20, "dog": 20}
    assert composition(source, small)["test"] == {"cat": 10, "dog": 10}
    assert composition(source, small)["validation"] == {"cat": 10, "dog": 10}
    assert small.items() <= large.items()


def test_the_split_of_an_image_is_decided_by_key_and_seed():
    pictures = source_of({"cat": 200, "dog": 200})
    source = make_source(pictures, (), "here")
    again = make_source(reversed(pictures), (), "there")
    sizes = SplitSizes(40, 0.2)
    assert assign_splits(source, sizes, 0) == assign_splits(again, sizes, 0)
    assert assign_splits(source, sizes, 0) != assign_splits(source, sizes, 1)


def test_sizes_that_leave_nothing_are_refused_with_what_works():
    source = make_source(source_of({"cat": 10, "dog": 10}), (), "here")
    with pytest.raises(UserError, match=r"data.test_fraction: 0.05 of 20 labelled images is 1"):
        assign_splits(source, SplitSizes(2, 0.05), 0)
    with pytest.raises(UserError, match=r"data.validation_images: 15 of 16 .*\n  Write at most 14"):
        assign_splits(source, SplitSizes(15, 0.2), 0)
    assert assign_splits(source, SplitSizes(14, 0.2), 0)


def test_a_class_that_nothing_teaches_is_named():
    pictures = [*source_of({"cat": 50}), *source_of({"cat": 5, "dog": 5}, "test")]
    source = make_source(pictures, (), "here")
    split_of = assign_splits(source, SplitSizes(5, 0.1), 0)
    with pytest.raises(UserError, match="is left of 1 classes, the first of them 'dog'"):
        check_splits(source, split_of, source.pictures)


def test_a_test_split_without_labels_is_refused():
    pictures = [*source_of({"cat": 50, "dog": 50}), *source_of({None: 5}, "test")]
    source = make_source(pictures, (), "here")
    split_of = assign_splits(source, SplitSizes(5, 0.1), 0)
    with pytest.raises(UserError, match="no labelled image is left for test"):
        check_splits(source, split_of, source.pictures)
