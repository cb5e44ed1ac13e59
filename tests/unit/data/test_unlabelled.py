from pathlib import Path

import pytest

from stages.data.reading import read_source
from stages.data.sources import Source
from stages.errors import UserError
from stages.sections.data import DataParams


def put(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(file.encode())
    return root


def read(root: Path, *unlabelled: Path) -> Source:
    return read_source(
        DataParams(
            source="folder",
            root=str(root),
            unlabelled=[str(folder) for folder in unlabelled],
            image_size=32,
            channels=3,
            validation_images=1,
        )
    )


def test_images_of_further_folders_have_no_label_and_keys_of_their_own(tmp_path: Path):
    root = put(tmp_path / "root", "cat/1.png", "dog/2.png")
    bulk = put(tmp_path / "2023", "cat/1.png", "deep/er/x.jpg")
    more = put(tmp_path / "2024", "1.png")
    source = read(root, bulk, more)
    assert {p.key: p.class_name for p in source.pictures} == {
        "cat/1": "cat",
        "dog/2": "dog",
        "unlabelled/2023/cat/1": None,
        "unlabelled/2023/deep/er/x": None,
        "unlabelled/2024/1": None,
    }
    assert [p.key for p in source.pictures] == sorted(p.key for p in source.pictures)
    assert {p.split for p in source.pictures} == {None}
    assert source.class_names == ("cat", "dog")
    assert source.pictures[2].location.read_bytes() == b"cat/1.png"


def test_a_further_folder_inside_the_labelled_one_is_no_class_of_it(tmp_path: Path):
    root = put(tmp_path, "cat/1.png", "dog/2.png", "bulk/3.png")
    source = read(root, root / "bulk")
    assert source.class_names == ("cat", "dog")
    assert [p.key for p in source.pictures] == ["cat/1", "dog/2", "unlabelled/bulk/3"]


@pytest.mark.parametrize(
    ("files", "names", "message"),
    [
        ((), ("bulk",), "bulk is not there"),
        (("bulk/notes.txt",), ("bulk",), "bulk holds no image that can be used"),
        (("bulk",), ("bulk",), "bulk is not a folder"),
        (("a/b/1.png", "c/b/1.png"), ("a/b", "c/b"), "several folders are called b"),
        (("root/unlabelled/b/1.png", "b/1.png"), ("b",), "the same key twice: unlabelled/b/1"),
    ],
)
def test_further_folders_that_can_not_be_used(
    tmp_path: Path, files: tuple[str, ...], names: tuple[str, ...], message: str
):
    root = put(tmp_path, "root/cat/1.png", "root/dog/2.png", *files) / "root"
    with pytest.raises(UserError, match=message):
        read(root, *(tmp_path / name for name in names))
