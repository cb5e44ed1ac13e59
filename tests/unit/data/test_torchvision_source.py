"""torchvision's own classes, run on small stand-ins written in the layout of each data set."""

import hashlib
import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision import datasets

from stages.data.images import decode
from stages.data.reading import read_source
from stages.data.sources import Source
from stages.data.splits import SplitSizes, assign_splits
from stages.data.torchvision_source import KINDS, ArrayImage, read_torchvision
from stages.errors import UserError
from stages.sections.data import DataParams, TorchvisionName

RNG = np.random.default_rng(0)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def draw(path: Path, width: int = 20, height: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(height, width, 3)).save(path, "JPEG")


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def cifar(root: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str, classes: int) -> None:
    kind = getattr(datasets, name)
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    for lists in ("train_list", "test_list"):
        made = []
        for file, _ in getattr(kind, lists):
            entry = {"data": noise(10, 3072), key: [n % classes for n in range(10)]}
            (folder / file).write_bytes(pickle.dumps(entry))
            made.append([file, md5(folder / file)])
        monkeypatch.setattr(kind, lists, made)
    meta = dict(kind.meta)
    names = [f"class {classes - number}" for number in range(classes)]
    (folder / meta["filename"]).write_bytes(pickle.dumps({meta["key"]: names}))
    monkeypatch.setattr(kind, "meta", meta | {"md5": md5(folder / meta["filename"])})


def cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar(root, monkeypatch, "CIFAR10", "labels", 10)


def cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar(root, monkeypatch, "CIFAR100", "fine_labels", 5)


def stl10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for part, count in (("train", 6), ("test", 8), ("unlabeled", 12)):
        noise(count, 3, 96, 96).tofile(folder / f"{part}_X.bin")
        if part != "unlabeled":
            (1 + np.arange(count, dtype=np.uint8) % 4).tofile(folder / f"{part}_y.bin")
    text(folder / "class_names.txt", "airplane", "bird", "car", "cat")
    for lists in ("train_list", "test_list"):
        made = [[file, md5(folder / file)] for file, _ in getattr(datasets.STL10, lists)]
        monkeypatch.setattr(datasets.STL10, lists, made)


def svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.mkdir(parents=True, exist_ok=True)
    made = {}
    for part, (address, file, _) in datasets.SVHN.split_list.items():
        labels = (1 + np.arange(20) % 10).astype(np.uint8)[:, None]  # 10 stands for the digit 0
        scipy.io.savemat(root / file, {"X": noise(32, 32, 3, 20), "y": labels})
        made[part] = [address, file, md5(root / file)]
    monkeypatch.setattr(datasets.SVHN, "split_list", made)


def imagenet(root: Path, _: pytest.MonkeyPatch) -> None:
    for wnid in ("n01440764", "n01443537"):
        for number in range(3):
            draw(root / f"train/{wnid}/{wnid}_{number}.JPEG")
        draw(root / f"val/{wnid}/ILSVRC2012_val_{wnid[-4:]}.JPEG")


def food101(root: Path, _: pytest.MonkeyPatch) -> None:
    for part, numbers in (("train", (1, 2, 3)), ("test", (4, 5))):
        listed = {food: [f"{food}/{n}" for n in numbers] for food in ("waffles", "pho")}
        text(root / f"food-101/meta/{part}.json", json.dumps(listed))
        for files in listed.values():
            for file in files:
                draw(root / f"food-101/images/{file}.jpg")


def sun397(root: Path, _: pytest.MonkeyPatch) -> None:
    text(root / "SUN397/ClassName.txt", "/a/abbey", "/y/yard/outdoor")
    for place in ("a/abbey", "y/yard/outdoor"):
        for number in range(6):
            draw(root / f"SUN397/{place}/sun_{place[0]}{number}.jpg")
    for name, numbers in (("Training_01.txt", (0, 1)), ("Testing_01.txt", (2, 3, 4))):
        lines = [f"/{p}/sun_{p[0]}{n}.jpg" for p in ("a/abbey", "y/yard/outdoor") for n in numbers]
        text(root / name, *lines)


def stanford_cars(root: Path, _: pytest.MonkeyPatch) -> None:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    names = np.array(["Audi S4", "BMW M3"], dtype=object)
    scipy.io.savemat(folder / "devkit/cars_meta.mat", {"class_names": names})
    for part, place in (
        ("train", "devkit/cars_train_annos.mat"),
        ("test", "cars_test_annos_withlabels.mat"),
    ):
        rows = [(f"{number:05d}.jpg", 1 + number % 2) for number in range(4)]
        table = np.array(rows, dtype=[("fname", object), ("class", object)])
        scipy.io.savemat(folder / place, {"annotations": table})
        for file, _number in rows:
            draw(folder / f"cars_{part}/{file}")


