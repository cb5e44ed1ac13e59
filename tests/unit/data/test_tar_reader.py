import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.data.tar_reader import Member, list_members
from stages.errors import UserError


def tar_of(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE, target: str = "") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def stored(folder: Path, data: bytes) -> Path:
    path = folder / "train-00000.tar"
    path.write_bytes(data)
    return path


GOOD = tar_of(("a/b.png", b"12345"), ("a/b.cls", b"3"), ("c.jpg", b"x" * 700))


def test_members_tell_key_ending_and_place(tmp_path: Path):
    found = list_members(stored(tmp_path, GOOD))
    assert found == [
        Member("a/b", "png", 512, 5),
        Member("a/b", "cls", 1536, 1),
        Member("c", "jpg", 2560, 700),
    ]
    assert GOOD[512:517] == b"12345"


def test_names_longer_than_a_tar_header_are_read(tmp_path: Path):
    name = "deep/" * 40 + "a.png"
    (found,) = list_members(stored(tmp_path, tar_of((name, b"1"))))
    assert found.key == name.removesuffix(".png")


@pytest.mark.parametrize(
    "name",
    ["/etc/a.png", "../a.png", "a/../../b.png", "a\\b.png", "a\nb.png", "x" * 600 + ".png"],
)
def test_a_name_that_climbs_or_hides_is_refused(tmp_path: Path, name: str):
    with pytest.raises(UserError, match="unsafe name"):
        list_members(stored(tmp_path, tar_of((name, b"1"))))


@pytest.mark.parametrize(
    "name", ["a.pkl", "a.pickle", "a.pth", "a.pyd", "a.py", "a.png.pkl", "a", ".png", "a.tar"]
)
def test_only_images_and_classes_have_a_place(tmp_path: Path, name: str):
    with pytest.raises(UserError, match=r"only images and .cls have a place in it"):
        list_members(stored(tmp_path, tar_of((name, b"1"))))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]
)
def test_only_plain_files_have_a_place(tmp_path: Path, kind: bytes):
    with pytest.raises(UserError, match="no plain file"):
        list_members(stored(tmp_path, tar_of(("a.png", b""), kind=kind, target="/etc/passwd")))


@pytest.mark.parametrize("length", [0, 100, 512, 514, 1024, 1536, 2000, 2600, 3500, 3584])
def test_a_tar_cut_anywhere_is_refused(tmp_path: Path, length: int):
    with pytest.raises(UserError, match=r"train-00000.tar .*(cut short|can't be read)"):
        list_members(stored(tmp_path, GOOD[:length]))


def test_a_header_damaged_in_the_middle_does_not_pass_for_the_end(tmp_path: Path):
    damaged = bytearray(GOOD)
    damaged[1024 + 3] ^= 255
    with pytest.raises(UserError, match="no end of the tar at byte 1024"):
        list_members(stored(tmp_path, bytes(damaged)))


def test_a_member_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path):
    info = tarfile.TarInfo("a.png")
    info.size = 8 * 2**30 - 1
    with pytest.raises(UserError, match="cut short"):
        list_members(stored(tmp_path, info.tobuf() + b"1".ljust(512, b"\0") + bytes(10240)))


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=12),
    st.integers(0, len(GOOD)),
)
def test_any_bytes_are_a_checked_list_or_a_refusal(
    tmp_path: Path, changes: list[tuple[int, int]], cut: int
):
    data = bytearray(GOOD)
    for place, value in changes:
        data[place] = value
    data = data[: max(cut, 3072)] if cut % 2 else data
    try:
        found = list_members(stored(tmp_path, bytes(data)))
    except UserError:
        return
    for member in found:
        assert 0 <= member.offset <= member.offset + member.n_bytes <= len(data)
        assert ".." not in member.key.split("/")
        assert not member.key.startswith("/")
