"""The data sets of SimCLR's appendix B.8, on small stand-ins in the layout of each."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stages.data.torchvision_source import read_torchvision
from stages.data.voc2007 import CLASSES as VOC_CLASSES
from stages.evaluation.other_datasets import (
    ARRAYS,
    READERS,
    LabelledImages,
    NotHere,
    Suite,
    stratified,
)
from stages.sections.transfer import TransferDataset, TransferName
from tests.unit.data.test_torchvision_source import CASES

PER_CLASS = {"fgvcaircraft", "oxfordiiitpet", "flowers102"}
OF_TORCHVISION = {
    **{"food101": "Food101", "cifar10": "CIFAR10", "cifar100": "CIFAR100", "sun397": "SUN397"},
    **{"stanfordcars": "StanfordCars", "fgvcaircraft": "FGVCAircraft", "dtd": "DTD"},
    **{"oxfordiiitpet": "OxfordIIITPet", "flowers102": "Flowers102"},
}


def suite(root: Path) -> Suite:
    return Suite(root, channels=3, image_size=16, max_pixels=10_000, seed=0)


def draw(path: Path, shade: int = 128) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (shade, 0, 0)).save(path)


def check(images: LabelledImages) -> None:
    """Every split has images, none has another's, and each can be seen."""
    sides = [set(images.split[side].tolist()) for side in ("train", "validation", "test")]
    assert all(sides)
    assert sum(map(len, sides)) == len(set.union(*sides))
    for side in sides:
        pixels_CHW = images.image(next(iter(side)))
        assert pixels_CHW.dtype == torch.uint8
        assert pixels_CHW.shape[0] == 3


def test_the_suite_has_the_twelve_data_sets_of_the_paper_and_three_that_need_no_download():
    names = set(TransferName.__args__)
    assert names == set(READERS) | set(ARRAYS)
    assert names - {"digits", "elpv", "fashion_mnist"} == (
        set(OF_TORCHVISION) | {"birdsnap", "voc2007", "caltech101"}
    )
    assert len(names) == 12 + 3


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_a_data_set_of_torchvision_keeps_its_test_images_and_its_validation_where_it_has_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    theirs = OF_TORCHVISION[name]
    make, counts, _ = CASES[theirs]
    make(tmp_path, monkeypatch)
    images = suite(tmp_path).read(name)
    check(images)
    assert images.metric == ("balanced_accuracy" if name in PER_CLASS else "accuracy")
    assert len(images.split["test"]) == counts["test"]
    if "validation" in counts:
        assert len(images.split["validation"]) == counts["validation"]
    by_key = {p.key: p for p in read_torchvision(theirs, tmp_path, download=False).pictures}
    for position in images.split["test"].tolist():
        picture = by_key[images.keys[position]]
        assert picture.split == "test"
        assert images.class_names[int(images.targets[position])] == picture.class_name


def test_caltech101_trains_on_thirty_of_each_class_the_background_among_them(tmp_path: Path):
    folder = tmp_path / "caltech101/101_ObjectCategories"
    for class_name, count in (("BACKGROUND_Google", 36), ("ant", 33)):
        for number in range(count):
            draw(folder / class_name / f"image_{number:04d}.jpg")
    images = suite(tmp_path).read("caltech101")
    check(images)
    assert images.class_names == ("BACKGROUND_Google", "ant")
    sizes = {side: images.targets[part].bincount().tolist() for side, part in images.split.items()}
    assert sizes == {"train": [25, 25], "validation": [5, 5], "test": [6, 3]}


def test_birdsnap_is_split_by_the_authors_list(tmp_path: Path):
    for class_name in ("Ani", "Wren"):
        for number in range(20):
            draw(tmp_path / f"birdsnap/images/{class_name}/{number}.jpg")
    listed = "path\nAni/3.jpg\nWren/7.jpg\nWren/gone.jpg\n"
    (tmp_path / "birdsnap/test_images.txt").write_text(listed)
    images = suite(tmp_path).read("birdsnap")
    check(images)
    assert [images.keys[place] for place in images.split["test"].tolist()] == ["Ani/3", "Wren/7"]


def write_voc(root: Path) -> None:
    """Each picture shows two classes; its shade tells the first. Some persons are difficult."""
    folder = root / "VOCdevkit/VOC2007"
    (folder / "ImageSets/Main").mkdir(parents=True)
    for start, split in enumerate(("train", "val", "test")):
        names = [f"{1000 * start + number:06d}" for number in range(24)]
        for number, name in enumerate(names):
            draw(folder / f"JPEGImages/{name}.jpg", shade=10 + 200 * (number % 2))
        for place, class_name in enumerate(VOC_CLASSES):
            lines = []
            for number, name in enumerate(names):
                value = 1 if place in {number % 2, 2 + number % 18} else -1
                value = 0 if class_name == "person" and number == 3 else value
                lines.append(f"{name} {value:2d}\n")
            path = folder / f"ImageSets/Main/{class_name}_{split}.txt"
            path.write_text("".join(lines))


def test_voc_has_several_classes_an_image_and_the_official_splits(tmp_path: Path):
    write_voc(tmp_path)
    images = suite(tmp_path).read("voc2007")
    check(images)
    assert images.targets.shape == (72, 20)
    assert images.metric == "mean_average_precision"
    assert [len(part) for part in images.split.values()] == [24, 24, 24]
    assert images.targets[0].nonzero().flatten().tolist() == [0, 2]
    assert images.targets[5].nonzero().flatten().tolist() == [1, 7]
    assert images.counted_NK is not None
    assert images.counted_NK[3].tolist().count(False) == 1


@pytest.mark.parametrize("name", sorted(set(READERS) - {"fashion_mnist"}))
def test_what_is_not_on_disk_is_told_with_how_to_get_it(name: str, tmp_path: Path):
    with pytest.raises(NotHere, match=r"(?i)put|unpack"):
        suite(tmp_path).read(name)


def test_a_folder_is_a_data_set_of_its_own(tmp_path: Path):
    for class_name in ("cat", "dog"):
        for number in range(20):
            draw(tmp_path / class_name / f"{number}.png")
    wanted = TransferDataset(
        name="pets", source="folder", root=str(tmp_path), metric="balanced_accuracy"
    )
    images = suite(tmp_path).read(wanted)
    check(images)
    assert images.metric == "balanced_accuracy"
    assert [len(part) for part in images.split.values()] == [27, 3, 10]
    gone = wanted.model_copy(update={"root": str(tmp_path / "gone")})
    with pytest.raises(NotHere, match="put the data set into"):
        suite(tmp_path).read(gone)


def test_digits_are_all_there_and_their_split_is_a_pure_function_of_the_seed():
    images = suite(Path()).read("digits")
    check(images)
    assert [len(part) for part in images.split.values()] == [1078, 269, 450]
    again = stratified(images.targets, 0)
    assert all(torch.equal(again[side], part) for side, part in images.split.items())
    shares = images.targets[images.split["test"]].bincount() / images.targets.bincount()
    np.testing.assert_allclose(shares, 0.25, atol=0.01)