def fgvc_aircraft(root: Path, _: pytest.MonkeyPatch) -> None:
    folder = root / "fgvc-aircraft-2013b/data"
    text(folder / "variants.txt", "707-320", "Yak-42")
    number = 0
    for part, count in (("train", 4), ("val", 2), ("test", 4)):
        lines = []
        for place in range(count):
            lines.append(f"{number:07d} {('707-320', 'Yak-42')[place % 2]}")
            draw(folder / f"images/{number:07d}.jpg")
            number += 1
        text(folder / f"images_variant_{part}.txt", *lines)


def dtd(root: Path, _: pytest.MonkeyPatch) -> None:
    for place, part in enumerate(("train", "val", "test")):
        files = [f"{kind}/{kind}_{place}{n}.jpg" for kind in ("zigzagged", "banded") for n in "01"]
        text(root / f"dtd/dtd/labels/{part}1.txt", *files)
        for file in files:
            draw(root / f"dtd/dtd/images/{file}")


def pets(root: Path, _: pytest.MonkeyPatch) -> None:
    folder = root / "oxford-iiit-pet"
    for part, numbers in (("trainval", (1, 2)), ("test", (3,))):
        lines = [f"{n}_{k} {c} 1 1" for n, c in (("pug", 2), ("Bengal", 1)) for k in numbers]
        text(folder / f"annotations/{part}.txt", *lines)
        for line in lines:
            draw(folder / f"images/{line.split()[0]}.jpg")


def caltech101(root: Path, _: pytest.MonkeyPatch) -> None:
    for name in ("BACKGROUND_Google", "ant", "yin_yang"):
        for number in (1, 2, 3):
            draw(root / f"caltech101/101_ObjectCategories/{name}/image_{number:04d}.jpg")


def flowers102(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "flowers-102"
    for number in range(1, 9):
        draw(folder / f"jpg/image_{number:05d}.jpg")
    labels = np.array([1, 2, 1, 2, 1, 2, 1, 2])
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": labels})
    parts = {"trnid": [1, 2], "valid": [3, 4], "tstid": [5, 6, 7, 8]}
    scipy.io.savemat(folder / "setid.mat", parts)
    files = dict(datasets.Flowers102._file_dict)
    for key in ("label", "setid"):
        files[key] = (files[key][0], md5(folder / files[key][0]))
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)


Make = Callable[[Path, pytest.MonkeyPatch], None]
TRAIN, VALIDATION, TEST = "train", "validation", "test"
# By data set: how to make it, images by split (None: drawn later), the first classes.
CASES: dict[str, tuple[Make, dict[Any, int], tuple[str, ...]]] = {
    "CIFAR10": (cifar10, {None: 50, TEST: 10}, ("class 10", "class 9")),
    "CIFAR100": (cifar100, {None: 10, TEST: 10}, ("class 5", "class 4")),
    "STL10": (stl10, {None: 18, TEST: 8}, ("airplane", "bird")),
    "SVHN": (svhn, {None: 20, TEST: 20}, ("0", "1")),
    "ImageNet": (imagenet, {None: 6, TEST: 2}, ("n01440764", "n01443537")),
    "Food101": (food101, {None: 6, TEST: 4}, ("pho", "waffles")),
    "SUN397": (sun397, {None: 4, TEST: 6}, ("abbey", "yard/outdoor")),
    "StanfordCars": (stanford_cars, {None: 4, TEST: 4}, ("Audi S4", "BMW M3")),
    "FGVCAircraft": (
        fgvc_aircraft,
        {TRAIN: 4, VALIDATION: 2, TEST: 4},
        ("707-320", "Yak-42"),
    ),
    "DTD": (dtd, {TRAIN: 4, VALIDATION: 4, TEST: 4}, ("banded", "zigzagged")),
    "OxfordIIITPet": (pets, {None: 4, TEST: 2}, ("Bengal", "Pug")),
    "Caltech101": (caltech101, {None: 6}, ("ant", "yin_yang")),
    "Flowers102": (
        flowers102,
        {TRAIN: 2, VALIDATION: 2, TEST: 4},
        ("pink primrose", "hard-leaved pocket orchid"),
    ),
}


