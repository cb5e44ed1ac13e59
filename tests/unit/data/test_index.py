import io
import json
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.data.build import Wanted, build_shards
from stages.data.folders import read_class_folders
from stages.data.images import encode_png
from stages.data.index import (
    check_file,
    check_headers,
    fingerprint_of,
    read_index,
    read_members,
)
from stages.data.member_table import MemberTable, load_table
from stages.data.shards import file_sha256
from stages.data.splits import SplitSizes
from stages.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for number in range(10):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            (root / name / f"{number}.png").write_bytes(encode_png(pixels))
    folder = tmp_path_factory.mktemp("data") / "shards"
    wanted = Wanted(SplitSizes(4, 0.2), 0, 1, 10_000, 5, 0.0)
    build_shards(read_class_folders(root), wanted, folder, folder.with_name("work"), workers=1)
    return folder


@pytest.fixture
def shards(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "shards"))


def shard_of(folder: Path, number: int) -> Path:
    """A shard of the training split."""
    return folder / read_index(folder).split("train").shards[number].name


def table_of(folder: Path) -> Path:
    """The member table of the training split."""
    return folder / read_index(folder).split("train").members_name


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """An index that lies, and whose fingerprint fits the lie."""
    content = json.loads((folder / "index.json").read_text())
    change(content)
    content["fingerprint"] = fingerprint_of(content)
    (folder / "index.json").write_text(json.dumps(content))


def rewrite_table(folder: Path, table: MemberTable) -> None:
    """A member table that lies, and digests that fit it."""
    path = table_of(folder)
    path.write_bytes(table.to_bytes())

    def change(content: dict[str, Any]) -> None:
        members = content["splits"]["train"]["members"]
        members.update(bytes=path.stat().st_size, sha256=file_sha256(path))

    rewrite(folder, change)


def test_an_index_comes_back_as_it_was_written(whole: Path):
    index = read_index(whole)
    assert index.class_names == ("cat", "dog")
    for name in ("train", "validation", "test"):
        assert index.split(name).images == sum(s.images for s in index.split(name).shards)
        assert all(shard.images <= 5 for shard in index.split(name).shards)
    table = read_members(index, "train")
    assert len(table.keys) == index.split("train").images == 12
    assert table.to_bytes() == table_of(whole).read_bytes()
    check_headers(shard_of(whole, 1), table, 1)


def test_no_index_says_which_stage_makes_it(tmp_path: Path):
    with pytest.raises(UserError, match=r"index.json is not there.*\n.*dvc repro shard"):
        read_index(tmp_path)


def test_an_index_edited_by_hand_is_refused(shards: Path):
    text = (shards / "index.json").read_text()
    (shards / "index.json").write_text(text.replace('"dog"', '"fox"'))
    with pytest.raises(UserError, match="changed after it was written"):
        read_index(shards)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": "other"}', "[" * 100_000])
def test_an_index_of_another_kind_is_refused(shards: Path, text: str):
    (shards / "index.json").write_text(text)
    with pytest.raises(UserError, match=r"no JSON|of another kind"):
        read_index(shards)


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.tar", "/etc/passwd", "pipe:cat x.tar", "http://host/x.tar", "a\\b.tar", ""),
        *("s3:x.tar", "x|y.tar", "x.pkl", "..", 7, None),
    ],
)
def test_a_shard_outside_its_folder_is_refused(shards: Path, name: object):
    def change(content: dict[str, Any]) -> None:
        content["splits"]["train"]["shards"][0]["name"] = name

    rewrite(shards, change)
    with pytest.raises(UserError, match="lacks or garbles"):
        read_index(shards)


@pytest.mark.parametrize(("name", "value"), [("bytes", -1), ("images", 10**30), ("images", 4.5)])
def test_counts_that_are_none_are_refused(shards: Path, name: str, value: object):
    def change(content: dict[str, Any]) -> None:
        content["splits"]["train"]["shards"][0][name] = value

    rewrite(shards, change)
    with pytest.raises(UserError, match="lacks or garbles"):
        read_index(shards)


def test_an_unknown_split_names_those_that_are_there(whole: Path):
    with pytest.raises(UserError, match="no split 'extra', only train, validation, test"):
        read_index(whole).split("extra")


def changed(column: str, value: int) -> Callable[[MemberTable], MemberTable]:
    def change(table: MemberTable) -> MemberTable:
        values = getattr(table, column).copy()
        values[3] = value
        return replace(table, **{column: values})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("shard", 99), "names a shard that is not there"),
        (changed("shard", -1), "names a shard that is not there"),
        (changed("offset", 10**12), "points outside its shard"),
        (changed("offset", -512), "points outside its shard"),
        (changed("n_bytes", 2**62), "points outside its shard"),
        (changed("n_bytes", -1), "points outside its shard"),
        (changed("class_number", 2), "names a class that is not there"),
        (changed("height", 0), "has an image without pixels"),
        (lambda t: replace(t, keys=[t.keys[0], *t.keys[:-1]]), "names a key twice"),
        (lambda t: replace(t, keys=t.keys[:-1]), "has not 12 rows"),
    ],
)
def test_a_table_that_lies_is_refused(
    shards: Path, change: Callable[[MemberTable], MemberTable], message: str
):
    rewrite_table(shards, change(read_members(read_index(shards), "train")))
    with pytest.raises(UserError, match=message):
        read_members(read_index(shards), "train")


