import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.data.images import DamagedImageError, decode, encode_png

LIMIT = 10**6


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def corners() -> Image.Image:
    """Red, green / blue, white in a picture of 32 x 16 pixels, wide and not square."""
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:8, :16] = (250, 0, 0)
    pixels[:8, 16:] = (0, 250, 0)
    pixels[8:, :16] = (0, 0, 250)
    pixels[8:, 16:] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("height", "width"), [(28, 31), (1, 1), (300, 500)])
def test_a_grey_png_of_ours_comes_back_bit_for_bit(height: int, width: int):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    data = encode_png(pixels)
    assert np.array_equal(decode(data, 1, LIMIT)[:, :, 0], pixels)
    assert data == encode_png(pixels.copy())


def test_a_png_of_ours_has_the_same_bytes_everywhere():
    data = encode_png(np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert data.hex() == PINNED_PNG


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_lossless_formats_give_the_same_pixels(kind: str):
    data = saved(corners(), kind, **({"lossless": True} if kind == "WEBP" else {}))
    found = decode(data, 3, LIMIT)
    assert found.shape == (16, 32, 3)
    assert np.array_equal(found, np.asarray(corners()))


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_jpeg_keeps_its_colours_in_rgb_and_cmyk(mode: str):
    found = decode(saved(corners().convert(mode), "JPEG", quality=95, subsampling=0), 3, LIMIT)
    difference = np.abs(found.astype(int) - np.asarray(corners()).astype(int))
    assert difference[2:6, 4:12].max() < 8  # away from edges
    assert difference[10:14, 20:28].max() < 8


def test_one_channel_is_luma_of_colour():
    found = decode(saved(corners(), "PNG"), 1, LIMIT)
    assert found.shape == (16, 32, 1)
    assert [found[0, 0, 0], found[0, 31, 0], found[15, 0, 0]] == [75, 147, 28]  # of ITU-R 601


@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, "red"), (2, "green"), (3, "white"), (4, "blue"), (6, "blue"), (8, "green")],
)
def test_a_picture_stands_as_its_exif_says(orientation: int, corner: str):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(saved(corners(), "PNG", exif=exif), 3, LIMIT)
    colours = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250), "white": (255,) * 3}
    assert found.shape[:2] == ((32, 16) if orientation in {6, 8} else (16, 32))
    assert tuple(found[0, 0]) == colours[corner]


def test_a_palette_shows_its_colours_and_its_hole_is_white():
    image = Image.new("P", (4, 2), 1)
    image.putpalette([9, 9, 9, 10, 20, 30])
    image.putpixel((0, 0), 0)
    opaque = decode(saved(image, "PNG"), 3, LIMIT)
    assert tuple(opaque[0, 0]) == (9, 9, 9)
    assert tuple(opaque[1, 1]) == (10, 20, 30)
    holed = decode(saved(image, "PNG", transparency=0), 3, LIMIT)
    assert tuple(holed[0, 0]) == (255, 255, 255)
    assert tuple(holed[1, 1]) == (10, 20, 30)


@pytest.mark.parametrize(("mode", "black"), [("RGBA", (0, 0, 0)), ("LA", (0,))])
def test_alpha_is_seen_on_white(mode: str, black: tuple[int, ...]):
    image = Image.new(mode, (3, 1), (*black, 255))
    image.putpixel((1, 0), (*black, 0))
    image.putpixel((2, 0), (*black, 128))
    found = decode(saved(image, "PNG"), 3, LIMIT)
    assert found[0, :, 0].tolist() == [0, 255, 127]
    assert decode(saved(image, "PNG"), 1, LIMIT)[0, :, 0].tolist() == [0, 255, 127]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_become_eight_by_their_upper_byte(kind: str):
    levels = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    found = decode(saved(Image.fromarray(levels), kind), 1, LIMIT)
    assert found[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_floats_go_from_darkest_to_lightest_and_must_be_finite():
    levels = np.array([[-1.0, 0.0, 1.0]], dtype=np.float32)
    assert decode(saved(Image.fromarray(levels), "TIFF"), 1, LIMIT)[0, :, 0].tolist() == [
        0,
        128,
        255,
    ]
    levels[0, 1] = np.nan
    with pytest.raises(DamagedImageError, match="not finite"):
        decode(saved(Image.fromarray(levels), "TIFF"), 1, LIMIT)


def test_black_and_white_is_0_and_255():
    image = Image.new("1", (2, 1), 1)
    image.putpixel((0, 0), 0)
    assert decode(saved(image, "PNG"), 1, LIMIT)[0, :, 0].tolist() == [0, 255]


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims width x height pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = b"IHDR" + header
    chunk = struct.pack(">I", len(header)) + body + struct.pack(">I", zlib.crc32(body))
    empty = zlib.compress(b"")
    data = b"IDAT" + empty
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk
        + struct.pack(">I", len(empty))
        + data
        + struct.pack(">I", zlib.crc32(data))
    )


@pytest.mark.parametrize("side", [1001, 1500, 40_000])
def test_a_picture_of_too_many_pixels_is_refused_unopened(side: int):
    with pytest.raises(DamagedImageError, match=r"more pixels than max_pixels \(1000000\)"):
        decode(bomb(side, side), 1, LIMIT)


def test_a_limit_above_pillows_own_is_kept_to():
    wide = saved(Image.new("1", (10_000, 9_500)), "PNG")  # 95 million, Pillow warns from 89
    assert decode(wide, 1, 100_000_000).shape == (9_500, 10_000, 1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty"), (b"hello", "not an image"), (b"%!PS-Adobe-3.0 EPSF-3.0", "not an image")],
)
def test_what_is_no_image_is_refused_with_a_reason(data: bytes, reason: str):
    with pytest.raises(DamagedImageError, match=reason):
        decode(data, 3, LIMIT)


def test_a_cut_image_is_damage_and_not_half_a_picture():
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for kind in ("JPEG", "PNG", "WEBP"):
        data = saved(Image.fromarray(noise), kind)
        with pytest.raises(DamagedImageError):
            decode(data[: len(data) // 2], 3, LIMIT)


SEEDS = [saved(corners(), kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")]


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it can pass over
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255))))
def test_any_bytes_are_a_picture_or_damage(data: bytes, changes: list[tuple[float, int]]):
    mutated = bytearray(data)
    for place, value in changes:
        mutated[int(place * (len(data) - 1))] = value
    try:
        found = decode(bytes(mutated), 3, LIMIT)
    except DamagedImageError:
        return
    assert found.dtype == np.uint8
    assert found.ndim == 3
    assert found.shape[2] == 3
    assert found.shape[0] * found.shape[1] <= LIMIT


PINNED_PNG = (
    "89504e470d0a1a0a0000000d4948445200000003000000020800000000b81f39c6000000134944415478010108"
    "00f7ff0000010200030405002e00105dd9c1160000000049454e44ae426082"
)
