"""JPEG bytes to pixels without Pillow's work around the decoder; the same pixels.

Only the plain case is taken: 8 bits, grey or YCbCr, no EXIF block (it may turn the picture), no
several pictures in one file. Everything else, and everything damaged, is `images.decode`'s, so
what is refused and why stays with it.

Shapes: H W C.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import simplejpeg
except ImportError:  # no wheel for this machine: Pillow decodes all
    simplejpeg: Any = None

_START_OF_FRAME = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive; Huffman-coded
_PASSED_OVER = {0xC4, 0xDB, 0xDD, 0xFE, 0xE0}  # tables, restart interval, comment, JFIF
_ICC_PROFILE, _ADOBE = 0xE2, 0xEE
_END_OF_TABLES = 0xDA
_SCAN = bytes([0xFF, _END_OF_TABLES])
_ADOBE_YCBCR = 1
# The header seen last and what it says; one name, since threads share it.
_last: tuple[bytes, tuple[int, int, int] | None] = (b"none yet", None)


def decode_plain_jpeg(
    data: bytes, channels: int, max_pixels: int, out_HWC: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8] | None:
    """The picture, uint8 (H, W, C), or None where it is for `images.decode` to say.

    Args:
        data: a file's bytes.
        channels: C, 1 or 3.
        max_pixels: a larger picture is not unpacked here.
        out_HWC: contiguous, where to put it; a picture of another size is not unpacked. Whatever
            comes, what stood there is lost.
    """
    if simplejpeg is None:
        return None
    size = plain_size(data, channels, max_pixels)
    if size is None or (out_HWC is not None and out_HWC.shape != (*size, channels)):
        return None
    try:
        # strict: what libjpeg only warns of is damage too.
        return simplejpeg.decode_jpeg(
            data, "GRAY" if channels == 1 else "RGB", strict=True, buffer=out_HWC
        )
    except ValueError:
        return None


def plain_size(data: bytes, channels: int, max_pixels: int) -> tuple[int, int] | None:
    """Height and width of a picture that is the plain case, else None; arguments as above."""
    shape = _shape(data)
    # Pillow makes colour grey from RGB, and JPEG's own luma differs from that by rounding.
    if shape is None or shape[0] * shape[1] > max_pixels or (channels == 1 and shape[2] == 3):
        return None
    return shape[:2]


def _shape(data: bytes) -> tuple[int, int, int] | None:
    """As `_plain_shape`, remembered.

    Pictures of one encoder often have one header: to see that it is the last one's again takes a
    tenth of looking it up, and that a tenth of walking it.
    """
    global _last
    header, shape = _last
    if data.startswith(header):
        return shape
    # The marker may also stand in a table by chance: then the header seems cut short.
    header = data[: data.find(_SCAN) + 4]
    shape = _known_shape(header)
    if shape is None:
        return _plain_shape(data)
    _last = header, shape
    return shape


@lru_cache(maxsize=4096)
def _known_shape(header: bytes) -> tuple[int, int, int] | None:
    return _plain_shape(header)


def _plain_shape(data: bytes) -> tuple[int, int, int] | None:
    """Height, width and components of a JPEG file with nothing special in it, else None."""
    if data[:2] != b"\xff\xd8":
        return None
    shape, place = None, 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        n_bytes = int.from_bytes(data[place + 2 : place + 4], "big")
        body = data[place + 4 : place + 18]
        if marker == _END_OF_TABLES:
            return shape
        if marker in _START_OF_FRAME:
            if shape is not None or len(body) < 6 or body[0] != 8 or body[5] not in {1, 3}:
                return None
            shape = (int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big"), body[5])
        elif marker == _ICC_PROFILE:
            if not body.startswith(b"ICC_PROFILE\0"):
                return None
        elif marker == _ADOBE:
            if body[:5] != b"Adobe" or body[11:12] != bytes([_ADOBE_YCBCR]):
                return None
        elif marker not in _PASSED_OVER:
            return None
        place += 2 + n_bytes
    return None
