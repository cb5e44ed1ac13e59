"""PASCAL VOC 2007 on a small stand-in in its own layout."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.data.images import decode
from stages.data.voc2007 import CLASSES, read_voc2007
from stages.errors import UserError

SPLITS = {"train": ["000012", "000017"], "val": ["000005"], "test": ["000001", "000002", "000003"]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Every picture shows one class; 000017 and 000002 another, by a difficult example alone."""
    folder = tmp_path / "VOCdevkit/VOC2007"
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "ImageSets/Main").mkdir(parents=True)
    for split, names in SPLITS.items():
        for number, name in enumerate(names):
            Image.new("RGB", (50, 37), (number, 0, 0)).save(folder / f"JPEGImages/{name}.jpg")
        for place, class_name in enumerate(CLASSES):
            lines = []
            for number, name in enumerate(names):
                value = 1 if place == number else -1
                if name in {"000017", "000002"} and class_name == "person":
                    value = 0
                lines.append(f"{name} {value:2d}\n")
            (folder / f"ImageSets/Main/{class_name}_{split}.txt").write_text("".join(lines))
    return tmp_path


def test_each_split_has_its_pictures_and_what_they_show(root: Path):
    found = read_voc2007(root)
    assert {name: [p.key for p in split.pictures] for name, split in found.items()} == {
        "train": SPLITS["train"],
        "validation": SPLITS["val"],
        "test": SPLITS["test"],
    }
    test = found["test"]
    np.testing.assert_array_equal(test.shown_NK, np.eye(3, 20, dtype=bool))
    expected = np.ones((3, 20), dtype=bool)
    expected[1, CLASSES.index("person")] = False
    np.testing.assert_array_equal(test.counted_NK, expected)
    assert all(p.split == name for name, split in found.items() for p in split.pictures)
    assert decode(test.pictures[0].location.read_bytes(), 3, 10_000).shape == (37, 50, 3)


def test_what_is_not_there_or_not_whole_is_told_with_what_to_do(root: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"is not there.\n  Unpack VOCtrainval_06-Nov-2007.tar"):
        read_voc2007(tmp_path / "nowhere")
    folder = root / "VOCdevkit/VOC2007"
    main = folder / "ImageSets/Main"
    (folder / "JPEGImages/000003.jpg").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of the pictures .* 000003.jpg"):
        read_voc2007(root)
    (main / "boat_train.txt").write_text("000012 1\n")
    with pytest.raises(UserError, match=r"boat_train.txt lists other pictures than aeroplane"):
        read_voc2007(root)
    (main / "boat_train.txt").write_text("000012 2\n000017 1\n")
    with pytest.raises(UserError, match=r"boat_train.txt, line 1: found '000012 2'"):
        read_voc2007(root)
    (main / "boat_train.txt").unlink()
    with pytest.raises(UserError, match=r"boat_train.txt can't be read"):
        read_voc2007(root)
