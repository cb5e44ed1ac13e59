from stages.data.duplicates import find_copies
from stages.data.sources import Split


def test_copies_across_sides_stay_where_they_are_held_out_longest():
    content = {"a": b"1", "b": b"1", "c": b"1", "d": b"2", "e": b"2", "f": b"3", "g": b"4"}
    split_of: dict[str, Split] = {
        "a": "train",
        "b": "test",
        "c": "validation",
        "d": "train",
        "e": "validation",
        "f": "train",
        "g": "test",
    }
    first, second = find_copies(content, split_of, dict.fromkeys(content, "cat"))
    assert (first.keys, first.kept, first.dropped) == (("a", "b", "c"), "test", ("a", "c"))
    assert (second.keys, second.kept, second.dropped) == (("d", "e"), "validation", ("d",))


def test_copies_on_one_side_are_listed_and_kept():
    (found,) = find_copies(
        {"b": b"1", "a": b"1"}, {"a": "train", "b": "train"}, {"a": None, "b": "cat"}
    )
    assert found.dropped == ()
    assert found.as_record() == {"keys": ["a", "b"], "kept": "train"}


def test_labels_that_contradict_each_other_are_told():
    (found,) = find_copies(
        {"a": b"1", "b": b"1"}, {"a": "train", "b": "test"}, {"a": "cat", "b": "dog"}
    )
    assert found.as_record() == {
        "keys": ["a", "b"],
        "kept": "test",
        "dropped": ["a"],
        "class_names": ["cat", "dog"],
    }
