"""TensorFlow's files, whole and damaged. Forged ones are made by the writer in conftest.py."""

import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stages.errors import UserError
from stages.importing.bundle import Bundle
from stages.importing.locate import find_prefix
from stages.importing.object_graph import full_names
from stages.importing.table import LONGEST_KEY, MOST_ENTRIES, read_table
from stages.importing.wire import Damaged, varint

TENSORS = {
    "layer/kernel": np.arange(24, dtype="float32").reshape(2, 3, 4),
    "layer/kernel/Momentum": np.ones((2, 3, 4), "float32"),
    "scale": np.float32(2.5),
    "step": np.int64(7),
    "words": b"some text",
}


@pytest.mark.parametrize("n_shards", [1, 3])
def test_tensors_come_back_as_they_were_written(tf: SimpleNamespace, tmp_path: Path, n_shards: int):
    bundle = Bundle.open(tf.laid_out(TENSORS, n_shards).save(tmp_path / "model.ckpt-7"))
    assert sorted(bundle.entries) == sorted(TENSORS)
    np.testing.assert_array_equal(bundle.read("layer/kernel"), TENSORS["layer/kernel"])
    assert bundle.read("scale").shape == ()
    assert bytes(bundle.read_text("words", 100)) == b"some text"
    assert [file.exists() for file in bundle.files] == [True] * (n_shards + 1)


def test_many_blocks_and_shared_prefixes(tf: SimpleNamespace, tmp_path: Path):
    tensors = {f"base_model/conv2d_{n}/kernel": np.full(3, n, "float32") for n in range(200)}
    bundle = Bundle.open(tf.laid_out(tensors).save(tmp_path / "many"))
    assert {name: bundle.read(name)[0] for name in bundle.entries} == {
        name: value[0] for name, value in tensors.items()
    }


def forged(tf: SimpleNamespace, tmp_path: Path, **entry: object) -> Bundle:
    """A bundle with one float32 tensor `x` of 4 numbers, its entry partly false."""
    raw = np.arange(4, dtype="float32").tobytes()
    told = {
        "dtype": 1,
        "shape": [4],
        "shard": 0,
        "offset": 0,
        "n_bytes": 16,
        "crc": tf.masked(raw),
    } | entry
    entries = {b"": tf.header_message(), b"x": tf.entry_message(**told)}
    return Bundle.open(tf.Written(entries, [raw]).save(tmp_path / "forged"))


def test_an_honest_entry_is_read(tf: SimpleNamespace, tmp_path: Path):
    np.testing.assert_array_equal(forged(tf, tmp_path).read("x"), [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"offset": 1}, "should end at byte 17, and the file at 16"),
        ({"offset": 2**63}, "and the file at 16"),
        ({"n_bytes": 20}, "is said to have 20 bytes"),
        ({"n_bytes": 2**40, "shape": [2**38]}, "and the file at 16"),
        ({"shape": [2**64 - 4]}, "is said to have 16 bytes"),
        ({"shape": [2] * 9}, "more than 8 dimensions"),
        ({"shape": [5]}, "shape [5] is said to have 16 bytes"),
        ({"shard": 1}, "lies in data file 1 of 1"),
        ({"shard": 2**60}, "of 1"),
    ],
)
def test_a_forged_place_or_size_is_refused_before_anything_is_read(
    tf: SimpleNamespace, tmp_path: Path, entry: dict, said: str
):
    with pytest.raises(UserError) as refused:
        forged(tf, tmp_path, **entry)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"crc": 1}, "the checksum of x does not fit"),
        ({"dtype": 9, "shape": [2]}, "holds int64, not float32"),
        ({"dtype": 77}, "holds TensorFlow's type 77, not float32"),
        ({"shape": [0, 2**40], "n_bytes": 0}, "x is empty"),
    ],
)
def test_a_tensor_that_is_not_what_it_should_be_is_refused(
    tf: SimpleNamespace, tmp_path: Path, entry: dict, said: str
):
    bundle = forged(tf, tmp_path, **entry)
    with pytest.raises(UserError) as refused:
        bundle.read("x")
    assert said in str(refused.value)


