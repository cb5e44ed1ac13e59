import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from stages import shard
from stages.data.images import encode_png
from stages.errors import UserError
from stages.params import load_params

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, with a folder of pictures in two classes."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(30):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            (tmp_path / f"pictures/{name}/{number:02d}.png").write_bytes(encode_png(pixels))
    write_params(tmp_path, source="folder", root="pictures")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_params(folder: Path, **data: Any) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["data"] |= {"validation_images": 6, "test_fraction": 0.2, "images_per_shard": 20, **data}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


def test_the_stage_writes_shards_numbers_and_their_origin(workspace: Path):
    shard.main()
    numbers = json.loads((workspace / "metrics/shard.json").read_text())
    assert numbers.pop("seconds") >= 0
    assert numbers == {
        "images": {"train": 42, "validation": 6, "test": 12},
        "classes": 2,
        "labelled": 60,
        "shards": 5,
        "bytes": sum(p.stat().st_size for p in (workspace / "data/shards").glob("*.tar")),
        "quarantined": 0,
        "duplicates": 0,
        "duplicates_dropped": 0,
        "near_duplicates": 0,
        "near_duplicates_across_splits": 0,
        "near_duplicates_dropped": 0,
    }
    details = json.loads((workspace / "metrics/shard.run.json").read_text())
    index = json.loads((workspace / "data/shards/index.json").read_text())
    assert details["class_names"] == ["cat", "dog"]
    assert details["fingerprint"] == index["fingerprint"]
    assert details["splits"]["train"]["per_class"] == [21, 21]
    assert not (workspace / "runs/shard").exists()


def test_a_list_of_labels_works_like_a_folder_per_class(workspace: Path):
    keys = [f"{name}/{number:02d}" for name in ("cat", "dog") for number in range(20)]
    lines = "".join(f"{key},{key.split('/')[0]}\n" for key in keys)
    (workspace / "labels.csv").write_text(lines)
    write_params(workspace, source="labels_csv", root="pictures", labels_csv="labels.csv")
    shard.main()
    numbers = json.loads((workspace / "metrics/shard.json").read_text())
    assert numbers["images"] == {"train": 46, "validation": 6, "test": 8}
    assert numbers["labelled"] == 40


def test_a_copy_across_the_split_is_counted_and_told(workspace: Path):
    (workspace / "pictures/unlabelled").mkdir()
    for number in range(30):
        data = (workspace / f"pictures/cat/{number:02d}.png").read_bytes()
        (workspace / f"pictures/unlabelled/{number}.png").write_bytes(data)
    shard.main()
    numbers = json.loads((workspace / "metrics/shard.json").read_text())
    assert numbers["duplicates"] == 30
    assert numbers["duplicates_dropped"] == 9  # of 6 cats to test with and 3 to choose with
    assert numbers["images"] == {"train": 63, "validation": 6, "test": 12}


def again(path: Path, into: Path) -> None:
    """The picture of a file, with less contrast and saved as JPEG."""
    pixels = np.asarray(Image.open(path)).astype(float)
    into.parent.mkdir(exist_ok=True)
    Image.fromarray((pixels * 0.9 + 20).astype(np.uint8)).save(into, "JPEG", quality=90)


@pytest.mark.parametrize("what", ["report", "drop"])
def test_near_copies_across_the_split_are_told_and_dropped_only_if_asked(
    workspace: Path, what: str
):
    for place in sorted((workspace / "pictures").rglob("*.png")):
        image = Image.open(place).resize((64, 64), Image.Resampling.BICUBIC)
        image.save(place)  # large enough for JPEG to keep what it shows
        again(place, workspace / f"pictures/unlabelled/{place.parent.name}-{place.stem}.jpg")
    write_params(workspace, source="folder", root="pictures", near_duplicates=what)
    shard.main()
    numbers = json.loads((workspace / "metrics/shard.json").read_text())
    assert numbers["near_duplicates"] == 60
    assert numbers["near_duplicates_across_splits"] == 18  # 12 to test with, 6 to choose with
    assert numbers["near_duplicates_dropped"] == (18 if what == "drop" else 0)
    assert numbers["images"]["train"] == 102 - (18 if what == "drop" else 0)
    told = json.loads((workspace / "metrics/shard.run.json").read_text())["near_duplicates"]
    assert told[0]["keys"] == ["cat/00", "unlabelled/cat-00"]


def test_a_cluster_sees_every_folder_by_its_whole_path(workspace: Path):
    write_params(workspace, source="folder", root="pictures", unlabelled=["more"])
    params = load_params()
    assert shard.as_workers_see(params.data, params.runtime) == params.data
    cluster = params.runtime.model_copy(update={"dask_scheduler": "tcp://127.0.0.1:1"})
    seen = shard.as_workers_see(params.data, cluster)
    assert (seen.root, seen.unlabelled) == (str(workspace / "pictures"), [str(workspace / "more")])


def test_a_folder_that_is_not_there_is_the_users_to_mend(workspace: Path):
    write_params(workspace, source="folder", root="elsewhere")
    with pytest.raises(UserError, match=r"elsewhere is not there"):
        shard.main()
    assert not (workspace / "data").exists()


@pytest.mark.parametrize("stage", ["shard", "subsets"])
def test_the_stage_starts_without_torch(stage: str):
    code = f"import sys, stages.{stage}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
