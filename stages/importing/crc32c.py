"""CRC-32C, the checksum of TensorFlow's files, fast enough for gigabytes without an extension.

A CRC is linear over bits, so a word can be replaced by another one further down: `advance` turns a
word into the one that has the same effect n bytes later. Rows of many words are folded onto the
next row, all of them at once, until one short row is left for the byte-by-byte rule.
"""

from functools import cache

import numpy as np

POLYNOMIAL = 0x82F63B78  # Castagnoli's, lowest bit first
ALL_ONES = 0xFFFFFFFF
MASK_DELTA = 0xA282EAD8
# Bytes in a row: the first fits a processor's cache, the last is short enough for Python.
ROWS = (1 << 18, 1 << 13, 1 << 8)


def masked_crc32c(data: bytes | bytearray | memoryview) -> int:
    """The checksum as TensorFlow stores it, rotated and shifted (a file may hold its own CRC)."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & ALL_ONES


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """CRC-32C of all bytes: 0xE3069283 for b"123456789"."""
    message, state = memoryview(data).cast("B"), ALL_ONES
    for row_bytes in ROWS:
        if len(message) > 2 * row_bytes:
            message, state = memoryview(_fold(message, state, row_bytes)), 0
    return _by_bytes(message, state) ^ ALL_ONES


def _fold(message: memoryview, state: int, row_bytes: int) -> bytes:
    """One row that has, from state 0, the CRC of the message from `state`."""
    # From state 0, zeros before a message change nothing, and a state is the first four bytes
    # turned over.
    first_bytes = row_bytes + len(message) % row_bytes
    first = bytearray(2 * row_bytes - first_bytes) + message[:first_bytes]
    for place, byte in enumerate(state.to_bytes(4, "little"), start=2 * row_bytes - first_bytes):
        first[place] ^= byte
    low, high = _advance_tables(row_bytes)
    words = np.zeros(row_bytes // 4, "<u4")
    for part in (first, message[first_bytes:]):
        for row in np.frombuffer(part, "<u4").reshape(-1, row_bytes // 4):
            words = low[words & 0xFFFF] ^ high[words >> 16]
            words ^= row
    return words.tobytes()


def _by_bytes(message: memoryview, state: int) -> int:
    for byte in message:
        state = _BYTE[(state ^ byte) & 0xFF] ^ state >> 8
    return state


def _byte_table() -> list[int]:
    table = []
    for state in range(256):
        for _ in range(8):
            state = state >> 1 ^ (POLYNOMIAL if state & 1 else 0)
        table.append(state)
    return table


_BYTE = _byte_table()


@cache
def _advance_tables(n_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """What the lower and the upper half of a word become n bytes (a power of 2) later."""
    images = [_BYTE[bit & 0xFF] ^ bit >> 8 for bit in (1 << n for n in range(32))]
    for _ in range(n_bytes.bit_length() - 1):  # doubling: the same step twice
        images = [_apply(images, image) for image in images]
    low, high = np.zeros(1 << 16, "<u4"), np.zeros(1 << 16, "<u4")
    for bit in range(16):
        low[1 << bit : 2 << bit] = low[: 1 << bit] ^ images[bit]
        high[1 << bit : 2 << bit] = high[: 1 << bit] ^ images[16 + bit]
    return low, high


def _apply(images: list[int], word: int) -> int:
    result = 0
    for bit in range(32):
        if word >> bit & 1:
            result ^= images[bit]
    return result