def test_a_tensor_in_slices_is_refused(tf: SimpleNamespace, tmp_path: Path):
    slices = tf.field(7, tf.field(1, tf.field(2, 2)))
    bundle = forged(tf, tmp_path, n_bytes=0, more=slices)
    with pytest.raises(UserError, match="kept in slices"):
        bundle.read("x")


def test_tensors_that_overlap_are_refused(tf: SimpleNamespace, tmp_path: Path):
    raw = bytes(16)
    one = tf.entry_message(1, [4], 0, 0, 16, tf.masked(raw))
    written = tf.Written({b"": tf.header_message(), b"a": one, b"b": one}, [raw])
    with pytest.raises(UserError, match="overlap"):
        Bundle.open(written.save(tmp_path / "twice"))


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ((1, 1), "big-endian"),
        ((0, 0), "announces 0 data files"),
        ((2**40, 0), "announces 1099511627776 data files"),
    ],
)
def test_a_header_out_of_the_ordinary_is_refused(
    tf: SimpleNamespace, tmp_path: Path, header: tuple[int, int], said: str
):
    written = tf.Written({b"": tf.header_message(*header)}, [b""])
    with pytest.raises(UserError, match=said):
        Bundle.open(written.save(tmp_path / "odd"))


def test_files_that_are_missing_are_named(tf: SimpleNamespace, tmp_path: Path):
    with pytest.raises(UserError, match=r"nothing\.index is missing"):
        Bundle.open(tmp_path / "nothing")
    prefix = tf.laid_out(TENSORS).save(tmp_path / "half")
    data = tmp_path / "half.data-00000-of-00001"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    with pytest.raises(UserError, match="should end at byte"):
        Bundle.open(prefix)
    data.unlink()
    with pytest.raises(UserError, match=r"half\.data-00000-of-00001 is missing"):
        Bundle.open(prefix)


def test_every_cut_of_an_index_is_refused(tf: SimpleNamespace, tmp_path: Path):
    prefix = tf.laid_out(TENSORS).save(tmp_path / "cut")
    index = tmp_path / "cut.index"
    whole = index.read_bytes()
    for length in range(len(whole)):
        index.write_bytes(whole[:length])
        with pytest.raises(UserError, match="can't be used as a TensorFlow checkpoint"):
            Bundle.open(prefix)


def test_text_is_read_only_with_the_right_checksums(tf: SimpleNamespace, tmp_path: Path):
    written = tf.laid_out({"words": b"some text"})
    for place in range(len(written.data[0])):
        data = bytearray(written.data[0])
        data[place] ^= 1
        prefix = tf.Written(written.entries, [bytes(data)]).save(tmp_path / "text")
        with pytest.raises(UserError, match=r"data-00000-of-00001 can't be used"):
            Bundle.open(prefix).read_text("words", 100)
    prefix = written.save(tmp_path / "text")
    with pytest.raises(UserError, match="longer than any network's"):
        Bundle.open(prefix).read_text("words", 8)


def damaged(tf: SimpleNamespace, file: bytes) -> str:
    with pytest.raises(Damaged) as fault:
        read_table(memoryview(file))
    return str(fault.value)


def test_a_table_is_refused_for_what_no_writer_leaves(tf: SimpleNamespace):
    good = tf.block([(b"a", b"1"), (b"b", b"2")])
    assert {
        key: bytes(v)
        for key, v in read_table(memoryview(tf.table_of_blocks([(b"b", good)]))).items()
    } == {b"a": b"1", b"b": b"2"}
    assert "compressed" in damaged(tf, tf.table_of_blocks([(b"b", good)], kind=1))
    assert "unknown type 9" in damaged(tf, tf.table_of_blocks([(b"b", good)], kind=9))
    assert "out of order" in damaged(tf, tf.table_of_blocks([(b"b", good), (b"c", good)]))
    many = good[:-4] + struct.pack("<I", 2**31)
    assert "restart points" in damaged(tf, tf.table_of_blocks([(b"b", many)]))
    assert "another kind of file" in damaged(tf, b"x" * 100)
    assert "too short" in damaged(tf, b"")


