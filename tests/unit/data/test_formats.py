"""Every format as a person sees it, against files written by hand and arithmetic done here."""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.data.images import DamagedImageError, decode

LIMIT = 10**6
GREY, RGB = 1, 3


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(
    pixels_HWC: np.ndarray, bits: int, colour: int, trns: bytes = b"", plte: bytes = b""
) -> bytes:
    """A PNG as the specification writes it; colour: 0 grey, 2 RGB, 3 palette, 4, 6 with alpha."""
    height, width = pixels_HWC.shape[:2]
    rows = b""
    for row in pixels_HWC.reshape(height, -1):
        if bits == 16:
            rows += b"\0" + row.astype(">u2").tobytes()
        else:
            digits = "".join(f"{int(value):0{bits}b}" for value in row)
            digits += "0" * (-len(digits) % 8)
            rows += b"\0" + bytes(int(digits[n : n + 8], 2) for n in range(0, len(digits), 8))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))]
    chunks += [(b"PLTE", plte)] if plte else []
    chunks += [(b"tRNS", trns)] if trns else []
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def tiff(
    pixels_HWC: np.ndarray,
    photometric: int,
    kind: str,
    *,
    planar: int = 1,
    extra: int | None = None,
    orientation: int = 1,
    packed: bool = False,
) -> bytes:
    """A TIFF of one strip (or one for each plane) as the specification writes it.

    Args:
        pixels_HWC: the samples.
        photometric: 0 white is zero, 1 grey, 2 RGB, 5 CMYK.
        kind: numpy's name of a sample with its byte order: "<u2".
        planar: 2: each colour by itself.
        extra: 1: premultiplied alpha, 2: alpha.
        orientation: as EXIF has it.
        packed: by zlib.
    """
    height, width, channels = pixels_HWC.shape
    order, size = kind[0], int(kind[2])
    parts = [pixels_HWC] if planar == 1 else list(pixels_HWC.transpose(2, 0, 1))
    strips = [part.astype(kind).tobytes() for part in parts]
    strips = [zlib.compress(strip) for strip in strips] if packed else strips
    sample_format = {"u": 1, "i": 2, "f": 3}[kind[1]]
    tags: list[tuple[int, str, list[int]]] = [
        (256, "H", [width]),
        (257, "H", [height]),
        (258, "H", [8 * size] * channels),
        (259, "H", [8 if packed else 1]),
        (262, "H", [photometric]),
        (273, "I", [0] * len(strips)),
        (274, "H", [orientation]),
        (277, "H", [channels]),
        (278, "H", [height]),
        (279, "I", [len(strip) for strip in strips]),
        (284, "H", [planar]),
        *([(338, "H", [extra])] if extra else []),
        (339, "H", [sample_format] * channels),
    ]
    after = 8 + 2 + 12 * len(tags) + 4
    long = {tag: struct.calcsize(code) * len(values) for tag, code, values in tags}
    start = after + sum(n_bytes for n_bytes in long.values() if n_bytes > 4)
    place = np.cumsum([start, *(len(strip) for strip in strips)]).tolist()
    out, aside = struct.pack(f"{order}H", len(tags)), b""
    for tag, code, values in tags:
        values = place[:-1] if tag == 273 else values
        data = struct.pack(f"{order}{len(values)}{code}", *values)
        out += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[code], len(values))
        if len(data) > 4:
            out += struct.pack(f"{order}I", after + len(aside))
            aside += data
        else:
            out += data.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return head + out + struct.pack(f"{order}I", 0) + aside + b"".join(strips)


def seen(data: bytes, channels: int) -> list[Any]:
    """The first row: levels of grey, or triples."""
    row = decode(data, channels, LIMIT)[0]
    return row[:, 0].tolist() if channels == GREY else [tuple(pixel) for pixel in row.tolist()]


def row(*pixels: int | Sequence[int]) -> np.ndarray:
    return np.array([[np.atleast_1d(pixel) for pixel in pixels]])


GREY16 = row(0, 257, 32768, 65535)
RGB16 = row((65535, 0, 0), (0, 32768, 0), (257, 256, 255), (65535,) * 3)
SEEN16 = [(255, 0, 0), (0, 128, 0), (1, 1, 0), (255, 255, 255)]
RGBA16 = row((65535, 0, 0, 65535), (0, 0, 0, 0), (25700, 0, 0, 32896), (0, 0, 0, 65535))
# Seen on white: level x alpha + 255 x (1 - alpha), alpha 128 of 255.
ON_WHITE = [(255, 0, 0), (255, 255, 255), (177, 127, 127), (0, 0, 0)]
INK8 = row((255, 0, 0, 0), (0, 0, 0, 255), (0, 128, 0, 0), (100, 50, 0, 64), (0, 0, 0, 0))