def made(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    CASES[name][0](root, monkeypatch)
    return read_torchvision(name, root, download=False)


def theirs(name: str, root: Path, part: int) -> Any:
    """The data set of torchvision itself for a part."""
    options = dict(KINDS[name].parts[part].options)
    if name == "ImageNet":
        return datasets.ImageFolder(root / str(options["root"]))
    return getattr(datasets, name)(root, **options)


def test_params_and_reader_know_the_same_data_sets():
    assert set(get_args(TorchvisionName)) == set(KINDS) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_images_classes_and_splits_are_those_of_torchvision(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = made(name, tmp_path / "root", monkeypatch)
    _, splits, first_classes = CASES[name]
    assert Counter(p.split for p in source.pictures) == splits
    assert source.class_names[:2] == first_classes
    assert source.refused == ()
    ours: Counter[tuple[str | None, str | None, bytes]] = Counter()
    for p in source.pictures:
        pixels = decode(p.location.read_bytes(), 3, 10**6)
        ours[p.split, p.class_name, pixels.tobytes()] += 1
    expected: Counter[tuple[str | None, str | None, bytes]] = Counter()
    for number, part in enumerate(KINDS[name].parts):
        for image, label in theirs(name, tmp_path / "root", number):
            class_name = source.class_names[label] if label is not None and label >= 0 else None
            expected[part.split, class_name, np.asarray(image.convert("RGB")).tobytes()] += 1
    if name == "SUN397":  # torchvision knows no partition; two of its images are in no list
        assert ours.total() == 10
        assert {pixels for _, _, pixels in ours} < {pixels for _, _, pixels in expected}
    else:
        assert ours == expected


def test_keys_are_paths_or_numbers_and_do_not_move_with_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    food = made("Food101", tmp_path / "a", monkeypatch)
    assert food.pictures[0].key == "food-101/images/pho/1"
    monkeypatch.undo()
    stl = made("STL10", tmp_path / "b", monkeypatch)
    assert [p.key for p in stl.pictures][::10] == [
        "test-000000",
        "train-000002",
        "unlabelled-000006",
    ]


def test_sun397_without_the_authors_lists_is_split_by_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sun397(tmp_path, monkeypatch)
    (tmp_path / "Testing_01.txt").unlink()
    source = read_torchvision("SUN397", tmp_path, download=False)
    assert Counter(p.split for p in source.pictures) == {None: 12}


def test_stl10s_unlabelled_images_are_for_training_and_not_all_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = made("STL10", tmp_path, monkeypatch)
    unlabelled = [p for p in source.pictures if p.class_name is None]
    assert [p.key for p in unlabelled] == [f"unlabelled-{n:06d}" for n in range(12)]
    split_of = assign_splits(source, SplitSizes(2, 0.1), 0)
    assert {split_of[p.key] for p in unlabelled} == {"train"}
    assert isinstance(unlabelled[0].location, ArrayImage)
    stored = np.fromfile(tmp_path / "stl10_binary/unlabeled_X.bin", np.uint8)
    seen = decode(unlabelled[3].location.read_bytes(), 3, 10**6)
    # Column by column, colour by colour.
    assert seen[5, 7].tolist() == stored.reshape(12, 3, 96, 96)[3, :, 7, 5].tolist()


@pytest.mark.parametrize("name", CASES)
def test_a_data_set_that_is_not_there_is_told_with_how_to_get_it(name: str, tmp_path: Path):
    with pytest.raises(UserError, match=rf"can't read {name} in(.|\n)*To have it") as told:
        read_torchvision(name, tmp_path, download=False)
    assert ("data.download: true" in str(told.value)) == KINDS[name].fetched
    assert KINDS[name].where in str(told.value)


@pytest.mark.parametrize("name", ["CIFAR10", "STL10", "SVHN"])
def test_a_changed_file_is_never_unpickled_or_used(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    CASES[name][0](tmp_path, monkeypatch)
    places = {
        "CIFAR10": "cifar-10-batches-py/data_batch_1",
        "STL10": "stl10_binary/unlabeled_X.bin",
        "SVHN": "train_32x32.mat",
    }
    victim = tmp_path / places[name]
    victim.write_bytes(victim.read_bytes() + b"more")
    with pytest.raises(UserError, match=f"can't read {name}"):
        read_torchvision(name, tmp_path, download=False)


@pytest.mark.parametrize("name", ["ImageNet", "StanfordCars"])
def test_what_torchvision_can_not_download_is_said(name: str, tmp_path: Path):
    with pytest.raises(UserError, match=f"torchvision can't download {name}"):
        read_torchvision(name, tmp_path, download=True)


def test_imagenets_halves_must_have_the_same_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    imagenet(tmp_path, monkeypatch)
    draw(tmp_path / "val/n09999999/x.JPEG")
    with pytest.raises(UserError, match="parts of ImageNet have other classes"):
        read_torchvision("ImageNet", tmp_path, download=False)


def test_params_lead_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pets(tmp_path, monkeypatch)
    source = read_source(
        DataParams(
            source="torchvision",
            name="OxfordIIITPet",
            root=str(tmp_path),
            image_size=32,
            channels=3,
            validation_images=1,
        )
    )
    assert len(source.pictures) == 6
    assert source.notes == {"torchvision": "OxfordIIITPet"}
