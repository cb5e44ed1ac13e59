import io
import itertools

import numpy as np
import pytest
from PIL import Image

from stages.data.fast_jpeg import decode_plain_jpeg
from stages.data.images import DamagedImageError, decode

MAX_PIXELS = 100_000


def picture(height: int, width: int, mode: str = "RGB", noise: float = 8) -> Image.Image:
    rng = np.random.default_rng(height * 1000 + width)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noisy = smooth + rng.normal(0, noise, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def jpeg(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


SIZES = [(1, 1), (7, 3), (16, 16), (33, 47), (120, 90)]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [5, 50, 90, 100])
def test_colour_pictures_have_pillows_pixels(quality, subsampling, progressive):
    options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
    for size in SIZES:
        data = jpeg(picture(*size), **options)
        found = decode_plain_jpeg(data, 3, MAX_PIXELS)
        assert found is not None
        np.testing.assert_array_equal(found, decode(data, 3, MAX_PIXELS))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_grey_pictures_have_pillows_pixels(size, channels):
    data = jpeg(picture(*size, "L"))
    found = decode_plain_jpeg(data, channels, MAX_PIXELS)
    assert found is not None
    np.testing.assert_array_equal(found, decode(data, channels, MAX_PIXELS))


@pytest.mark.parametrize(
    "options",
    [
        {"icc_profile": bytes(500)},
        {"comment": b"a comment"},
        {"restart_marker_blocks": 2},
        {"dpi": (72, 72)},
        {"optimize": True},
        {"keep_rgb": False},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_changes_no_pixel_is_passed_over(options):
    data = jpeg(picture(33, 47), **options)
    found = decode_plain_jpeg(data, 3, MAX_PIXELS)
    assert found is not None
    np.testing.assert_array_equal(found, decode(data, 3, MAX_PIXELS))


def exif_turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(picture(33, 47), exif=exif)


def two_in_a_file() -> bytes:
    file = io.BytesIO()
    picture(33, 47).save(file, "MPO", save_all=True, append_images=[picture(33, 47)])
    return file.getvalue()


def as_png() -> bytes:
    file = io.BytesIO()
    picture(33, 47).save(file, "PNG")
    return file.getvalue()


FOR_PILLOW = {
    "turned by EXIF": exif_turned(),
    "CMYK": jpeg(picture(33, 47, "CMYK")),
    "RGB as it is": jpeg(picture(33, 47), keep_rgb=True),
    "two pictures": two_in_a_file(),
    "PNG": as_png(),
    "cut short": jpeg(picture(33, 47))[:-200],
    "without its end": jpeg(picture(33, 47))[:-2],
    "only a header": jpeg(picture(33, 47))[:30],
    "not a picture": b"\xff\xd8 no",
    "empty": b"",
}


@pytest.mark.parametrize("data", FOR_PILLOW.values(), ids=FOR_PILLOW)
def test_what_is_not_plain_is_left_to_pillow(data):
    assert decode_plain_jpeg(data, 3, MAX_PIXELS) is None


def test_grey_from_colour_and_large_pictures_are_left_to_pillow():
    data = jpeg(picture(33, 47))
    assert decode_plain_jpeg(data, 1, MAX_PIXELS) is None
    assert decode_plain_jpeg(data, 3, 33 * 47 - 1) is None
    assert decode_plain_jpeg(data, 3, 33 * 47) is not None


def test_a_picture_is_put_where_it_is_wanted_if_it_fits():
    data = jpeg(picture(33, 47))
    place_HWC = np.zeros((33, 47, 3), dtype=np.uint8)
    assert decode_plain_jpeg(data, 3, MAX_PIXELS, place_HWC) is not None
    np.testing.assert_array_equal(place_HWC, decode(data, 3, MAX_PIXELS))
    for wrong in ((47, 33, 3), (33, 47, 1), (33, 46, 3), (40, 50, 3)):
        elsewhere = np.zeros(wrong, dtype=np.uint8)
        assert decode_plain_jpeg(data, 3, MAX_PIXELS, elsewhere) is None
        assert not elsewhere.any()


@pytest.mark.parametrize("place", [2, 20])
def test_a_scan_marker_that_is_none_hides_nothing(place):
    data = jpeg(picture(33, 47))
    comment = b"\xff\xfe\x00\x08\xff\xda\x00\x0c\x03\x01"
    data = data[:place] + comment + data[place:]
    found = decode_plain_jpeg(data, 3, MAX_PIXELS)
    assert found is not None
    np.testing.assert_array_equal(found, decode(data, 3, MAX_PIXELS))


@pytest.mark.parametrize("seed", range(6))
def test_damaged_bytes_give_pillows_pixels_or_none(seed):
    rng = np.random.default_rng(seed)
    whole = [
        jpeg(picture(24, 40, mode), progressive=progressive)
        for mode, progressive in itertools.product(("RGB", "L"), (False, True))
    ]
    taken = 0
    for _ in range(150):
        data = bytearray(whole[rng.integers(len(whole))])
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        if rng.random() < 0.2:
            del data[rng.integers(len(data)) :]
        found = decode_plain_jpeg(bytes(data), 3, MAX_PIXELS)
        if found is None:
            continue
        taken += 1
        try:
            expected = decode(bytes(data), 3, MAX_PIXELS)
        except DamagedImageError as error:
            pytest.fail(f"Pillow refuses it ({error}): {bytes(data).hex()}")
        np.testing.assert_array_equal(found, expected)
    assert taken > 10
