from pathlib import Path

import pytest

from stages.data.folders import read_labels_csv
from stages.data.layout import recognise
from stages.errors import UserError


def put(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def test_folders_are_classes_but_for_those_called_unlabelled(tmp_path: Path):
    put(tmp_path, "cat/1.png", "dog/2.png", "unlabelled/3.png", "unlabelled_2024/4.png")
    assert recognise(tmp_path, None, [Path("more")]) == {
        "source": "folder",
        "root": str(tmp_path),
        "unlabelled": [str(tmp_path / "unlabelled_2024"), "more"],
    }


def test_what_stands_beside_a_folder_labelled_has_no_labels(tmp_path: Path):
    put(tmp_path, "labelled/cat/1.png", "labelled/dog/2.png", "2023/3.png", "2024/4.png")
    found = recognise(tmp_path, None, [])
    assert found["root"] == str(tmp_path / "labelled")
    assert found["unlabelled"] == [str(tmp_path / "2023"), str(tmp_path / "2024")]


@pytest.mark.parametrize(
    ("place", "images", "root"),
    [
        ("labels.csv", ["1.png", "2.png"], "."),
        ("any.csv", ["1.png", "2.png"], "."),
        ("any.csv", ["images/1.png", "images/2.png"], "images"),
        ("../labels.csv", ["1.png", "2.png"], "."),
    ],
)
def test_a_list_that_names_images_is_found(
    tmp_path: Path, place: str, images: list[str], root: str
):
    folder = put(tmp_path / "photos", *images)
    (folder / place).write_text("file,class\n./1,cat\n2.png,dog\n")
    assert recognise(folder, None, []) == {
        "source": "labels_csv",
        "root": str(folder / root),
        "labels_csv": str(folder / place).replace("photos/../", ""),
        "unlabelled": [],
    }


def test_tar_files_are_webdataset_shards(tmp_path: Path):
    folder = put(tmp_path, "train/0.tar", "val/0.tar", "index.json")
    told = {"source": "webdataset", "root": str(folder), "unlabelled": []}
    assert recognise(folder, None, []) == told
    assert recognise(folder / "val/0.tar", None, [])["source"] == "webdataset"


def test_what_a_data_set_unpacks_to_is_that_data_set(tmp_path: Path):
    put(tmp_path, "cifar-10-batches-py/data_batch_1")
    told = {"source": "torchvision", "root": str(tmp_path), "unlabelled": [], "name": "CIFAR10"}
    assert recognise(tmp_path, None, []) == told


def test_a_table_that_names_no_image_is_no_list_of_labels(tmp_path: Path):
    put(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "cameras.csv").write_text("camera,year\na,2020\n")
    assert recognise(tmp_path, None, [])["source"] == "folder"


def test_the_list_that_is_asked_for_wins(tmp_path: Path):
    put(tmp_path, "1.png", "2.png")
    for name in ("first.csv", "second.csv"):
        (tmp_path / name).write_text("1,cat\n2,dog\n")
    with pytest.raises(UserError, match=r"first.csv, second.csv.\n  Say which: --labels FILE"):
        recognise(tmp_path, None, [])
    second = tmp_path / "second.csv"
    assert recognise(tmp_path, second, [])["labels_csv"] == str(second)


def test_a_list_that_names_no_image_is_left_to_its_reader_to_complain_of(tmp_path: Path):
    put(tmp_path, "1.png", "2.png")
    (tmp_path / "labels.csv").write_text("key;label\n1.png;cat\n")
    found = recognise(tmp_path, None, [])
    assert found["labels_csv"] == str(tmp_path / "labels.csv")
    with pytest.raises(UserError, match="line 1: found 'key;label'; write key,label"):
        read_labels_csv(tmp_path, Path(found["labels_csv"]))


def test_a_flat_folder_without_a_list_needs_one(tmp_path: Path):
    with pytest.raises(UserError, match=r"holds 2 images and no word(.|\n)*1.png,cat"):
        recognise(put(tmp_path, "1.png", "2.png"), None, [])
