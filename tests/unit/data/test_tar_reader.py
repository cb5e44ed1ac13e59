import io
import tarfile
import tracemalloc
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


def header(name: str, kind: bytes, size: int, data: bytes = b"") -> bytes:
    """A header whose size may be any number, in base 256 where it must, and what follows it."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


LONG, PAX, PAX_ALL = tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE
A_FILE = header("a.png", tarfile.REGTYPE, 1, b"1")


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("kind", [LONG, tarfile.GNUTYPE_LONGLINK, PAX, PAX_ALL])
@pytest.mark.parametrize("size", [2**20 + 512, 2**33, 2**62, -512, -(2**40)])
def test_a_header_that_claims_to_be_huge_takes_no_memory(
    tmp_path: Path, kind: bytes, size: int, foreign: bool
):
    path = stored(tmp_path, header("x", kind, size) + A_FILE + bytes(10240))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"can't be read as a tar|bytes"):
            list_members(path, foreign=foreign)
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.png", "hidden/.x", "no_ending", "__meta__.txt", "folder/"])
def test_a_member_of_less_than_nothing_is_refused_and_not_read_for_ever(tmp_path: Path, name: str):
    for kind in (tarfile.REGTYPE, tarfile.DIRTYPE, b"Z"):
        path = stored(tmp_path, A_FILE + header(name, kind, -512) + bytes(10240))
        with pytest.raises(UserError):
            list_members(path, foreign=True)


def test_a_size_in_pax_below_nothing_is_refused(tmp_path: Path):
    line = b"15 size=-10240\n"
    path = stored(tmp_path, header("x", PAX, len(line), line) + A_FILE + bytes(10240))
    with pytest.raises(UserError):
        list_members(path, foreign=True)


def test_many_members_take_little_memory_beside_their_list(tmp_path: Path):
    count = 20_000
    block = header("a.png", tarfile.REGTYPE, 0)
    path = stored(tmp_path, block * count + bytes(10240))
    tracemalloc.start()
    try:
        assert len(list_members(path)) == count
        assert tracemalloc.get_traced_memory()[1] < count * 400
    finally:
        tracemalloc.stop()


SIZES = st.sampled_from([0, 1, 511, 512, 5000, 2**31, 2**63 - 1, -1, -512, -1024, -(2**50)])
HEADERS = st.builds(
    header,
    st.sampled_from(["a.png", "b.cls", "../a.png", "/a.png", "pipe:touch x", "n", ".h", "a.pkl"]),
    st.sampled_from(
        [b"0", b"\0", b"1", b"2", b"3", b"5", b"6", b"7", b"S", b"Z", LONG, PAX, PAX_ALL]
    ),
    SIZES,
    st.sampled_from([b"", b"1", b"x" * 600, b"15 size=-10240\n", b"13 size=9999\n", b"\xff" * 100])
    | st.builds(
        lambda key, value: (
            f"{len(key) + len(value) + 5} {key}={value}\n".encode("utf-8", "surrogatepass")
        ),
        st.sampled_from(["size", "path", "GNU.sparse.map", "GNU.sparse.major", "GNU.sparse.name"]),
        st.text(max_size=20),
    ),
)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(HEADERS, max_size=6), st.booleans(), st.integers(0, 4000))
def test_any_headers_are_a_checked_list_or_a_refusal_in_little_memory(
    tmp_path: Path, headers: list[bytes], foreign: bool, cut: int
):
    data = b"".join([*headers, bytes(10240)])
    data = data[: len(data) - cut] if cut % 3 == 0 else data
    path = stored(tmp_path, data)
    tracemalloc.start()
    try:
        found = list_members(path, foreign=foreign)
    except UserError:
        found = []
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**22
    for member in found:
        assert 0 <= member.offset <= member.offset + member.n_bytes <= len(data)
        assert ".." not in member.key.split("/")
        assert not member.key.startswith("/")


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
