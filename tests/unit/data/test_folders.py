import os
from pathlib import Path

import pytest

from stages.data.folders import read_class_folders, read_labels_csv
from stages.data.sources import Source
from stages.errors import UserError


def put(root: Path, *files: str) -> Path:
    """Files whose content nobody reads here."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(file.encode())
    return root


def found(source: Source) -> dict[str, tuple[str | None, str | None]]:
    return {p.key: (p.class_name, p.split) for p in source.pictures}


def test_a_folder_per_class(tmp_path: Path):
    root = put(tmp_path, "dog/b.JPEG", "cat/deep/a.png", "cat/notes.txt", "cat/.hidden.png")
    source = read_class_folders(root)
    assert found(source) == {"cat/deep/a": ("cat", None), "dog/b": ("dog", None)}
    assert source.class_names == ("cat", "dog")
    assert [p.suffix for p in source.pictures] == ["png", "jpg"]
    assert source.pictures[1].location.read_bytes() == b"dog/b.JPEG"


def test_splits_above_the_classes_are_kept(tmp_path: Path):
    root = put(tmp_path, "train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "test/dog/4.png")
    assert found(read_class_folders(root)) == {
        "test/dog/4": ("dog", "test"),
        "train/cat/1": ("cat", "train"),
        "train/dog/2": ("dog", "train"),
        "val/cat/3": ("cat", "validation"),
    }


@pytest.mark.parametrize("name", ["unlabelled", "unlabeled"])
def test_images_beside_the_classes_have_no_label(tmp_path: Path, name: str):
    source = read_class_folders(put(tmp_path, "cat/1.png", "dog/2.png", f"{name}/3.png"))
    assert found(source)[f"{name}/3"] == (None, None)
    assert source.class_names == ("cat", "dog")


def test_classes_that_are_numbers_are_ordered_as_numbers(tmp_path: Path):
    source = read_class_folders(put(tmp_path, "10/a.png", "9/b.png", "0/c.png"))
    assert source.class_names == ("0", "9", "10")


def test_a_dot_in_a_name_would_cut_the_key_short_and_becomes_a_line(tmp_path: Path):
    source = read_class_folders(put(tmp_path, "v1.0/a.b.png", "dog/2.png"))
    assert sorted(found(source)) == ["dog/2", "v1.0/a_b"]


def test_links_are_followed_and_a_circle_of_links_ends(tmp_path: Path):
    root = put(tmp_path / "root", "dog/2.png")
    put(tmp_path / "elsewhere", "1.png")
    (root / "cat").symlink_to(tmp_path / "elsewhere")
    (root / "dog/again").symlink_to(root)
    assert sorted(found(read_class_folders(root))) == ["cat/1", "dog/2"]


def test_a_name_that_can_be_no_key_is_refused_and_listed(tmp_path: Path):
    root = put(tmp_path, "cat/1.png", "dog/2.png", "dog/a\nb.png")
    source = read_class_folders(root)
    assert source.refused == (("dog/a\nb.png", "its name has control characters or a backslash"),)
    assert len(source.pictures) == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "holds no image that can be used"),
        (("cat/notes.txt",), "holds no image that can be used"),
        (("cat/1.png", "cat/2.png"), "only the class 'cat'; a classifier needs at least two"),
        (("unlabelled/1.png",), "no class at all"),
        (("cat/1.png", "dog/2.png", "stray.png"), "1 images lie outside the class folders: stray"),
        (("cat/1.png", "cat/1.jpg", "dog/2.png"), "the same key twice: cat/1"),
    ],
)
def test_folders_that_can_not_be_used(tmp_path: Path, files: tuple[str, ...], message: str):
    with pytest.raises(UserError, match=message):
        read_class_folders(put(tmp_path, *files))


def test_a_root_that_is_no_folder(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere is not there.\n  params.yaml, data.root"):
        read_class_folders(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is not a folder"):
        read_class_folders(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_folder_is_named(tmp_path: Path):
    root = put(tmp_path, "cat/1.png", "dog/2.png")
    (root / "dog").chmod(0)
    try:
        with pytest.raises(UserError, match="dog can't be read"):
            read_class_folders(root)
    finally:
        (root / "dog").chmod(0o700)


def labelled(tmp_path: Path, text: str) -> Source:
    root = put(tmp_path / "images", "a.png", "b.jpg", "deep/c.png", "d.png")
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    return read_labels_csv(root, tmp_path / "labels.csv")


@pytest.mark.parametrize("head", ["", "key,label\n", "\ufefffilename,class\n"])
def test_a_list_names_some_of_the_images(tmp_path: Path, head: str):
    source = labelled(tmp_path, head + "a,cat\n./b.jpg, dog \ndeep/c.png,\n\n")
    assert found(source) == {
        "a": ("cat", None),
        "b": ("dog", None),
        "d": (None, None),
        "deep/c": (None, None),
    }


def test_a_third_column_names_the_split(tmp_path: Path):
    source = labelled(tmp_path, "a,cat,test\nb,dog,train\ndeep/c,dog,val\nd,cat,\n")
    assert [p.split for p in source.pictures] == ["test", "train", None, "validation"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,cat\nx,dog\ny,dog\nb,dog\n", "labels for 2 images that are not in .*: x, y"),
        ("a,cat\na,dog\n", "line 2: the same key twice: a"),
        ("a,cat\na.png,dog\n", "names a.png twice, with and without its ending"),
        ("a,cat\nb\n", "line 2: found 'b'; write key,label"),
        ("a,cat\nb,dog,holdout\n", "line 2: no split 'holdout'"),
        ("a,cat\nb,cat\n", "only the class 'cat'"),
        ("", "no class at all"),
    ],
)
def test_lists_that_can_not_be_used(tmp_path: Path, text: str, message: str):
    with pytest.raises(UserError, match=message):
        labelled(tmp_path, text)


def test_many_missing_images_are_not_all_listed(tmp_path: Path):
    lines = "".join(f"x{number:02d},cat\n" for number in range(30))
    with pytest.raises(UserError, match=r"30 images .*: x00, x01, x02, x03, x04 and 25 more"):
        labelled(tmp_path, lines)


def test_a_list_that_is_no_text_or_not_there(tmp_path: Path):
    root = put(tmp_path / "images", "a.png")
    with pytest.raises(UserError, match=r"labels.csv is not there"):
        read_labels_csv(root, tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_bytes(b"a,\xff\xfe\n")
    with pytest.raises(UserError, match="can't be read as lines of key,label"):
        read_labels_csv(root, tmp_path / "labels.csv")