def test_a_table_whose_pointers_lead_astray_is_refused(tf: SimpleNamespace):
    pointers = {
        "endless": tf.varint(0) + tf.varint(2**62),
        "beyond the end": tf.varint(2**40) + tf.varint(5),
        "no number": b"\xff" * 20,
        "cut": b"",
    }
    for pointer in pointers.values():
        contents = tf.block([(b"z", pointer)])
        file = tf.sealed(contents)
        handles = tf.varint(0) + tf.varint(0) + tf.varint(0) + tf.varint(len(contents))
        damaged(tf, file + handles.ljust(40, b"\0") + struct.pack("<Q", tf.MAGIC))


def test_names_that_grow_out_of_nothing_are_refused(tf: SimpleNamespace):
    # Each further name repeats the whole of the last one: a few bytes that stand for thousands.
    start = tf.varint(0) + tf.varint(LONGEST_KEY) + tf.varint(0) + b"a" * LONGEST_KEY
    longer = tf.varint(LONGEST_KEY) + tf.varint(1) + tf.varint(0) + b"a"
    contents = start + longer + struct.pack("<II", 0, 1)
    assert "letters" in damaged(tf, tf.table_of_blocks([(b"z", contents)]))
    more = tf.varint(5) + tf.varint(0) + tf.varint(0)
    contents = tf.varint(0) + tf.varint(1) + tf.varint(0) + b"a" + more + struct.pack("<II", 0, 1)
    assert "5 of them repeated" in damaged(tf, tf.table_of_blocks([(b"z", contents)]))


def test_a_table_of_endless_entries_is_refused(tf: SimpleNamespace):
    entries = [(b"%06d" % n, b"") for n in range(MOST_ENTRIES + 1)]
    assert "entries" in damaged(tf, tf.table_of_blocks([(b"z", tf.block(entries))]))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 9 + b"\x02", b"\x80" * 11])
def test_a_number_is_at_most_64_bits_and_ends(data: bytes):
    with pytest.raises(Damaged):
        varint(memoryview(data), 0)


def test_the_largest_number(tf: SimpleNamespace):
    assert varint(memoryview(tf.varint(2**64 - 1)), 0) == (2**64 - 1, 10)


def test_names_in_an_object_graph(tf: SimpleNamespace):
    names = {"list/0/.ATTRIBUTES/VARIABLE_VALUE": "resnet/conv2d/kernel", "list/1": "other"}
    assert full_names(memoryview(tf.object_graph(names))) == names


@pytest.mark.parametrize("named", ["folder", "prefix", "index", "data", "saved_model", "variables"])
def test_a_checkpoint_is_found_by_any_of_its_names(tmp_path: Path, named: str):
    folder = tmp_path / ("variables" if named in {"saved_model", "variables"} else "")
    prefix = folder / ("variables" if folder != tmp_path else "model.ckpt-9")
    folder.mkdir(exist_ok=True)
    index = prefix.with_name(f"{prefix.name}.index")
    data = prefix.with_name(f"{prefix.name}.data-00000-of-00001")
    index.touch()
    data.touch()
    path = {
        "folder": tmp_path,
        "prefix": prefix,
        "index": index,
        "data": data,
        "saved_model": tmp_path,
        "variables": folder,
    }[named]
    assert find_prefix(path) == prefix


def test_the_latest_of_several_checkpoints_is_what_the_state_file_says(tmp_path: Path):
    for step in (1, 2, 3):
        (tmp_path / f"ckpt-{step}.index").touch()
    with pytest.raises(UserError, match=r"holds 3 checkpoints.*\n.*ckpt-1\.index, ckpt-2\.index"):
        find_prefix(tmp_path)
    state = tmp_path / "checkpoint"
    state.write_text('model_checkpoint_path: "ckpt-2"\nall_model_checkpoint_paths: "ckpt-3"\n')
    assert find_prefix(tmp_path) == tmp_path / "ckpt-2"
    # Written on another machine: only the name counts, never the folder.
    state.write_text('model_checkpoint_path: "../../elsewhere/ckpt-3"\n')
    assert find_prefix(tmp_path) == tmp_path / "ckpt-3"


def test_a_folder_or_file_without_a_checkpoint_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        find_prefix(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(UserError, match=r"A \.pb file holds no weights"):
        find_prefix(tmp_path / "saved_model.pb")
