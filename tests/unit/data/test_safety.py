"""What a stranger may put before us: refused with a message, nothing run, nothing dropped.

Shards are offered as a source, as someone would whose shards were poisoned on the way.
"""

import io
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from stages.data.build import Wanted, build_shards
from stages.data.images import encode_png
from stages.data.splits import SplitSizes
from stages.data.webdataset_source import read_webdataset
from stages.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
WANTED = Wanted(SplitSizes(4, 0.2), 0, 1, 10_000_000, 10, 0.2)

Members = list[tuple[str, bytes]]


def good(count: int = 30) -> Members:
    rng = np.random.default_rng(0)
    found: Members = []
    for number in range(count):
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        found += [(f"{number:03d}.png", encode_png(pixels))]
        found.append((f"{number:03d}.cls", str(number % 2).encode()))
    return found


def shard(path: Path, members: Members, *extra: tarfile.TarInfo) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in extra:
            tar.addfile(info)
    return path


def build(folder: Path) -> dict:
    source = read_webdataset(folder / "theirs", (), "label")
    return build_shards(source, WANTED, folder / "ours", folder / "work", workers=1)


def bomb(width: int, height: int) -> bytes:
    """A PNG of some kilobytes that claims so many pixels, all of them white."""
    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(2**20)) for _ in range(64)) + rows.flush()
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", packed),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def test_good_shards_are_taken(tmp_path: Path):
    shard(tmp_path / "theirs/a.tar", good())
    content = build(tmp_path)
    assert sum(split["images"] for split in content["splits"].values()) == 30


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("ending", ["pkl", "pickle", "pth", "pt", "pyd", "py"])
def test_a_member_that_could_run_refuses_the_shard_and_does_not_run(tmp_path: Path, ending: str):
    import pickle

    data = pickle.dumps(Trap(tmp_path / "sprung"))
    shard(tmp_path / "theirs/a.tar", [*good(), (f"000.{ending}", data)])
    with pytest.raises(UserError, match="a kind of file that can hold code"):
        build(tmp_path)
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("name", ["../../x.png", "/etc/x.png", "a/../../x.png", "a\\..\\x.png"])
def test_a_name_that_climbs_out_is_refused(tmp_path: Path, name: str):
    shard(tmp_path / "theirs/a.tar", [*good(), (name, good()[0][1])])
    with pytest.raises(UserError, match="unsafe name"):
        build(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_is_refused(tmp_path: Path, kind: bytes):
    link = tarfile.TarInfo("x.png")
    link.type, link.linkname = kind, "/etc/passwd"
    shard(tmp_path / "theirs/a.tar", good(), link)
    with pytest.raises(UserError, match="no plain file"):
        build(tmp_path)


def test_a_name_that_is_a_command_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    shard(tmp_path / "theirs/a.tar", [*good(), ("pipe:touch sprung; cat x.png", b"1")])
    with pytest.raises(UserError, match="unsafe name 'pipe:"):
        build(tmp_path)
    with pytest.raises(UserError, match=r"lacks 1 of data.shards: pipe:touch sprung"):
        read_webdataset(tmp_path / "theirs", ["pipe:touch sprung"], "label")
    assert not Path("sprung").exists()


@pytest.mark.parametrize("cut", [1, 300, 513, 5000])
def test_a_tar_cut_short_is_refused_and_not_read_as_far_as_it_goes(tmp_path: Path, cut: int):
    path = shard(tmp_path / "theirs/a.tar", good())
    whole = path.read_bytes().rstrip(b"\0")
    path.write_bytes(whole[:-cut])
    with pytest.raises(UserError, match=r"cut short|can't be read as a tar"):
        build(tmp_path)


def test_a_picture_of_a_thousand_million_pixels_is_left_out_with_its_reason(tmp_path: Path):
    huge = [("x.png", bomb(40_000, 25_000)), ("x.cls", b"0")]
    shard(tmp_path / "theirs/a.tar", [*good(), *huge])
    content = build(tmp_path)
    assert content["quarantine"] == [
        {"key": "x", "reason": "more pixels than max_pixels (10000000)"}
    ]
    assert sum(split["images"] for split in content["splits"].values()) == 30


def test_bombs_take_no_memory(tmp_path: Path):
    """Both bombs at once, in a process that may have one GB more than it starts with."""
    huge = [(f"x{n}.png", bomb(40_000, 25_000)) for n in range(5)]
    shard(tmp_path / "theirs/a.tar", [*good(), *huge])
    claim = tarfile.TarInfo("y.png")
    claim.type, claim.size = tarfile.GNUTYPE_LONGNAME, 8 * 2**30
    (tmp_path / "liar.tar").write_bytes(claim.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    code = f"""
import resource
from pathlib import Path
from stages.data.build import Wanted, build_shards
from stages.data.splits import SplitSizes
from stages.data.tar_reader import list_members
from stages.data.webdataset_source import read_webdataset
from stages.errors import UserError
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**30,) * 2)
wanted = Wanted(SplitSizes(4, 0.2), 0, 1, 10**7, 10, 0.2)
folder = Path({str(tmp_path)!r})
source = read_webdataset(folder / "theirs", (), "label")
content = build_shards(source, wanted, folder / "ours", folder / "work", 1)
assert len(content["quarantine"]) == 5, content["quarantine"]
try:
    list_members(folder / "liar.tar", foreign=True)
except UserError as error:
    assert "a header of" in str(error), error
else:
    raise SystemExit("taken")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