def as_seen_in_ink(inks: np.ndarray) -> list[tuple[int, ...]]:
    """White paper, less what each ink takes and what black takes of the rest."""
    c, m, y, k = (inks[0, :, channel] / 255 for channel in range(4))
    return [tuple(p) for p in np.stack([255 * (1 - a) * (1 - k) for a in (c, m, y)], 1).tolist()]


def close(found: Sequence[Any], expected: Sequence[Any], within: float) -> bool:
    return np.abs(np.array(found, float) - np.array(expected, float)).max() <= within


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("planar", [1, 2])
def test_tiff_of_16_bits_in_colour(order: str, packed: bool, planar: int):
    data = tiff(RGB16, 2, f"{order}u2", planar=planar, packed=packed)
    assert seen(data, RGB) == SEEN16


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("size", [1, 2])
def test_tiff_with_alpha_is_seen_on_white(order: str, planar: int, size: int):
    pixels = RGBA16 >> (16 - 8 * size)
    data = tiff(pixels, 2, f"{order}u{size}", planar=planar, extra=2)
    assert close(seen(data, RGB), ON_WHITE, within=1)


def test_tiff_with_premultiplied_alpha_is_seen_the_same():
    premultiplied = row((255, 0, 0, 255), (0, 0, 0, 0), (50, 0, 0, 128), (0, 0, 0, 255))
    assert close(seen(tiff(premultiplied, 2, "<u1", extra=1), RGB), ON_WHITE, within=1)


@pytest.mark.parametrize("kind", ["<u1", "<u2", ">u2"])
@pytest.mark.parametrize("planar", [1, 2])
def test_tiff_in_ink(kind: str, planar: int):
    inks = INK8 * 257 if kind.endswith("2") else INK8
    found = seen(tiff(inks, 5, kind, planar=planar), RGB)
    assert close(found, as_seen_in_ink(INK8), within=1)


@pytest.mark.parametrize("packed", [False, True])
def test_tiff_of_16_bits_in_grey_black_or_white_first(packed: bool):
    for order in "<>":
        assert seen(tiff(GREY16, 1, f"{order}u2", packed=packed), GREY) == [0, 1, 128, 255]
    white_first = tiff(GREY16, 0, "<u2", packed=packed)
    assert seen(white_first, GREY) == [255, 254, 127, 0]
    assert seen(tiff(GREY16 >> 8, 0, "<u1", packed=packed), GREY) == [255, 254, 127, 0]


def test_tiff_of_32_bits_and_of_signed_numbers_go_from_darkest_to_lightest():
    assert seen(tiff(GREY16 * 65537, 1, "<u4"), GREY) == [0, 1, 128, 255]
    for order in "<>":
        signed = row(-1000, 0, 1000)
        assert seen(tiff(signed, 1, f"{order}i2"), GREY) == [0, 128, 255]
        assert seen(tiff(signed / 1000, 1, f"{order}f4"), GREY) == [0, 128, 255]


def test_tiff_that_can_not_be_read_is_refused_and_not_guessed():
    with pytest.raises(DamagedImageError, match="a TIFF of a kind that can't be read"):
        decode(tiff(GREY16, 0, ">u2"), GREY, LIMIT)
    cut = tiff(RGB16, 2, "<u2", planar=2)[:-4]
    with pytest.raises(DamagedImageError):
        decode(cut, RGB, LIMIT)
    many = tiff(RGB16, 2, "<u2", planar=2).replace(struct.pack("<I", 8) * 3, b"\xff\xff\0\0" * 3)
    with pytest.raises(DamagedImageError, match="strips that do not make up the picture"):
        decode(many, RGB, LIMIT)


