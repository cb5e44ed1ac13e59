"""The sorted table in a checkpoint's index file: blocks of keys that share prefixes.

The format is LevelDB's. A block ends in its restart points, a type byte and a masked CRC-32C; the
file ends in a footer that points to a block of pointers to the other blocks.
"""

from collections.abc import Iterator

from stages.importing.crc32c import masked_crc32c
from stages.importing.wire import Damaged, fixed32, piece, varint

FOOTER_BYTES = 48
MAGIC = 0xDB4775248B80FB57
TRAILER_BYTES = 5  # type and checksum
PLAIN, SNAPPY = 0, 1

# The largest official network has some 3,000 variables, names of 120 letters and an index of
# 0.3 MB; what is far beyond is made to fill memory.
LARGEST_INDEX_BYTES = 64 << 20
MOST_ENTRIES = 200_000
LONGEST_KEY = 2_000
MOST_KEY_BYTES = 64 << 20


def read_table(file: memoryview) -> dict[bytes, memoryview]:
    """Keys and values of a whole index file.

    Raises:
        Damaged: it is no such table, or a checksum does not fit.
    """
    if len(file) > LARGEST_INDEX_BYTES:
        raise Damaged(f"an index of {len(file)} bytes is larger than any network's")
    if len(file) < FOOTER_BYTES:
        raise Damaged("it is too short to hold a footer")
    footer = file[-FOOTER_BYTES:]
    if int.from_bytes(footer[-8:], "little") != MAGIC:
        raise Damaged("it does not end as an index does (cut short, or another kind of file)")
    _, at = _handle(footer, 0)  # of the block on the table itself, which is empty
    (offset, n_bytes), _ = _handle(footer, at)
    body = file[:-FOOTER_BYTES]
    table: dict[bytes, memoryview] = {}
    last_key, end, key_bytes = b"", 0, 0
    for _, pointer in _entries(_block(body, offset, n_bytes)):
        (offset, n_bytes), _ = _handle(pointer, 0)
        if offset < end:
            raise Damaged("blocks overlap or are out of order")
        end = offset + n_bytes + TRAILER_BYTES
        for key, value in _entries(_block(body, offset, n_bytes)):
            if table and key <= last_key:
                raise Damaged("names are out of order")
            last_key, key_bytes = key, key_bytes + len(key)
            if len(table) >= MOST_ENTRIES or key_bytes > MOST_KEY_BYTES:
                raise Damaged(f"it has more than {MOST_ENTRIES} entries, or endless names")
            table[key] = value
    return table


def _handle(data: memoryview, at: int) -> tuple[tuple[int, int], int]:
    offset, at = varint(data, at)
    n_bytes, at = varint(data, at)
    return (offset, n_bytes), at


def _block(body: memoryview, offset: int, n_bytes: int) -> memoryview:
    """The contents of a block, its checksum compared."""
    whole = piece(body, offset, n_bytes + TRAILER_BYTES)
    contents, kind = whole[:n_bytes], whole[n_bytes]
    if masked_crc32c(whole[: n_bytes + 1]) != fixed32(whole, n_bytes + 1):
        raise Damaged(f"the checksum of the block at {offset} does not fit its bytes")
    if kind != PLAIN:
        raise Damaged(
            "its blocks are compressed, which TensorFlow's checkpoints are not"
            if kind == SNAPPY
            else f"a block has the unknown type {kind}"
        )
    return contents


def _entries(block: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Keys and values of a block; a key repeats the beginning of the one before it."""
    n_restarts = fixed32(block, len(block) - 4)
    end = len(block) - 4 - 4 * n_restarts
    if end < 0:
        raise Damaged(f"a block of {len(block)} bytes announces {n_restarts} restart points")
    entries, at, key = block[:end], 0, b""
    while at < end:
        shared, at = varint(entries, at)
        own, at = varint(entries, at)
        value_bytes, at = varint(entries, at)
        if shared > len(key) or shared + own > LONGEST_KEY:
            raise Damaged(f"a name of {shared + own} letters, {shared} of them repeated")
        key = key[:shared] + bytes(piece(entries, at, own))
        at += own
        yield key, piece(entries, at, value_bytes)
        at += value_bytes
