"""Image bytes to the pixels a person sees.

Shapes: H W C, C is 1 (grey) or 3 (RGB).
"""

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin, TiffImagePlugin

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")  # decoders that only decode
SUFFIXES = {
    ".jpg": "jpg",
    ".jpeg": "jpg",
    ".jpe": "jpg",
    ".jfif": "jpg",
    ".png": "png",
    ".webp": "webp",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".bmp": "bmp",
    ".gif": "gif",
}

# Pictures by their ending, which no decoder here reads: told, not passed over.
UNREAD_SUFFIXES = {
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".psd", ".tga", ".exr", ".ppm", ".pgm"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"),  # of cameras, as taken
}

# A large picture is refused here, by size and before its pixels are unpacked. Pillow's own limit
# would otherwise only warn.
warnings.simplefilter("error", Image.DecompressionBombWarning)

_TIFF_HEADS = (b"II*\0", b"MM\0*")
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC = 256, 257, 258, 262
_STRIPS, _STRIP_BYTES, _PLANES, _SAMPLES = 273, 279, 284, 339
_WHITE_IS_ZERO, _SEPARATE, _UNSIGNED = 0, 2, 1  # of those tags
_ORIENTATION = 0x0112
_PNG_STEPS = {"L;2": 85, "L;4": 17}  # between the levels of a grey PNG of 2 and of 4 bits

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
            pixels = np.asarray(_as_seen(_loaded(image, data), "L" if channels == 1 else "RGB"))
    except DamagedImageError:
        raise
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "not an image" if data else "empty"
            if data[:4] in _TIFF_HEADS:
                reason = "a TIFF of a kind that can't be read"
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


def _loaded(image: Image.Image, data: bytes) -> Image.Image:
    """The picture with its pixels, and what Pillow misreads put right (each has its test)."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _loaded_tiff(image, data)
    if isinstance(image, PngImagePlugin.PngImageFile):
        clear = image.info.get("transparency")
        step = _PNG_STEPS.get(str(image.tile[0].args)) if image.tile else None
        if isinstance(clear, int) and step:
            image.info["transparency"] = clear * step  # the level as stored is not that of pixels
        image.load()
        if isinstance(clear, int) and image.mode == "I;16":
            values_HW = np.asarray(image)
            return _like(image, np.where(values_HW == clear, np.uint16(65535), values_HW))
    image.load()
    return image


def _loaded_tiff(image: TiffImagePlugin.TiffImageFile, data: bytes) -> Image.Image:
    tags = image.tag_v2
    if (
        tags.get(_PLANES) == _SEPARATE
        and set(tags.get(_BITS, ())) == {16}
        and image.tile[0].codec_name == "raw"
    ):
        return _from_planes(image, data)
    image.load()
    if image.mode == "I;16" and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        return _like(image, 65535 - np.asarray(image).astype(np.uint16))
    if image.mode == "I" and tags.get(_BITS) == (32,) and tags.get(_SAMPLES, (1,)) == (_UNSIGNED,):
        return _like(image, np.asarray(image).view(np.uint32).astype(np.float32))
    return image


def _from_planes(image: TiffImagePlugin.TiffImageFile, data: bytes) -> Image.Image:
    """An unpacked TIFF of 16 bits whose colours lie one after the other."""
    tags = image.tag_v2
    width, height = tags[_WIDTH], tags[_HEIGHT]  # as stored, not as it stands
    if sum(tags[_STRIP_BYTES]) != 2 * width * height * len(tags[_BITS]):
        raise DamagedImageError("strips that do not make up the picture")
    planes = b"".join(
        data[offset : offset + n_bytes]
        for offset, n_bytes in zip(tags[_STRIPS], tags[_STRIP_BYTES], strict=True)
    )
    order = "<" if tags.prefix == b"II" else ">"
    values_CHW = np.frombuffer(planes, f"{order}u2").reshape(-1, height, width)
    pixels_HWC = np.ascontiguousarray((values_CHW >> 8).astype(np.uint8).transpose(1, 2, 0))
    return _like(image, pixels_HWC, image.mode)


def _like(image: Image.Image, pixels: NDArray[Any], mode: str | None = None) -> Image.Image:
    """Other pixels, standing as the image does."""
    if mode is not None:
        height, width = pixels.shape[:2]
        new = Image.frombytes(mode, (width, height), pixels.tobytes())
    else:
        new = Image.fromarray(pixels)
    turned = image.getexif().get(_ORIENTATION)
    if turned:
        new.getexif()[_ORIENTATION] = turned
    return new


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
