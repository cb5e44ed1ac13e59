"""What must not be able to influence a number, does not: real stages on drawn pictures.

Two workspaces that differ in one forbidden thing must end in the same weights, byte for byte.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.data.images import encode_png
from stages.data.store import ImageStore
from stages.distill import unlabelled_images
from stages.params import load_params
from stages.records import read_json
from stages.training.pretraining import open_store
from tests.unit.tiny_study import (
    KINDS,
    SIDE,
    digests,
    draw_pictures,
    numbers_of,
    prepare,
    rows_of,
    run,
)

FEW = "4_per_class"
EVERYTHING: dict[str, dict[str, Any]] = {
    "finetune": {"label_fractions": [FEW], "seeds": 1, "layers": [1]},
    "supervised": {"duration_grid": ["40 steps"]},
    "semisup": {"methods": ["fixmatch"], "duration_grid": ["6 steps", "3 steps"]},
}
LABELLED = (
    ("probe", ("--fraction", FEW)),
    ("supervised", ("--fraction", FEW)),
    ("semisup", ("--method", "fixmatch", "--fraction", FEW)),
    ("finetune", ("--fraction", FEW)),
    ("distill", ("--student", "same", "--fraction", FEW)),
    ("distill", ("--student", "small", "--fraction", FEW)),
)
RECORDS = (
    *(f"{name}/{FEW}" for name in ("probe", "supervised", "semisup/fixmatch", "finetune")),
    *(f"{name}/{FEW}" for name in ("distill_same", "distill_small")),
)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with pictures of a training and a test split."""
    monkeypatch.chdir(tmp_path)
    draw_pictures(tmp_path / "pictures")
    return tmp_path


