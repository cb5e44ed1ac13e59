from types import SimpleNamespace

import numpy as np
import pytest

from stages.importing.crc32c import ROWS, crc32c, masked_crc32c


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),  # the check value of the definition
        (bytes(32), 0x8A9136AA),  # RFC 3720, appendix B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_values(data: bytes, crc: int):
    assert crc32c(data) == crc


LENGTHS = [n + extra for row in ROWS for n in (row, 2 * row, 3 * row) for extra in range(-5, 6)]


def test_any_length_gives_what_the_byte_by_byte_rule_gives(tf: SimpleNamespace):
    data = np.random.default_rng(0).integers(0, 256, max(LENGTHS), "uint8").tobytes()
    crcs, crc = {}, 0xFFFFFFFF
    for length, byte in enumerate(data, start=1):
        crc = tf.CRC_OF_BYTE[(crc ^ byte) & 0xFF] ^ crc >> 8
        crcs[length] = crc ^ 0xFFFFFFFF
    lengths = [*range(1, 70), *LENGTHS]
    assert {n: crc32c(data[:n]) for n in lengths} == {n: crcs[n] for n in lengths}


def test_a_single_turned_bit_is_seen_wherever_it_is():
    data = bytearray(
        np.random.default_rng(1).integers(0, 256, 2 * ROWS[0] + 777, "uint8").tobytes()
    )
    whole = crc32c(data)
    for place in (0, 3, 4, 776, 777, ROWS[0], 2 * ROWS[0], len(data) - 1):
        data[place] ^= 0x10
        assert crc32c(data) != whole
        data[place] ^= 0x10


def test_a_masked_checksum_is_turned_and_shifted():
    turned = 0x1C60D | 0x25060000
    assert (0xE3069283 >> 15, 0xE3069283 << 17 & 0xFFFFFFFF) == (0x1C60D, 0x25060000)
    assert masked_crc32c(b"123456789") == turned + 0xA282EAD8
