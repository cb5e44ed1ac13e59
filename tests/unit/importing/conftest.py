"""A slow, obvious writer of TensorFlow's checkpoint format, and small networks to write with it."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stages.models.heads import LinearClassifier
from stages.models.official_names import OfficialVariable, official_variables
from stages.models.simclr import SimCLR, build_encoder, build_simclr

FLOAT, STRING, INT64 = 1, 7, 9
PER_BLOCK = 20
MAGIC = 0xDB4775248B80FB57


def crc32c(data: bytes) -> int:
    """Bit by bit, as the definition has it; a byte's eight steps are kept in a table."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_OF_BYTE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _eight_steps(state: int) -> int:
    for _ in range(8):
        state = state >> 1 ^ 0x82F63B78 if state & 1 else state >> 1
    return state


CRC_OF_BYTE = [_eight_steps(byte) for byte in range(256)]


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number % 128 + 128])
        number //= 128
    return out + bytes([number])


def field(number: int, value: int | bytes) -> bytes:
    """A number or a string of a protocol-buffer message."""
    if isinstance(value, int):
        return varint(number * 8) + varint(value)
    return varint(number * 8 + 2) + varint(len(value)) + value


def fixed32_field(number: int, value: int) -> bytes:
    return varint(number * 8 + 5) + struct.pack("<I", value)


def shape_message(shape: Sequence[int]) -> bytes:
    return b"".join(field(2, field(1, size)) for size in shape)


def entry_message(
    dtype: int,
    shape: Sequence[int],
    shard: int,
    offset: int,
    n_bytes: int,
    crc: int,
    more: bytes = b"",
) -> bytes:
    numbers = field(3, shard) + field(4, offset) + field(5, n_bytes)
    return field(1, dtype) + field(2, shape_message(shape)) + numbers + fixed32_field(6, crc) + more


def header_message(n_shards: int = 1, endianness: int = 0) -> bytes:
    return field(1, n_shards) + field(2, endianness) + field(3, field(1, 1))


def block(entries: Sequence[tuple[bytes, bytes]]) -> bytes:
    out, last = b"", b""
    for key, value in entries:
        shared = 0
        while shared < min(len(key), len(last)) and key[shared] == last[shared]:
            shared += 1
        own = key[shared:]
        out += varint(shared) + varint(len(own)) + varint(len(value)) + own + value
        last = key
    return out + struct.pack("<II", 0, 1)  # one restart point, at 0


def sealed(contents: bytes, kind: int = 0) -> bytes:
    typed = contents + bytes([kind])
    return typed + struct.pack("<I", masked(typed))


def table_of_blocks(blocks: Sequence[tuple[bytes, bytes]], kind: int = 0) -> bytes:
    """A table from (last key, contents) of each block."""
    file, pointers = b"", []
    for last_key, contents in blocks:
        pointers.append((last_key, varint(len(file)) + varint(len(contents))))
        file += sealed(contents, kind)
    handles = b""
    for contents in (block([]), block(pointers)):
        handles += varint(len(file)) + varint(len(contents))
        file += sealed(contents)
    return file + handles.ljust(40, b"\0") + struct.pack("<Q", MAGIC)


def table(entries: Mapping[bytes, bytes]) -> bytes:
    ordered = sorted(entries.items())
    parts = [ordered[i : i + PER_BLOCK] for i in range(0, len(ordered), PER_BLOCK)]
    return table_of_blocks([(part[-1][0], block(part)) for part in parts])


def stored_text(text: bytes) -> tuple[bytes, int]:
    """A scalar string as it lies in a data file, and its checksum."""
    length = struct.pack("<I", len(text))
    check = struct.pack("<I", masked(length))
    return varint(len(text)) + check + text, masked(length + check + text)


@dataclass(frozen=True)
class Written:
    """The index's entries and the data files' bytes, before they are on disk."""

    entries: dict[bytes, bytes]
    data: list[bytes]

    def save(self, prefix: Path) -> Path:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        prefix.with_name(f"{prefix.name}.index").write_bytes(table(self.entries))
        for number, data in enumerate(self.data):
            name = f"{prefix.name}.data-{number:05d}-of-{len(self.data):05d}"
            prefix.with_name(name).write_bytes(data)
        return prefix


def laid_out(tensors: Mapping[str, np.ndarray | bytes], n_shards: int = 1) -> Written:
    """Lay tensors (float32, int64, or a text) into data files, turn about."""
    entries, data = {b"": header_message(n_shards)}, [b""] * n_shards
    for number, (name, value) in enumerate(sorted(tensors.items())):
        shard = number % n_shards
        if isinstance(value, bytes):
            dtype, shape, (raw, crc) = STRING, (), stored_text(value)
        else:
            dtype, shape = (INT64 if value.dtype == np.int64 else FLOAT), value.shape
            raw = value.tobytes()
            crc = masked(raw)
        entries[name.encode()] = entry_message(dtype, shape, shard, len(data[shard]), len(raw), crc)
        data[shard] += raw
    return Written(entries, data)


def object_graph(names_by_key: Mapping[str, str]) -> bytes:
    """An object graph that holds nothing but each key's variable name."""
    nodes = field(1, field(1, field(1, 1) + field(2, b"model")))
    for key, name in names_by_key.items():
        texts = field(1, b"VARIABLE_VALUE") + field(2, name.encode()) + field(3, key.encode())
        nodes += field(1, field(2, texts))
    return nodes


@dataclass(frozen=True)
class SmallNet:
    """A network with random weights, under the official names and in the official layout."""

    simclr: SimCLR
    linear: LinearClassifier
    variables: list[OfficialVariable]

    @property
    def state(self) -> dict[str, torch.Tensor]:
        mine = dict(self.simclr.state_dict())
        return mine | {f"linear.{n}": value for n, value in self.linear.state_dict().items()}

    def official(self, attribute: str) -> dict[str, np.ndarray]:
        """Values by `tf1_name`, `tf2_key` or `tf2_name`."""
        state = self.state
        return {
            getattr(variable, attribute): variable.to_official(state[variable.ours]).numpy()
            for variable in self.variables
        }


def small_net(
    depth: int = 18, *, sk: bool = False, head_depth: int = 3, from_layer: int = 0, seed: int = 0
) -> SmallNet:
    """One channel where the official nets have 64; 5 classes on layer `from_layer` of g."""
    random = torch.Generator().manual_seed(seed)
    encoder = build_encoder(depth, 1 / 64, 0.0625 if sk else 0.0, "small")
    simclr = build_simclr(encoder, max(head_depth, 1), out_dim=6)
    linear = LinearClassifier(simclr.head.widths[from_layer], 5)
    variables = official_variables(depth, sk=sk, stem="small", head_depth=head_depth)
    with torch.no_grad():
        for value in [*simclr.state_dict().values(), *linear.state_dict().values()]:
            value.copy_(torch.rand(value.shape, generator=random) + 0.5)
    return SmallNet(simclr, linear, variables)


@pytest.fixture(scope="session")
def tf() -> SimpleNamespace:
    """Everything above, for tests."""
    return SimpleNamespace(**globals())
