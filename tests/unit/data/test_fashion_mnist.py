import gzip
import hashlib
import socket
import urllib.error
from pathlib import Path

import numpy as np
import pytest

from stages.data import fashion_mnist, fashion_mnist_files
from stages.data.fashion_mnist import read_fashion_mnist
from stages.data.fashion_mnist_files import FILES, MIRROR, FetchError, IdxFile, obtain
from stages.data.images import decode
from stages.errors import UserError

COUNTS = {"train": 20, "test": 10}


def content(part: str, kind: str) -> bytes:
    """A small file in the IDX format, of pictures or of classes."""
    count = COUNTS[part]
    if kind == "labels":
        return bytes([0, 0, 8, 1, *count.to_bytes(4, "big")]) + bytes(n % 10 for n in range(count))
    pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return (
        bytes([0, 0, 8, 3, *count.to_bytes(4, "big"), 0, 0, 0, 28, 0, 0, 0, 28]) + pixels.tobytes()
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], IdxFile]:
    """Fashion-MNIST with 30 pictures: the digests are those of the small files."""
    files = {}
    for (part, kind), file in FILES.items():
        data = content(part, kind)
        files[part, kind] = IdxFile(file.name, len(data), hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(fashion_mnist, "FILES", files)
    monkeypatch.setattr(fashion_mnist_files, "FILES", files)
    fashion_mnist._read_images.cache_clear()
    return files


def write(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for (part, kind), file in FILES.items():
        (folder / file.name).write_bytes(gzip.compress(content(part, kind)))
    return folder


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_pictures_of_a_folder_come_with_key_class_and_split(tmp_path: Path, below: str):
    write(tmp_path / below)
    source = read_fashion_mnist(tmp_path, tmp_path / "cache")
    assert [p.key for p in source.pictures[:2]] == ["test-00000", "test-00001"]
    assert [p.split for p in source.pictures] == ["test"] * 10 + [None] * 20
    assert source.pictures[13].key == "train-00003"
    assert source.pictures[13].class_name == "Dress"
    pixels = decode(source.pictures[13].location.read_bytes(), 1, 10_000)
    written = np.frombuffer(content("train", "images")[16:], np.uint8).reshape(-1, 28, 28)
    assert np.array_equal(pixels[:, :, 0], written[3])
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("small")
def test_a_missing_or_damaged_file_is_named_with_its_digest(tmp_path: Path):
    write(tmp_path)
    labels = tmp_path / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(bytes(18)))
    digest = hashlib.sha256(bytes(18)).hexdigest()[:16]
    with pytest.raises(UserError, match=f"t10k-labels-idx1-ubyte.gz is another .* {digest}"):
        read_fashion_mnist(tmp_path, tmp_path / "cache")
    labels.write_bytes(b"\x1f\x8b broken")
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte.gz is damaged"):
        read_fashion_mnist(tmp_path, tmp_path / "cache")
    labels.unlink()
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte.gz is not there"):
        read_fashion_mnist(tmp_path, tmp_path / "cache")


@pytest.mark.usefixtures("small")
def test_a_gzip_that_unpacks_to_more_than_it_should_is_not_unpacked(tmp_path: Path):
    write(tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(50_000_000)))
    assert len(fashion_mnist_files.unpack(path, 18)) == 19


@pytest.mark.usefixtures("small")
def test_the_ways_are_tried_in_turn_and_the_files_kept(tmp_path: Path):
    asked = []

    def refuses(folder: Path) -> None:
        asked.append("refuses")
        write(folder)  # half of it may be there
        raise FetchError("no network")

    def gives(folder: Path) -> None:
        asked.append("gives")
        write(folder)

    cache = tmp_path / "raw" / "fashion_mnist"
    assert obtain(cache, {"one": refuses, "two": gives}) == cache
    assert asked == ["refuses", "gives"]
    assert sorted(p.name for p in cache.iterdir()) == sorted(f.name for f in FILES.values())
    assert obtain(cache, {"one": refuses}) == cache  # kept: nobody is asked
    assert asked == ["refuses", "gives"]


@pytest.mark.usefixtures("small")
def test_one_message_tells_what_each_way_answered(tmp_path: Path):
    def refuses(_: Path) -> None:
        raise FetchError("no network")

    def lies(folder: Path) -> None:
        write(folder)
        (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"else"))

    with pytest.raises(UserError) as caught:
        obtain(tmp_path / "cache", {"download": refuses, "Debian": lies})
    first, *rest = str(caught.value).splitlines()
    assert first == "Fashion-MNIST could not be had in any of three ways:"
    assert "1. a folder: data.root in params.yaml is null" in rest[0]
    assert rest[1] == "  2. download: no network"
    assert rest[2].startswith("  3. Debian: train-labels-idx1-ubyte.gz is another file or damaged")
    assert not (tmp_path / "cache").exists()


def test_a_machine_without_network_falls_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError(socket.gaierror(-3, "Temporary failure in name resolution"))

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(FetchError, match="Temporary failure in name resolution"):
        fashion_mnist_files.download(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match="apt-get and dpkg-deb are not on this machine"):
        fashion_mnist_files.from_debian(tmp_path)


def fake_apt(folder: Path, script: str) -> None:
    for name in ("apt-get", "dpkg-deb"):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)


def test_stale_package_lists_are_fetched_anew_into_a_folder_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tools = tmp_path / "bin"
    tools.mkdir()
    fake_apt(
        tools,
        f'echo "$0 $*" >> {tmp_path}/log\n'
        'case "$*" in\n'
        "  *State*download*) : > dataset.deb;;\n"
        "  *download*) echo 'E: Unable to locate package' >&2; exit 100;;\n"
        "  -x*) mkdir -p unpacked/usr && : > unpacked/usr/t10k-labels-idx1-ubyte.gz;;\n"
        "esac",
    )
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    (tmp_path / "out").mkdir()
    fashion_mnist_files.from_debian(tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["t10k-labels-idx1-ubyte.gz"]
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.split()[-1] for line in lines[:3]] == [
        "dataset-fashion-mnist",
        "update",
        "dataset-fashion-mnist",
    ]
    assert "Dir::State::lists=" in lines[1]


def test_the_last_error_of_apt_is_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_apt(tmp_path, "echo 'W: old' >&2; echo 'E: no such package' >&2; exit 100")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(FetchError, match=r"^E: no such package$"):
        fashion_mnist_files.from_debian(tmp_path)


def test_mirror_and_file_names_are_torchvisions():
    from torchvision.datasets import FashionMNIST

    assert FashionMNIST.mirrors[0] == MIRROR
    assert {name for name, _ in FashionMNIST.resources} == {f.name for f in FILES.values()}
    assert tuple(FashionMNIST.classes) == fashion_mnist.CLASS_NAMES
