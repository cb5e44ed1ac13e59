from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.data import examine as examining
from stages.data.engine import Engine
from stages.data.examine import check_quarantine, examine, examine_one
from stages.data.images import encode_png
from stages.data.processes import in_processes
from stages.data.sources import Picture
from stages.errors import UserError

PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 4)


def picture(path: Path, data: bytes) -> Picture:
    path.write_bytes(data)
    return Picture(path.stem, path.suffix[1:], path)


def test_a_good_image_tells_its_size_and_its_sums(tmp_path: Path):
    found = examine_one(picture(tmp_path / "a.png", encode_png(PIXELS)), 1, 100)
    assert found.problem is None
    assert (found.height, found.width) == (3, 4)
    assert found.sums == (66,)
    assert found.squares == (506,)


def test_copies_in_two_formats_have_the_same_pixels_but_not_the_same_bytes(tmp_path: Path):
    one = examine_one(picture(tmp_path / "a.png", encode_png(PIXELS)), 1, 100)
    Image.fromarray(PIXELS).save(tmp_path / "b.bmp")
    other = examine_one(Picture("b", "bmp", tmp_path / "b.bmp"), 1, 100)
    turned = examine_one(picture(tmp_path / "c.png", encode_png(PIXELS.reshape(4, 3))), 1, 100)
    assert one.pixels_digest == other.pixels_digest
    assert one.bytes_digest != other.bytes_digest
    assert one.pixels_digest != turned.pixels_digest


def test_damage_is_a_reason_and_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    good = encode_png(PIXELS)
    assert examine_one(picture(tmp_path / "a.png", b"what"), 1, 100).problem == "not an image"
    assert examine_one(picture(tmp_path / "b.png", b""), 1, 100).problem == "empty"
    assert "max_pixels" in str(examine_one(picture(tmp_path / "c.png", good), 1, 11).problem)
    gone = examine_one(Picture("d", "png", tmp_path / "gone.png"), 1, 100)
    assert gone.problem == "can't be read: No such file or directory"
    monkeypatch.setattr(examining, "MAX_FILE_BYTES", 10)
    large = examine_one(picture(tmp_path / "e.png", good), 1, 100)
    assert large.problem == f"a file of {len(good)} bytes, more than 10"


def test_many_are_examined_in_order_and_counted(tmp_path: Path):
    one = picture(tmp_path / "a.png", encode_png(PIXELS))
    bad = picture(tmp_path / "b.png", b"")
    told: list[int] = []
    found = examine([one, bad] * 300, 1, 100, Engine(), told.append)
    assert [image.problem for image in found] == [None, "empty"] * 300
    assert sum(told) == 600


def test_processes_give_what_one_process_gives():
    assert list(in_processes(abs, [-3, 2, -1], workers=2)) == [3, 2, 1]


def test_quarantine_within_the_tolerance_goes_on():
    check_quarantine([], 100, 0.0)
    check_quarantine([("a", "empty")], 100, 0.01)


def test_quarantine_past_the_tolerance_stops_with_the_first_few():
    lost = [(f"image-{number}", "empty") for number in range(7)]
    with pytest.raises(UserError) as caught:
        check_quarantine(lost, 100, 0.01)
    assert str(caught.value).startswith(
        "7 of 100 images can't be used, more than data.quarantine_tolerance (0.01) allows: "
        "image-0 (empty), image-1 (empty)"
    )
    assert "and 2 more" in str(caught.value)


def test_a_source_that_is_all_damage_stops_at_any_tolerance():
    with pytest.raises(UserError, match=r"^all 1 images can't be used"):
        check_quarantine([("a", "empty")], 1, 1.0)
