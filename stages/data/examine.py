"""The first pass over a source: does each image decode, how large is it, what does it hold.

Shapes: H W C.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stages.data.engine import Engine
from stages.data.images import DamagedImageError, decode
from stages.data.looks import look_of
from stages.data.sources import Picture, some
from stages.errors import UserError

MAX_FILE_BYTES = 256 * 2**20  # of one image
_CHUNK = 500  # images per unit of work
_WORTH_PROCESSES = 4 * _CHUNK  # below, starting processes takes longer than they save


@dataclass(frozen=True, slots=True)
class Examined:
    """What one image turned out to be.

    Attributes:
        problem: why it can't be used; None when it can, and only then the rest counts.
        bytes_digest: of the file.
        pixels_digest: of the decoded picture, equal for copies in another format.
        height: in pixels, of the upright picture.
        width: in pixels.
        sums: over the pixels, of each channel.
        squares: of their squares.
        look: what near copies are told by; see looks.
    """

    problem: str | None = None
    bytes_digest: bytes = b""
    pixels_digest: bytes = b""
    height: int = 0
    width: int = 0
    sums: tuple[int, ...] = ()
    squares: tuple[int, ...] = ()
    look: bytes = b""


def examine(
    pictures: Sequence[Picture],
    channels: int,
    max_pixels: int,
    engine: Engine,
    tell: Callable[[int], None] = lambda _: None,
) -> list[Examined]:
    """Read and decode every picture once, in order.

    Args:
        pictures: to look at.
        channels: 1 or 3, what the networks will see.
        max_pixels: a larger picture can't be used.
        engine: who works.
        tell: called with the number of pictures done since the last call.
    """
    chunks = [
        _Chunk(pictures[start : start + _CHUNK], channels, max_pixels)
        for start in range(0, len(pictures), _CHUNK)
    ]
    found: list[Examined] = []
    few = len(pictures) < _WORTH_PROCESSES
    for part in engine.each(_examine_chunk, chunks, few=few):
        found += part
        tell(len(part))
    return found


def examine_one(picture: Picture, channels: int, max_pixels: int) -> Examined:
    """Read and decode one picture."""
    try:
        data = read_bounded(picture)
        pixels_HWC = decode(data, channels, max_pixels)
    except DamagedImageError as error:
        return Examined(problem=str(error))
    except OSError as error:
        return Examined(problem=f"can't be read: {error.strerror or error}")
    height, width, _ = pixels_HWC.shape
    flat = pixels_HWC.reshape(-1, channels)
    levels = [np.bincount(flat[:, channel], minlength=256) for channel in range(channels)]
    values = np.arange(256)
    return Examined(
        bytes_digest=digest(data),
        pixels_digest=digest(repr(pixels_HWC.shape).encode() + pixels_HWC.tobytes()),
        height=height,
        width=width,
        sums=tuple(int(counts @ values) for counts in levels),
        squares=tuple(int(counts @ values**2) for counts in levels),
        look=look_of(pixels_HWC),
    )


def read_bounded(picture: Picture) -> bytes:
    """The bytes of a picture, never more than MAX_FILE_BYTES.

    Raises:
        DamagedImageError: the file is larger than that.
    """
    data = picture.location.read_bytes()
    if len(data) > MAX_FILE_BYTES:
        raise DamagedImageError(f"a file of {len(data)} bytes, more than {MAX_FILE_BYTES}")
    return data


def digest(data: bytes) -> bytes:
    """16 bytes that tell one content from another."""
    return hashlib.blake2b(data, digest_size=16).digest()


def check_quarantine(quarantine: Sequence[tuple[str, str]], n_found: int, tolerance: float) -> None:
    """Stop when more images are unusable than the tolerance allows, or all are.

    Raises:
        UserError: with the first few and their reasons.
    """
    if not quarantine or (len(quarantine) <= tolerance * n_found and len(quarantine) < n_found):
        return
    first = some([f"{name} ({reason})" for name, reason in quarantine])
    if len(quarantine) == n_found:
        raise UserError(
            f"all {n_found} images can't be used: {first}.\n"
            "  Fetch them again from where they came, or convert them to JPEG or PNG."
        )
    raise UserError(
        f"{len(quarantine)} of {n_found} images can't be used, more than "
        f"data.quarantine_tolerance ({tolerance:g}) allows: {first}.\n"
        "  Mend or remove them, or raise the tolerance in params.yaml to leave them out."
    )


@dataclass(frozen=True)
class _Chunk:
    pictures: Sequence[Picture]
    channels: int
    max_pixels: int


def _examine_chunk(chunk: _Chunk) -> list[Examined]:
    return [examine_one(picture, chunk.channels, chunk.max_pixels) for picture in chunk.pictures]
