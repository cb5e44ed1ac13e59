"""Image bytes to the pixels a person sees.

Shapes: H W C, C is 1 (grey) or 3 (RGB).
"""

import io
import struct
import warnings
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")  # decoders that only decode
SUFFIXES = {
    ".jpg": "jpg",
    ".jpeg": "jpg",
    ".png": "png",
    ".webp": "webp",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".bmp": "bmp",
    ".gif": "gif",
}

# A large picture is refused here, by size and before its pixels are unpacked. Pillow's own limit
# would otherwise only warn.
warnings.simplefilter("error", Image.DecompressionBombWarning)

_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)

# What Pillow's decoders are known to raise on damaged input, beside OSError.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    NotImplementedError,
    EOFError,
    struct.error,
    zlib.error,
    *_BOMB,
)


class DamagedImageError(ValueError):
    """Bytes that do not decode to a picture, and why."""


def decode(data: bytes, channels: int, max_pixels: int) -> NDArray[np.uint8]:
    """Decode to uint8 (H, W, C): upright, alpha on white, 16 bits to 8, first frame.

    Args:
        data: a file's bytes; its content decides the format, not its name.
        channels: C, 1 or 3.
        max_pixels: a picture of more is refused before its pixels are unpacked.

    Raises:
        DamagedImageError: no picture, a damaged one, or one too large.
    """
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # PIL's own limit must not be the lower one
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise DamagedImageError(f"more pixels than max_pixels ({max_pixels})")
            image.load()
            pixels = np.asarray(_as_seen(image, "L" if channels == 1 else "RGB"))
    except DamagedImageError:
        raise
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "not an image" if data else "empty"
        elif isinstance(error, _BOMB):
            reason = f"more pixels than max_pixels ({max_pixels})"
        raise DamagedImageError(reason) from error
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A grey (H, W) or RGB (H, W, 3) picture as PNG, its pixels stored and not packed.

    What zlib packs differs between its versions; stored, the shards of one data set have the same
    bytes and the same fingerprint everywhere, and are faster to write and to read.
    """
    height, width = pixels.shape[:2]
    flat = pixels.reshape(height, -1)
    rows = np.zeros((height, flat.shape[1] + 1), dtype=np.uint8)
    rows[:, 1:] = flat  # a row starts with its filter: 0, none
    colour = 0 if pixels.ndim == 2 else 2
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", _stored(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def _stored(data: bytes) -> bytes:
    """A zlib stream (RFC 1950) of stored blocks, at most 65,535 bytes each (RFC 1951, 3.2.4)."""
    blocks = [data[start : start + 65535] for start in range(0, len(data), 65535)]
    return (
        b"\x78\x01"
        + b"".join(
            struct.pack("<BHH", number == len(blocks), len(block), len(block) ^ 0xFFFF) + block
            for number, block in enumerate(blocks, start=1)
        )
        + struct.pack(">I", zlib.adler32(data))
    )


def _as_seen(image: Image.Image, mode: str) -> Image.Image:
    """The picture in `mode` ("L" or "RGB") as a viewer would show it."""
    if image.mode == mode and not image.info:
        return image
    image = _upright(image)
    if image.mode in {"I;16", "I;16L", "I;16B", "I;16N", "I", "F"}:
        image = Image.fromarray(_to_8_bits(np.asarray(image), image.mode))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF block says; like viewers, pass over a block that can't be read."""
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGE:
        return image


def _to_8_bits(values_HW: NDArray[np.generic], mode: str) -> NDArray[np.uint8]:
    """16-bit grey by its upper byte; wider kinds have no agreed white, so darkest to lightest."""
    if mode.startswith("I;16"):
        return (values_HW.astype(np.uint16) >> 8).astype(np.uint8)
    wide_HW = values_HW.astype(np.float64)
    if not np.isfinite(wide_HW).all():
        raise DamagedImageError("pixels that are not finite numbers")
    low, high = wide_HW.min(), wide_HW.max()
    if mode == "I" and low >= 0 and high < 65536:
        return (wide_HW / (1 if high < 256 else 256)).astype(np.uint8)
    return np.round((wide_HW - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