@pytest.mark.parametrize(("column", "value"), [("offset", 600), ("n_bytes", 20)])
def test_a_table_that_points_beside_its_images_is_refused(shards: Path, column: str, value: int):
    rewrite_table(shards, changed(column, value)(read_members(read_index(shards), "train")))
    table = read_members(read_index(shards), "train")
    number = int(table.shard[3])
    with pytest.raises(UserError, match=r"does not fit train-[0-9a-f]{5}-[0-9a-f]{16}.tar"):
        check_headers(shard_of(shards, number), table, number)


def test_pickles_in_a_table_are_never_opened(shards: Path, tmp_path: Path):
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)

    file = io.BytesIO()
    np.savez(file, keys=np.array([Trap()], dtype=object), shard=np.array([Trap()], dtype=object))
    table_of(shards).write_bytes(file.getvalue())

    def change(content: dict[str, Any]) -> None:
        content["splits"]["train"]["members"].update(
            bytes=len(file.getvalue()), sha256=file_sha256(table_of(shards))
        )

    rewrite(shards, change)
    with pytest.raises(UserError, match=r"damaged members-train-[0-9a-f]{8}.npz"):
        read_members(read_index(shards), "train")
    assert not (tmp_path / "sprung").exists()


def test_a_column_that_claims_to_be_huge_takes_no_memory(shards: Path):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<i4", "fortran_order": False, "shape": (10**15,)}
    )
    path = table_of(shards)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("shard.npy", file.getvalue())

    def change(content: dict[str, Any]) -> None:
        members = content["splits"]["train"]["members"]
        members.update(bytes=path.stat().st_size, sha256=file_sha256(path))

    rewrite(shards, change)
    with pytest.raises(UserError, match="a column shard of int32 and shape"):
        read_members(read_index(shards), "train")


def test_a_column_that_claims_more_than_its_file_takes_no_memory(shards: Path):
    path = table_of(shards)
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")  # of the first column, in the zip's list
    struct.pack_into("<II", data, entry + 20, 1_500_000_000, 1_500_000_000)
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="of 1500000000 bytes in a file of"):
            load_table(path)
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


def test_an_index_too_large_to_be_one_is_not_read(shards: Path):
    with (shards / "index.json").open("ab") as file:
        file.truncate(64 * 2**20 + 1)
    with pytest.raises(UserError, match="too large to be one"):
        read_index(shards)


def test_a_digest_that_is_no_digest_is_refused(shards: Path):
    for wrong in ("../../../outside", "A" * 64, "0" * 63, 7):

        def change(content: dict[str, Any], wrong: object = wrong) -> None:
            content["splits"]["train"]["shards"][0]["sha256"] = wrong

        rewrite(shards, change)
        with pytest.raises(UserError, match="lacks or garbles"):
            read_index(shards)


def test_a_file_missing_cut_short_or_changed_is_named(shards: Path):
    path = shard_of(shards, 0)
    size, sha256 = path.stat().st_size, file_sha256(path)
    check_file(path, size, sha256)
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"a damaged {path.name}: its SHA-256 is not"):
        check_file(path, size, sha256)
    check_file(path, size, sha256, digest=False)
    path.write_bytes(data[:-512])
    with pytest.raises(UserError, match=f"{path.name} with {size - 512} bytes, not {size}"):
        check_file(path, size, sha256)
    path.unlink()
    with pytest.raises(UserError, match=f"lacks {path.name}"):
        check_file(path, size, sha256)


@pytest.mark.filterwarnings("ignore")
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_any_damage_is_refused_or_read_as_a_sound_table(
    whole: Path, tmp_path: Path, data: st.DataObject
):
    good = table_of(whole).read_bytes()
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path / "shards"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(whole / "index.json", folder / "index.json")
    path = folder / table_of(whole).name
    path.write_bytes(damaged)

    def change(content: dict[str, Any]) -> None:
        members = content["splits"]["train"]["members"]
        members.update(bytes=len(damaged), sha256=file_sha256(path))

    rewrite(folder, change)
    index = read_index(folder)
    try:
        table = read_members(index, "train")
    except UserError:
        return
    sizes = np.array([shard.n_bytes for shard in index.split("train").shards])
    assert (table.offset + table.n_bytes <= sizes[table.shard]).all()
    assert len(set(table.keys)) == 12


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(JSON, st.data())
def test_any_value_anywhere_in_an_index_is_refused_or_sound(
    whole: Path, tmp_path: Path, value: Any, data: st.DataObject
):
    folder = tmp_path / "shards"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(whole / "index.json", folder / "index.json")

    def change(content: dict[str, Any]) -> None:
        place: Any = content
        while True:
            steps = sorted(place) if isinstance(place, dict) else range(len(place))
            step = data.draw(st.sampled_from(list(steps)))
            if isinstance(place[step], dict | list) and place[step] and data.draw(st.booleans()):
                place = place[step]
                continue
            place[step] = value
            return

    rewrite(folder, change)
    try:
        index = read_index(folder)
    except UserError:
        return
    for split in index.splits.values():
        assert all(Path(shard.name).name == shard.name for shard in split.shards)
        assert split.images == sum(shard.images for shard in split.shards)