def whole_chain(folder: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Weights of every product, and every row of results."""
    prepare(folder, **EVERYTHING)
    run("pretrain")
    for stage, arguments in LABELLED:
        run(stage, *arguments)
    return digests(folder), [row for record in RECORDS for row in rows_of(record)]


def test_labels_of_the_test_split_reach_nothing_but_test_scores(workspace: Path):
    weights, rows = whole_chain(workspace)
    test = workspace / "pictures/test"
    for kind in KINDS:
        (test / kind).rename(test / f"once {kind}")
    for kind, other in zip(KINDS, KINDS[1:] + KINDS[:1], strict=True):
        (test / f"once {kind}").rename(test / other)
    for made in ("data", "artifacts", "metrics", "plots"):
        shutil.rmtree(workspace / made)
    weights_after, rows_after = whole_chain(workspace)
    assert len(weights) == len(LABELLED)  # that of pretraining, and none of the probe
    assert weights_after == weights
    for before, after in zip(rows, rows_after, strict=True):
        assert before.get("chosen") == after.get("chosen")
        assert before["validation_accuracy"] == after["validation_accuracy"]
    assert [r["test_accuracy"] for r in rows] != [r["test_accuracy"] for r in rows_after]


def plant(picture: Path, into: Path, *, changed_pixels: int = 0) -> None:
    """A copy of a picture; with some pixels a little darker, if asked."""
    into.parent.mkdir(parents=True, exist_ok=True)
    if not changed_pixels:
        shutil.copyfile(picture, into)
        return
    from PIL import Image

    pixels_HW = np.asarray(Image.open(picture).convert("L")).copy()
    pixels_HW.flat[:changed_pixels] = np.maximum(pixels_HW.flat[:changed_pixels], 2) - 2
    into.write_bytes(encode_png(pixels_HW))


def training_pixels() -> set[bytes]:
    store = open_store(load_params())
    images_NCHW = store.images(np.arange(store.n_images))
    return {bytes(image_CHW.numpy()) for image_CHW in images_NCHW}


def test_pixels() -> set[bytes]:
    store = ImageStore.open(
        Path("data/shards"), "test", with_labels=False, channels=1, max_pixels=SIDE * SIDE
    )
    images_NCHW = store.images(np.arange(store.n_images))
    return {bytes(image_CHW.numpy()) for image_CHW in images_NCHW}


test_pixels.__test__ = False  # ty: ignore[unresolved-attribute]


def test_an_unlabelled_copy_of_a_test_image_is_found_and_does_not_reach_pretraining(
    workspace: Path,
):
    unlabelled = {"data": {"unlabelled": ["more"]}}
    rng = np.random.default_rng(9)
    for number in range(6):
        noise_HW = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        (workspace / "more").mkdir(exist_ok=True)
        (workspace / f"more/{number}.png").write_bytes(encode_png(noise_HW))
    prepare(workspace, **EVERYTHING, **unlabelled)
    run("pretrain")
    clean, before = digests(workspace), numbers_of("shard")
    plant(workspace / "pictures/test/disc/003.png", workspace / "more/leak.png")
    shutil.rmtree(workspace / "artifacts")
    prepare(workspace, **EVERYTHING, **unlabelled)
    run("pretrain")
    after = numbers_of("shard")
    assert after["duplicates"] == before["duplicates"] + 1
    assert after["images"] == before["images"]
    (group,) = read_json(Path("metrics/shard.run.json"))["duplicates"]
    assert group["kept"] == "test"
    assert group["dropped"] == ["unlabelled/more/leak"]
    assert digests(workspace) == clean
    assert not training_pixels() & test_pixels()


def test_a_labelled_copy_across_splits_is_found_and_left_out_of_training(workspace: Path):
    plant(workspace / "pictures/test/bar/001.png", workspace / "pictures/train/frame/leak.png")
    prepare(workspace, **EVERYTHING)
    (group,) = read_json(Path("metrics/shard.run.json"))["duplicates"]
    assert set(group["keys"]) == {"test/bar/001", "train/frame/leak"}
    assert group["dropped"] == ["train/frame/leak"]
    assert not training_pixels() & test_pixels()


@pytest.mark.parametrize("policy", ["report", "drop"])
def test_a_near_copy_across_splits_is_found_and_left_out_where_asked(workspace: Path, policy: str):
    picture = workspace / "pictures/test/disc/002.png"
    plant(picture, workspace / "pictures/train/disc/leak.png", changed_pixels=3)
    prepare(workspace, **EVERYTHING, data={"near_duplicates": policy})
    groups = read_json(Path("metrics/shard.run.json"))["near_duplicates"]
    assert {"test/disc/002", "train/disc/leak"} in [set(group["keys"]) for group in groups]
    assert numbers_of("shard")["near_duplicates_across_splits"] >= 1
    in_training = any("leak" in key for key in open_store(load_params()).keys)
    assert in_training == (policy == "report")


def test_shuffled_labels_give_chance_and_true_ones_do_not(workspace: Path):
    """Where labels say nothing of the images, whatever beats chance on test has seen its labels."""
    shutil.rmtree(workspace / "pictures")
    draw_pictures(workspace / "pictures", train=40, test=120)
    longer: dict[str, dict[str, Any]] = {
        "finetune": {**EVERYTHING["finetune"], "seeds": 2, "duration": "30 steps"},
        "supervised": {"duration_grid": ["40 steps"]},
    }
    found = {}
    for which in ("true", "shuffled"):
        if which == "shuffled":
            shuffle_labels(workspace / "pictures")
        prepare(workspace, **longer)
        run("pretrain")
        for stage in ("supervised", "finetune"):
            run(stage, "--fraction", FEW)
        rows = [*rows_of(f"supervised/{FEW}"), *rows_of(f"finetune/{FEW}")]
        found[which] = [row["test_accuracy"] for row in rows]
    # Of 360 images a third is right by chance; the deviation of that share is 0.025.
    assert len(found["true"]) == 4
    assert max(found["true"]) > 0.5
    assert all(abs(share - 1 / 3) < 0.1 for share in found["shuffled"])


def shuffle_labels(pictures: Path) -> None:
    """Deal the pictures of each split to the classes anew, as many to each as before."""
    rng = np.random.default_rng(1)
    for split in ("train", "test"):
        files = sorted((pictures / split).rglob("*.png"))
        contents = [file.read_bytes() for file in files]
        for file, place in zip(files, rng.permutation(len(files)).tolist(), strict=True):
            file.write_bytes(contents[place])


def test_pretraining_and_distillation_open_their_images_without_classes(workspace: Path):
    prepare(workspace, **EVERYTHING)
    with pytest.raises(ValueError, match="without labels"):
        _ = open_store(load_params()).classes
    classes_N = unlabelled_images(load_params(), FEW, 0, 0.0).classes
    assert set(classes_N.tolist()) == {-1}
    some_N = unlabelled_images(load_params(), FEW, 0, 0.3).classes
    assert (some_N >= 0).sum() == 4 * len(KINDS)