def test_png_of_16_bits():
    assert seen(png(GREY16, 16, 0), GREY) == [0, 1, 128, 255]
    assert seen(png(RGB16, 16, 2), RGB) == SEEN16
    assert close(seen(png(RGBA16, 16, 6), RGB), ON_WHITE, within=1)
    grey_and_alpha = row((0, 65535), (0, 0), (25700, 32896), (65535, 65535))
    assert close(seen(png(grey_and_alpha, 16, 4), GREY), [0, 255, 177, 255], within=1)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_png_in_grey_with_one_level_that_is_clear(bits: int):
    top = 2**bits - 1
    levels = [0, 1, top // 2, top]
    full = [level * 255 // top for level in levels]
    assert seen(png(row(*levels), bits, 0), GREY) == full
    for place, level in enumerate(levels):
        found = seen(png(row(*levels), bits, 0, trns=struct.pack(">H", level)), GREY)
        expected = [255 if other == level else full[n] for n, other in enumerate(levels)]
        assert found == expected, place


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_with_a_palette_and_a_half_clear_entry(bits: int):
    plte = bytes([10, 20, 30, 40, 50, 60])
    found = seen(png(row(0, 1), bits, 3, trns=b"\xff\x80", plte=plte), RGB)
    half = [round(level * 128 / 255 + 127) for level in (40, 50, 60)]
    assert close(found, [(10, 20, 30), half], within=1)


def test_png_in_colour_with_one_colour_that_is_clear():
    data = png(row((255, 0, 0), (254, 0, 0)), 8, 2, trns=struct.pack(">HHH", 255, 0, 0))
    assert seen(data, RGB) == [(255, 255, 255), (254, 0, 0)]


def flat_ink(c: int, m: int, y: int, k: int) -> Image.Image:
    return Image.new("CMYK", (16, 16), (c, m, y, k))


def without_marker(data: bytes, marker: int) -> bytes:
    """A JPEG without its segments of one marker (0xEE is Adobe's)."""
    out, place = data[:2], 2
    while data[place + 1] != 0xDA:
        n_bytes = 2 + struct.unpack(">H", data[place + 2 : place + 4])[0]
        out += b"" if data[place + 1] == marker else data[place : place + n_bytes]
        place += n_bytes
    return out + data[place:]


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("progressive", [True, False])
def test_jpeg_in_ink_is_stored_inverted_with_adobes_marker_and_without(
    marked: bool, progressive: bool
):
    """As browsers show both; libjpeg's own advice, to trust the marker, is not what they do."""
    inks = (200, 30, 100, 50)
    image = flat_ink(*inks)
    data = saved(image, "JPEG", quality=100, subsampling=0, progressive=progressive)
    assert (b"Adobe" in data) is True
    data = data if marked else without_marker(data, 0xEE)
    assert (b"Adobe" in data) is marked
    expected = as_seen_in_ink(row(inks))
    assert close(seen(data, RGB)[:1], expected, within=2)


def test_jpeg_in_ink_as_photoshop_writes_it():
    """YCCK: the inks that cover, as if red, green and blue, in luma and chroma; black inverted."""
    c, m, y, k = 200, 30, 100, 50
    luma = 0.299 * c + 0.587 * m + 0.114 * y
    stored = (luma, 128 + (y - luma) / 1.772, 128 + (c - luma) / 1.402, 255 - k)
    inverted = [255 - round(level) for level in stored]  # Pillow inverts what it writes
    data = saved(flat_ink(*inverted), "JPEG", quality=100, subsampling=0)
    place = data.index(b"Adobe") + 11
    assert data[place] == 0
    ycck = data[:place] + b"\x02" + data[place + 1 :]
    assert close(seen(ycck, RGB)[:1], as_seen_in_ink(row((c, m, y, k))), within=4)


def test_progressive_jpeg_is_the_picture_that_the_other_kind_is():
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((70, 50))
    plain, progressive = (saved(smooth, "JPEG", quality=90, progressive=p) for p in (False, True))
    assert plain != progressive
    assert np.array_equal(decode(plain, RGB, LIMIT), decode(progressive, RGB, LIMIT))


FIRST, SECOND = (Image.new("RGB", (3, 2), colour) for colour in ((250, 0, 0), (0, 0, 250)))


@pytest.mark.parametrize(
    ("kind", "options"),
    [("TIFF", {}), ("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})],
)
def test_of_several_pages_or_frames_the_first_is_seen(kind: str, options: dict[str, Any]):
    data = saved(FIRST, kind, save_all=True, append_images=[SECOND], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert seen(data, RGB) == [(250, 0, 0)] * 3


def test_gif_with_a_hole_is_seen_on_white():
    image = Image.new("P", (2, 1), 1)
    image.putpalette([9, 9, 9, 10, 20, 30])
    image.putpixel((0, 0), 0)
    assert seen(saved(image, "GIF", transparency=0), RGB) == [(255, 255, 255), (10, 20, 30)]


@pytest.mark.parametrize("bits", [1, 4, 8, 24, 32])
def test_bmp_of_every_depth(bits: int):
    """Rows from the bottom, each to a multiple of four bytes, blue first."""
    colours = [(0, 0, 0), (250, 100, 50)]
    palette = b"".join(bytes([b, g, r, 0]) for r, g, b in colours) if bits <= 8 else b""
    if bits <= 8:
        digits = "".join(f"{n:0{bits}b}" for n in (1, 0, 1))
        pixels = int(digits.ljust(-(-len(digits) // 8) * 8, "0"), 2).to_bytes(-(-len(digits) // 8))
    else:
        pixels = b"".join(
            bytes([b, g, r])[:3] + b"\0" * (bits // 8 - 3)
            for r, g, b in (colours[1], colours[0], colours[1])
        )
    pixels += b"\0" * (-len(pixels) % 4)
    start = 14 + 40 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start)
    head += struct.pack(
        "<IiiHHIIiiII", 40, 3, 1, 1, bits, 0, len(pixels), 0, 0, len(palette) // 4, 0
    )
    assert seen(head + palette + pixels, RGB) == [colours[1], colours[0], colours[1]]


def test_webp_with_alpha_and_with_loss():
    clear = Image.new("RGBA", (8, 8), (200, 100, 50, 0))
    assert seen(saved(clear, "WEBP", lossless=True), RGB)[0] == (255, 255, 255)
    flat = Image.new("RGB", (16, 16), (200, 100, 50))
    assert close(seen(saved(flat, "WEBP", quality=90), RGB)[:1], [(200, 100, 50)], within=4)


# Where the first row and the first column of what is stored stand (EXIF 2.32, 4.6.4 A): of rows
# the visual side, of columns the other; so seen, of the letter F, how its strokes run.
STORED = np.arange(6).reshape(2, 3) * 40
UPRIGHT = {
    1: [[0, 40, 80], [120, 160, 200]],  # rows from the top, columns from the left
    2: [[80, 40, 0], [200, 160, 120]],  # top, right
    3: [[200, 160, 120], [80, 40, 0]],  # bottom, right
    4: [[120, 160, 200], [0, 40, 80]],  # bottom, left
    5: [[0, 120], [40, 160], [80, 200]],  # left, top
    6: [[120, 0], [160, 40], [200, 80]],  # right, top
    7: [[200, 80], [160, 40], [120, 0]],  # right, bottom
    8: [[80, 200], [40, 160], [0, 120]],  # left, bottom
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 100}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_a_picture_stands_as_its_exif_says(kind: str, options: dict[str, Any], orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    blocks = STORED.repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
    data = saved(Image.fromarray(blocks), kind, exif=exif, **options)
    found = decode(data, GREY, LIMIT)[4::8, 4::8, 0]
    assert close(found, UPRIGHT[orientation], within=1)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(
    ("photometric", "kind", "planar"), [(1, "<u2", 1), (0, "<u2", 1), (2, ">u2", 2), (1, "<u4", 1)]
)
def test_what_is_put_right_by_us_stands_as_its_exif_says(
    photometric: int, kind: str, planar: int, orientation: int
):
    """40 is not the step of a picture that goes from darkest to lightest, so 51 is taken here."""
    levels = (STORED // 40 * 51).astype(np.int64)
    stored = (255 - levels if photometric == 0 else levels)[:, :, None]
    stored = stored.repeat(3, axis=2) if photometric == 2 else stored
    wide = stored * (257 if kind.endswith("2") else 2**24)
    data = tiff(wide, photometric, kind, planar=planar, orientation=orientation)
    found = decode(data, GREY, LIMIT)[:, :, 0]
    assert close(found, np.array(UPRIGHT[orientation]) // 40 * 51, within=1)


BY_HAND = [
    tiff(RGB16, 2, "<u2", planar=2),
    tiff(RGB16, 2, ">u2", planar=2, packed=True),
    tiff(GREY16, 0, "<u2"),
    tiff(GREY16 * 65537, 1, "<u4"),
    png(row(0, 1, 2, 3), 2, 0, trns=b"\0\1"),
    png(GREY16, 16, 0, trns=b"\1\1"),
    saved(flat_ink(200, 30, 100, 50), "JPEG"),
]


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it can pass over
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(BY_HAND), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255))))
def test_any_bytes_are_a_picture_or_damage(data: bytes, changes: list[tuple[float, int]]):
    mutated = bytearray(data)
    for place, value in changes:
        mutated[int(place * (len(data) - 1))] = value
    try:
        found = decode(bytes(mutated), RGB, LIMIT)
    except DamagedImageError:
        return
    assert found.dtype == np.uint8
    assert found.shape[2] == 3
    assert found.shape[0] * found.shape[1] <= LIMIT
