import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_iterator

from stages.data.build import Wanted, build_shards
from stages.data.folders import read_class_folders
from stages.data.reading import read_source
from stages.data.sources import Source
from stages.data.splits import SplitSizes
from stages.data.webdataset_source import read_webdataset
from stages.errors import UserError
from stages.sections.data import DataParams


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5), level, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def put(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def read(root: Path, *shards: str, json_label: str = "label") -> Source:
    return read_webdataset(root, shards, json_label)


def found(source: Source) -> dict[str, tuple[str | None, str | None]]:
    return {p.key: (p.class_name, p.split) for p in source.pictures}


def test_samples_are_those_that_webdataset_itself_reads(tmp_path: Path):
    """Keys, image bytes and classes, of nested paths, dots and upper-case endings."""
    members = [
        ("a/b.c/000.png", png(1)),
        ("a/b.c/000.cls", b"3"),
        ("a/b.c/001.JPG", png(2)),
        ("a/b.c/001.Cls", b"11"),
        ("x/002.seg.png", png(3)),
        ("x/002.webp", png(4)),
        ("x/002.cls", b"3\n"),
        ("__meta__/x.png", png(5)),
        ("README", b"hello"),
        (".hidden.png", png(6)),
        ("003.png", png(7)),
    ]
    path = put(tmp_path / "some.tar", *members)
    theirs = {}
    files = tar_file_iterator(io.BytesIO(path.read_bytes()))
    for sample in group_by_keys({**file, "__url__": "some.tar"} for file in files):
        image = next(sample[e] for e in ("png", "jpg", "webp") if e in sample)
        theirs[sample["__key__"]] = (image, sample["cls"].strip() if "cls" in sample else None)
    ours = {
        p.key: (p.location.read_bytes(), p.class_name.encode() if p.class_name else None)
        for p in read(tmp_path).pictures
    }
    assert ours == theirs
    assert len(ours) == 4


def test_classes_come_from_json_where_there_is_no_cls(tmp_path: Path):
    put(
        tmp_path / "a.tar",
        ("1.png", png(1)),
        ("1.json", json.dumps({"label": 4, "kind": "cat"}).encode()),
        ("2.png", png(2)),
        ("2.json", json.dumps({"label": 10, "kind": "dog"}).encode()),
        ("3.png", png(3)),
        ("3.json", b"{}"),
        ("4.png", png(4)),
        ("4.json", b'{"label": 4}'),
        ("4.cls", b"10"),
        ("5.png", png(5)),
        ("5.cls", b"-1"),
    )
    source = read(tmp_path)
    assert source.class_names == ("4", "10")
    assert [p.class_name for p in source.pictures] == ["4", "10", None, "10", None]
    assert read(tmp_path, json_label="kind").class_names == ("10", "cat", "dog")


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train/0.tar", "val/0.tar", "test/0.tar"], ["test", "train", "validation"]),
        (["in-train-00.tar", "in-val-00.tar", "in-val-01.tar"], ["train"] + ["validation"] * 2),
        (["training.tar", "testing.tar"], [None, None]),
        (["train-00.tar", "more.tar"], [None, None]),
    ],
)
def test_a_split_is_a_word_of_every_path_or_of_none(
    tmp_path: Path, names: list[str], splits: list[str | None]
):
    for number, name in enumerate(names):
        sample = [(f"{name}-{number}.png".replace(".tar", ""), png(number))]
        put(tmp_path / name, *sample, (sample[0][0].replace("png", "cls"), str(number).encode()))
    assert sorted([p.split for p in read(tmp_path).pictures], key=str) == sorted(splits, key=str)


def test_shards_that_count_alike_get_their_name_before_the_key(tmp_path: Path):
    for name in ("a", "b"):
        put(tmp_path / f"{name}.tar", ("0.png", png(1)), ("0.cls", name.encode()))
    assert found(read(tmp_path)) == {"a/0": ("a", None), "b/0": ("b", None)}


def test_one_shard_or_some_of_a_folder_can_be_named(tmp_path: Path):
    for name in ("a", "b", "c"):
        samples = [(f"{name}{n}.{e}", d) for n in "01" for e, d in (("png", png(1)), ("cls", b"1"))]
        samples[-1] = (samples[-1][0], b"2")
        put(tmp_path / f"{name}.tar", *samples)
    assert sorted(found(read(tmp_path, "a.tar", "c.tar"))) == ["a0", "a1", "c0", "c1"]
    assert sorted(found(read(tmp_path / "b.tar"))) == ["b0", "b1"]
    with pytest.raises(UserError, match=r"lacks 1 of data.shards: d.tar"):
        read(tmp_path, "a.tar", "d.tar")


