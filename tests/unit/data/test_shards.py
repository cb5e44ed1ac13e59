import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data.examine import digest
from stages.data.images import encode_png
from stages.data.shards import Sample, ShardPlan, make_shard, path_in, plan_shards
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


def ranks_of(count: int, seed: int = 0) -> np.ndarray:
    """Hashes as keys have them, rising."""
    ranks = np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)
    return np.sort(ranks)


def test_a_shard_is_a_range_of_hashes_cut_in_halves_until_its_images_fit(tmp_path: Path):
    quarters = np.array([0, 1, 2**62, 2**63, 2**63 + 1, 2**64 - 1], dtype=np.uint64)
    plans = plan_shards("train", samples_of(tmp_path, 6), quarters, 2)
    assert [plan.stem for plan in plans] == [
        "train-00000",
        "train-40000",
        "train-80000",
        "train-c0000",
    ]
    assert [[s.picture.key for s in plan.samples] for plan in plans] == [
        ["cat/0", "cat/1"],
        ["cat/2"],
        ["cat/3", "cat/4"],
        ["cat/5"],
    ]
    assert plans[0].name == f"train-00000-{plans[0].digest[:16]}.tar"
    (whole,) = plan_shards("train", samples_of(tmp_path, 6), quarters, 6)
    assert len(whole.samples) == 6


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.integers(1, 40), st.integers(0, 2**32))
def test_shards_hold_every_image_once_and_no_more_than_allowed(count: int, most: int, seed: int):
    picture = Picture("a", "png", Path("unread"))
    samples = [Sample(picture, bytes(16), number) for number in range(count)]
    plans = plan_shards("train", samples, ranks_of(count, seed), most)
    assert [s.class_number for plan in plans for s in plan.samples] == list(range(count))
    assert all(1 <= len(plan.samples) <= most for plan in plans)
    assert len({plan.name for plan in plans}) == len(plans)


def test_an_image_that_joins_changes_one_shard_or_makes_two_of_it():
    picture = Picture("a", "png", Path("unread"))
    ranks = ranks_of(2000)
    for place in range(0, 2000, 37):
        rest = np.delete(ranks, place)
        before, after = (
            {plan.name for plan in plan_shards("train", samples, found, 50)}
            for found, samples in (
                (rest, [Sample(picture, rank.tobytes(), 0) for rank in rest]),
                (ranks, [Sample(picture, rank.tobytes(), 0) for rank in ranks]),
            )
        )
        assert len(before - after) == 1
        assert len(after - before) in {1, 2}


def test_images_of_one_hash_stay_together_and_are_not_cut_forever(tmp_path: Path):
    same = np.full(5, 12345, dtype=np.uint64)
    (plan,) = plan_shards("train", samples_of(tmp_path, 5), same, 2)
    assert len(plan.samples) == 5


def test_a_shard_holds_bytes_as_found_and_classes_as_text(tmp_path: Path):
    samples = samples_of(tmp_path / "images", 4)
    made = make_shard(ShardPlan("train-00000", samples), tmp_path / "work")
    with tarfile.open(path_in(tmp_path / "work", made.made_of)) as tar:
        assert tar.getnames() == [
            *("cat/0.png", "cat/0.cls", "cat/1.png", "cat/1.cls", "cat/2.png"),
            *("cat/3.png", "cat/3.cls"),
        ]
        assert tar.extractfile("cat/1.cls").read() == b"1"
        assert tar.extractfile("cat/2.png").read() == (tmp_path / "images/2.png").read_bytes()
        info = tar.getmember("cat/0.png")
        assert (info.mtime, info.uid, info.gid, info.mode) == (0, 0, 0, 0o644)
    assert made.n_bytes % 10240 == 0
    data = path_in(tmp_path / "work", made.made_of).read_bytes()
    for member, sample in zip(made.images, samples, strict=True):
        assert digest(data[member.offset : member.offset + member.n_bytes]) == sample.bytes_digest


@pytest.mark.filterwarnings("ignore")
def test_webdatasets_own_reader_finds_the_same_samples(tmp_path: Path):
    webdataset = pytest.importorskip("webdataset")
    samples = samples_of(tmp_path / "images", 5)
    made = make_shard(ShardPlan("train-00000", samples), tmp_path / "work")
    found = list(
        webdataset.WebDataset(
            str(path_in(tmp_path / "work", made.made_of)), shardshuffle=False, empty_check=False
        )
    )
    assert [sample["__key__"] for sample in found] == [f"cat/{number}" for number in range(5)]
    assert [sample.get("cls") for sample in found] == [b"0", b"1", None, b"1", b"0"]
    assert found[3]["png"] == (tmp_path / "images/3.png").read_bytes()


def test_the_same_samples_give_the_same_bytes(tmp_path: Path):
    plan = ShardPlan("train-00000", samples_of(tmp_path / "images", 5))
    one, other = make_shard(plan, tmp_path / "one"), make_shard(plan, tmp_path / "other")
    found = [path_in(tmp_path / name, plan.digest).read_bytes() for name in ("one", "other")]
    assert found[0] == found[1]
    assert one == other
    assert one.sha256 == PINNED_SHA256


def test_a_finished_shard_is_taken_over_and_an_unfinished_one_is_not(tmp_path: Path):
    samples = samples_of(tmp_path / "images", 3)
    plan = ShardPlan("train-00000", samples)
    whole = make_shard(plan, tmp_path / "work")
    path = path_in(tmp_path / "work", whole.made_of)
    before = path.stat().st_mtime_ns
    assert make_shard(plan, tmp_path / "work") == whole
    assert path.stat().st_mtime_ns == before
    data = path.read_bytes()
    path.unlink()
    path.with_name(f"{path.name}.partial").write_bytes(data[:2000])
    assert make_shard(plan, tmp_path / "work") == whole
    assert list((tmp_path / "work").iterdir()) == [path]


def test_a_finished_shard_of_other_classes_or_images_is_not_taken_over(tmp_path: Path):
    first, *rest = samples_of(tmp_path / "images", 3)
    plan = ShardPlan("train-00000", [first, *rest])
    for other in (
        Sample(first.picture, first.bytes_digest, 1 - first.class_number),
        Sample(first.picture, bytes(16), first.class_number),
        Sample(Picture("dog/0", "png", first.picture.location), first.bytes_digest, 0),
    ):
        assert ShardPlan("train-00000", [other, *rest]).digest != plan.digest
    assert ShardPlan("train-00000", [*rest, first]).digest != plan.digest


def test_an_image_that_changes_meanwhile_stops_and_leaves_no_shard(tmp_path: Path):
    samples = samples_of(tmp_path / "images", 3)
    (tmp_path / "images/1.png").write_bytes(b"something else")
    with pytest.raises(UserError, match="the image cat/1 changed while the shards were written"):
        make_shard(ShardPlan("train-00000", samples), tmp_path / "work")
    assert not list((tmp_path / "work").glob("*.tar"))


def test_a_key_longer_than_a_tar_header_is_kept_whole(tmp_path: Path):
    (sample,) = samples_of(tmp_path / "images", 1)
    key = "ordner/" * 30 + "größe"
    long = Sample(Picture(key, "png", sample.picture.location), sample.bytes_digest, 0)
    made = make_shard(ShardPlan("train-00000", [long]), tmp_path / "work")
    assert [member.key for member in list_members(path_in(tmp_path / "work", made.made_of))] == [
        key,
        key,
    ]
    assert made.images[0].ending == "png"


PINNED_SHA256 = "96df845fabef0642f631359514f009d3f79b43e23f1bea11ea6ace7f321c1790"
