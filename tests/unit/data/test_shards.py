import tarfile
from pathlib import Path

import numpy as np
import pytest

from stages.data.examine import digest
from stages.data.images import encode_png
from stages.data.shards import Sample, ShardPlan, make_shard, plan_shards
from stages.data.sources import Picture
from stages.data.tar_reader import list_members
from stages.errors import UserError


def samples_of(folder: Path, count: int) -> list[Sample]:
    """Noise; every third image has no label."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    samples = []
    for number in range(count):
        data = encode_png(rng.integers(0, 256, (8, 8), dtype=np.uint8))
        path = folder / f"{number}.png"
        path.write_bytes(data)
        picture = Picture(f"cat/{number}", "png", path)
        samples.append(Sample(picture, digest(data), -1 if number % 3 == 2 else number % 2))
    return samples


def test_samples_are_dealt_to_shards_in_order(tmp_path: Path):
    plans = plan_shards("train", samples_of(tmp_path, 7), 3)
    assert [plan.name for plan in plans] == [f"train-0000{n}.tar" for n in range(3)]
    assert [[s.picture.key for s in p.samples] for p in plans][2] == ["cat/6"]


def test_a_shard_holds_bytes_as_found_and_classes_as_text(tmp_path: Path):
    samples = samples_of(tmp_path / "images", 4)
    made = make_shard(ShardPlan("train-00000.tar", samples), tmp_path / "work")
    with tarfile.open(made.path) as tar:
        assert tar.getnames() == [
            *("cat/0.png", "cat/0.cls", "cat/1.png", "cat/1.cls", "cat/2.png"),
            *("cat/3.png", "cat/3.cls"),
        ]
        assert tar.extractfile("cat/1.cls").read() == b"1"
        assert tar.extractfile("cat/2.png").read() == (tmp_path / "images/2.png").read_bytes()
        info = tar.getmember("cat/0.png")
        assert (info.mtime, info.uid, info.gid, info.mode) == (0, 0, 0, 0o644)
    assert made.n_bytes % 10240 == 0
    data = made.path.read_bytes()
    for member, sample in zip(made.images, samples, strict=True):
        assert digest(data[member.offset : member.offset + member.n_bytes]) == sample.bytes_digest


@pytest.mark.filterwarnings("ignore")
def test_webdatasets_own_reader_finds_the_same_samples(tmp_path: Path):
    webdataset = pytest.importorskip("webdataset")
    samples = samples_of(tmp_path / "images", 5)
    made = make_shard(ShardPlan("train-00000.tar", samples), tmp_path / "work")
    found = list(webdataset.WebDataset(str(made.path), shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in found] == [f"cat/{number}" for number in range(5)]
    assert [sample.get("cls") for sample in found] == [b"0", b"1", None, b"1", b"0"]
    assert found[3]["png"] == (tmp_path / "images/3.png").read_bytes()


def test_the_same_samples_give_the_same_bytes(tmp_path: Path):
    plan = ShardPlan("train-00000.tar", samples_of(tmp_path / "images", 5))
    one, other = make_shard(plan, tmp_path / "one"), make_shard(plan, tmp_path / "other")
    assert one.path.read_bytes() == other.path.read_bytes()
    assert one.sha256 == PINNED_SHA256


def test_a_finished_shard_is_taken_over_and_an_unfinished_one_is_not(tmp_path: Path):
    samples = samples_of(tmp_path / "images", 3)
    plan = ShardPlan("train-00000.tar", samples)
    whole = make_shard(plan, tmp_path / "work")
    before = whole.path.stat().st_mtime_ns
    assert make_shard(plan, tmp_path / "work") == whole
    assert whole.path.stat().st_mtime_ns == before
    data = whole.path.read_bytes()
    whole.path.unlink()
    whole.path.with_name(f"{whole.path.name}.partial").write_bytes(data[:2000])
    assert make_shard(plan, tmp_path / "work") == whole
    assert [path.name for path in (tmp_path / "work").iterdir()] == [whole.path.name]


def test_a_finished_shard_of_other_classes_or_images_is_not_taken_over(tmp_path: Path):
    first, *rest = samples_of(tmp_path / "images", 3)
    plan = ShardPlan("train-00000.tar", [first, *rest])
    for other in (
        Sample(first.picture, first.bytes_digest, 1 - first.class_number),
        Sample(first.picture, bytes(16), first.class_number),
        Sample(Picture("dog/0", "png", first.picture.location), first.bytes_digest, 0),
    ):
        assert ShardPlan("train-00000.tar", [other, *rest]).digest != plan.digest
    assert ShardPlan("train-00000.tar", [*rest, first]).digest != plan.digest


def test_an_image_that_changes_meanwhile_stops_and_leaves_no_shard(tmp_path: Path):
    samples = samples_of(tmp_path / "images", 3)
    (tmp_path / "images/1.png").write_bytes(b"something else")
    with pytest.raises(UserError, match="the image cat/1 changed while the shards were written"):
        make_shard(ShardPlan("train-00000.tar", samples), tmp_path / "work")
    assert not list((tmp_path / "work").glob("*.tar"))


def test_a_key_longer_than_a_tar_header_is_kept_whole(tmp_path: Path):
    (sample,) = samples_of(tmp_path / "images", 1)
    key = "ordner/" * 30 + "größe"
    long = Sample(Picture(key, "png", sample.picture.location), sample.bytes_digest, 0)
    made = make_shard(ShardPlan("train-00000.tar", [long]), tmp_path / "work")
    assert [member.key for member in list_members(made.path)] == [key, key]
    assert made.images[0].ending == "png"


PINNED_SHA256 = "96df845fabef0642f631359514f009d3f79b43e23f1bea11ea6ace7f321c1790"
