"""What lies where the images come from: told when it changed, cheap when it did not."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from stages import listing
from stages.sections.data import DataParams

SIZES = {"image_size": 8, "channels": 1, "validation_images": 1}


def data(**values: Any) -> DataParams:
    return DataParams(**SIZES, **values)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("cat/1.png", "dog/2.png", "more/3.png"):
        Path(name if name.startswith("more") else f"photos/{name}").parent.mkdir(parents=True)
        Path(name if name.startswith("more") else f"photos/{name}").write_bytes(b"1234")
    Path("labels.csv").write_text("key,label\n")
    return Path("photos")


def looked(monkeypatch: pytest.MonkeyPatch, params: DataParams) -> bytes:
    class Everything:
        data = params

    monkeypatch.setattr(listing, "load_params", Everything)
    listing.main()
    return listing.LISTING.read_bytes()


def add(photos: Path) -> None:
    (photos / "cat/9.png").write_bytes(b"9")


def remove(photos: Path) -> None:
    (photos / "cat/1.png").unlink()


def rename(photos: Path) -> None:
    (photos / "cat/1.png").rename(photos / "cat/0.png")


def replace_by_as_many_bytes(photos: Path) -> None:
    before = (photos / "cat/1.png").stat().st_mtime_ns
    (photos / "cat/1.png").write_bytes(b"4321")
    os.utime(photos / "cat/1.png", ns=(before + 1, before + 1))


def label(_: Path) -> None:
    Path("labels.csv").write_text("key,label\ncat/1,cat\n")


def add_unlabelled(_: Path) -> None:
    Path("more/4.png").write_bytes(b"4")


@pytest.mark.parametrize(
    "change",
    [add, remove, rename, replace_by_as_many_bytes, label, add_unlabelled],
    ids=lambda change: change.__name__,
)
def test_a_change_is_seen_and_none_leaves_the_same_bytes(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: Any
):
    params = data(source="labels_csv", root="photos", labels_csv="labels.csv", unlabelled=["more"])
    first = looked(monkeypatch, params)
    assert "photos holds 2 files" in capsys.readouterr().out
    assert looked(monkeypatch, params) == first
    assert capsys.readouterr().out == ""
    change(photos)
    assert looked(monkeypatch, params) != first
    out = capsys.readouterr().out
    assert out.count("listing: ") == 1
    if change is add:
        assert "photos holds 3 files, +1" in out


def test_what_is_hidden_and_when_the_labels_were_written_counts_for_nothing(
    photos: Path, monkeypatch: pytest.MonkeyPatch
):
    params = data(source="labels_csv", root="photos", labels_csv="labels.csv")
    first = looked(monkeypatch, params)
    (photos / ".thumbnails").mkdir()
    (photos / ".thumbnails/1.png").write_bytes(b"1")
    os.utime("labels.csv", (1, 1))
    assert looked(monkeypatch, params) == first


def test_a_place_that_is_gone_counts_as_it_was_seen_last(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    params = data(source="folder", root="photos")
    first = looked(monkeypatch, params)
    photos.rename("elsewhere")
    assert looked(monkeypatch, params) == first
    assert "photos can't be seen; taken as it was last" in capsys.readouterr().out
    assert json.loads(looked(monkeypatch, data(source="folder", root="new"))) == {"new": None}


def test_the_default_images_and_torchvisions_never_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for params in (
        data(source="fashion_mnist"),
        data(source="torchvision", name="DTD", root="sets"),
    ):
        assert json.loads(looked(monkeypatch, params)) == {}


@pytest.mark.parametrize("source", ["webdataset", "published"])
def test_shards_at_an_address_are_looked_at_by_what_it_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
):
    monkeypatch.chdir(tmp_path)
    there = {"a.tar": b"12", "index.json": b"{}"}

    class Address:
        def __init__(self, address: str) -> None:
            assert address == "s3://bucket/shards"

        def marks(self, names: list[str]) -> dict[str, str]:
            assert names == []
            return {name: f"{len(content)} {content}" for name, content in there.items()}

        def read(self, name: str, most_bytes: int) -> bytes:
            return there[name]

    monkeypatch.setattr("stages.data.remote.Remote", Address)
    at = {"root" if source == "webdataset" else "shards_at": "s3://bucket/shards"}
    params = data(source=source, **at)
    first = looked(monkeypatch, params)
    assert looked(monkeypatch, params) == first
    there |= {"a.tar": b"21", "index.json": b"[]"}  # as many bytes
    assert looked(monkeypatch, params) != first
