"""Numbers and protocol-buffer fields out of untrusted bytes, every length checked before use."""

import struct
from collections.abc import Iterator

LONGEST_VARINT = 10
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Damaged(Exception):
    """Bytes that no writer would have left; the message says which. Readers name the file."""


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """An unsigned number of up to 64 bits, and where the next byte stands."""
    number = 0
    for place, byte in enumerate(data[at : at + LONGEST_VARINT]):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            if number >= 1 << 64:
                break
            return number, at + place + 1
    raise Damaged("a number is cut short or too long")


def piece(data: memoryview, at: int, n_bytes: int) -> memoryview:
    """The next n bytes, all of them."""
    if at < 0 or n_bytes < 0 or at + n_bytes > len(data):
        raise Damaged(f"{n_bytes} bytes announced at {at}, where {len(data)} end")
    return data[at : at + n_bytes]


def fixed32(data: memoryview, at: int) -> int:
    return struct.unpack("<I", piece(data, at, 4))[0]


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a protocol-buffer message.

    A value is an int, or the bytes of a string or a message inside.
    """
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = varint(message, at)
            yield number, value
        elif kind == BYTES:
            n_bytes, at = varint(message, at)
            yield number, piece(message, at, n_bytes)
            at += n_bytes
        elif kind in {FIXED32, FIXED64}:
            n_bytes = 4 if kind == FIXED32 else 8
            yield number, int.from_bytes(piece(message, at, n_bytes), "little")
            at += n_bytes
        else:
            raise Damaged(f"a field has the unknown type {kind}")


def as_int(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise Damaged("text stands where a number should")
    return value


def as_bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise Damaged("a number stands where text should")
    return value


def as_text(value: int | memoryview) -> str:
    try:
        return bytes(as_bytes(value)).decode()
    except UnicodeDecodeError:
        raise Damaged("a name is not UTF-8") from None