def test_a_folder_of_our_own_shards_gives_back_what_went_in(tmp_path: Path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        for number in range(20):
            path = tmp_path / f"in/{name}/{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    first = read_class_folders(tmp_path / "in")
    wanted = Wanted(SplitSizes(4, 0.2), 0, 1, 10**6, 10, 0.0)
    build_shards(first, wanted, tmp_path / "out", tmp_path / "work", 1)
    second = read(tmp_path / "out")
    assert second.class_names == ("cat", "dog")
    assert [(p.key, p.class_name) for p in second.pictures] == [
        (p.key, p.class_name) for p in first.pictures
    ]
    assert {p.split for p in second.pictures} == {"train", "validation", "test"}
    assert [p.location.read_bytes() for p in second.pictures] == [
        p.location.read_bytes() for p in first.pictures
    ]


def test_shards_can_be_unlabelled_images_beside_another_source(tmp_path: Path):
    for number in (1, 2):
        path = tmp_path / f"root/{number}/{number}.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(png(number))
    put(tmp_path / "bulk/x.tar", ("0.png", png(3)), ("0.cls", b"7"))
    put(tmp_path / "bulk/y.tar", ("0.png", png(4)))
    source = read_source(
        DataParams(
            source="folder",
            root=str(tmp_path / "root"),
            unlabelled=[str(tmp_path / "bulk")],
            image_size=32,
            channels=1,
            validation_images=1,
        )
    )
    assert found(source) == {
        "1/1": ("1", None),
        "2/2": ("2", None),
        "unlabelled/bulk/x/0": (None, None),
        "unlabelled/bulk/y/0": (None, None),
    }


def test_members_that_are_no_images_are_counted(tmp_path: Path):
    put(
        tmp_path / "a.tar",
        *[("1.png", png(1)), ("1.cls", b"1"), ("1.txt", b"a cat"), ("1.seg.png", png(9))],
        *[("2.png", png(2)), ("2.cls", b"2"), ("2.txt", b"a dog"), ("note.txt", b"hello")],
    )
    assert read(tmp_path).notes == {
        "webdataset_shards": 1,
        "members_passed_over": {"seg.png": 1, "txt": 3},
    }


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("9.png", b""), ("9.cls", b"\xff\xfe")], "its .cls is no text"),
        ([("9.png", b""), ("9.cls", b"a\x00b")], "its .cls is no class: 'a\\x00b'"),
        ([("9.png", b""), ("9.json", b"{")], "its .json can't be read"),
        ([("9.png", b""), ("9.json", b"[" * 100_000)], "its .json can't be read"),
        ([("9.png", b""), ("9.json", b'{"label": [1]}')], "no text or whole number as label"),
        ([("9.png", b""), ("9.json", b'{"label": true}')], "no text or whole number as label"),
        ([("9.png", b""), ("9.json", b" " * (2**20 + 1))], "its .json has 1048577 bytes"),
        ([("9.png", b""), ("9.jpg", b"")], "has 2 images: png, jpg"),
        ([("9.cls", b"1")], "no image"),
    ],
)
def test_a_sample_that_can_not_be_used_is_refused_and_told(
    tmp_path: Path, members: list[tuple[str, bytes]], reason: str
):
    good = [("1.png", png(1)), ("1.cls", b"1"), ("2.png", png(2)), ("2.cls", b"2")]
    put(tmp_path / "a.tar", *good, *members)
    source = read(tmp_path)
    assert len(source.pictures) == 2
    ((name, told),) = source.refused
    assert name == "a.tar:9"
    assert reason in told


class Exploit:
    """Unpickled, it would leave a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


@pytest.mark.parametrize("name", ["1.pyd", "1.pickle", "1.PKL", "1.pth", "1.meta.pt", "x/1.py"])
def test_a_member_that_can_hold_code_refuses_the_shard_and_is_not_run(tmp_path: Path, name: str):
    import pickle

    exploit = pickle.dumps(Exploit(str(tmp_path / "ran")))
    put(tmp_path / "a.tar", ("1.png", png(1)), ("1.cls", b"1"), (name, exploit))
    with pytest.raises(
        UserError, match=rf"a.tar holds '{name}', a kind of file that can hold code"
    ):
        read(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["/etc/1.png", "../1.png", "a/../../1.png", "a\\1.png"])
def test_a_name_that_climbs_out_refuses_the_shard(tmp_path: Path, name: str):
    put(tmp_path / "a.tar", (name, png(1)))
    with pytest.raises(UserError, match="unsafe name"):
        read(tmp_path)


def test_a_link_in_a_shard_refuses_it(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("1.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(UserError, match="no plain file"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no .tar file"),
        ({"a.tar.gz": []}, r"packed shards: a.tar.gz(.|\n)*unpack them"),
        ({"a.tar": [("1.png", b""), ("1.cls", b"1"), ("2.png", b""), ("2.cls", b"1")]}, "only the"),
        ({"a.tar": [("1.png", b""), ("2.png", b"")]}, "no class at all"),
        ({"a.tar": [("1.png", b""), ("1.png", b"")]}, "the same key twice: 1.png"),
        ({"a.tar": [("1.txt", b"")]}, "holds no image that can be used"),
    ],
)
def test_shards_that_can_not_be_used(
    tmp_path: Path, files: dict[str, list[tuple[str, bytes]]], message: str
):
    for name, members in files.items():
        put(tmp_path / name, *members)
    with pytest.raises(UserError, match=message):
        read(tmp_path)


@pytest.mark.parametrize("name", ["pipe:touch ran", "s3://bucket/a.tar", "nowhere"])
def test_a_root_that_is_no_folder_is_nothing_but_a_missing_one(tmp_path: Path, name: str):
    with pytest.raises(UserError, match="is not there"):
        read(tmp_path / name)
    assert not list(tmp_path.iterdir())


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=12))
def test_any_bytes_are_samples_or_a_message(tmp_path: Path, changes: list[tuple[float, int]]):
    path = put(
        tmp_path / "a.tar",
        *[
            ("a/1.png", png(1)),
            ("a/1.cls", b"1"),
            ("a/2.png", png(2)),
            ("a/2.json", b'{"label":2}'),
        ],
    )
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    path.write_bytes(data)
    try:
        source = read(tmp_path)
    except UserError:
        return
    for picture in source.pictures:
        assert len(picture.location.read_bytes()) == picture.location.n_bytes
