"""The ways in for a user's own images: a folder per class, a short list of labels, a bucket."""

import csv
import json
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.end_to_end.project import RAN, Project

pytestmark = pytest.mark.e2e

COLOURS = {"leaf": (40, 160, 60), "sand": (200, 170, 90), "sea": (30, 80, 190)}
EACH = 60
A_FEW = {"duration": "4 steps", "warmup": "1 steps", "batch_size": 16}


def draw(path: Path, name: str, seed: int) -> None:
    """A JPEG of a class: its colour, with noise."""
    rng = np.random.default_rng(seed)
    pixels = np.array(COLOURS[name]) + rng.normal(0, 40, (24, 30, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def a_folder_per_class(folder: Path) -> Path:
    for number, name in enumerate([name for name in COLOURS for _ in range(EACH)]):
        draw(folder / name / f"{number:03d}.jpg", name, number)
    return folder


def set_params(project: Project, **data: Any) -> None:
    """The profile smoke, a few steps of everything, and these images."""
    values = yaml.safe_load(
        (project.folder / "pipeline/profiles/smoke.yaml").read_text(encoding="utf-8")
    )
    values["data"] |= {
        "image_size": 24,
        "channels": 3,
        "validation_images": 18,
        "train_limit": None,
        "test_limit": None,
        "images_per_shard": 20,
    } | data
    values["pretrain"] |= A_FEW | {"batch_size": 32}
    values["pretrain"]["online_probe"] |= {"every": None}
    values["probe"]["knn_k"] = 3
    values["supervised"] |= {"duration_grid": ["4 steps"], "warmup": "1 steps", "batch_size": 16}
    values["finetune"] |= A_FEW | {"label_fractions": ["2_per_class"], "seeds": 1}
    values["semisup"] |= {"methods": []}
    values["distill"] |= {"warmup": "1 steps", "batch_size": 16}
    values["distill"]["same"]["duration"] = values["distill"]["small"]["duration"] = "4 steps"
    values["report"]["map_images"] = 40
    (project.folder / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


def ran(project: Project, *words: str) -> list[str]:
    return [name.split("@")[0] for name in RAN.findall(project("dvc", "repro", *words))]


def record(project: Project) -> dict[str, Any]:
    return json.loads((project.folder / "metrics/shard.run.json").read_text(encoding="utf-8"))


def test_images_and_labels_that_join_run_what_they_change_and_nothing_else(
    tmp_path: Path, root: Path
):
    photos = a_folder_per_class(tmp_path / "photos")
    project = Project(tmp_path / "project", root)
    set_params(project, source="folder", root=str(photos))
    assert ran(project, "subsets") == ["listing", "shard", "subsets"]
    assert ran(project, "subsets") == ["listing"]

    shards = project.folder / "data/shards"
    before = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.tar")}
    draw(photos / "leaf/new.jpg", "leaf", 1000)
    assert ran(project, "subsets")[:2] == ["listing", "shard"]
    after = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.tar")}
    written = {name for name, time in after.items() if before.get(name) != time}
    taken_over = record(project)["shards_taken_over"]
    assert taken_over == len(after) - 1
    assert len(written) == 1


@pytest.mark.slow
@pytest.mark.parametrize("way", ["folder", "labels_csv", "bucket"])
def test_the_whole_chain_runs_from_each_way_in(
    tmp_path: Path, root: Path, way: str, request: pytest.FixtureRequest
):
    photos = a_folder_per_class(tmp_path / "photos")
    project = Project(tmp_path / "project", root)
    labelled = len(COLOURS) * EACH
    if way == "folder":
        for number in range(20):
            draw(photos / "unlabelled" / f"{number}.jpg", "sea", 2000 + number)
        set_params(project, source="folder", root=str(photos))
    elif way == "labels_csv":
        lines = []
        for number, path in enumerate(sorted(photos.glob("*/*.jpg"))):
            flat = photos / f"{number:03d}.jpg"
            lines += [f"{flat.name},{path.parent.name}\n"] * (number % 2)
            shutil.move(path, flat)
        labelled = len(lines)
        (tmp_path / "labels.csv").write_text("key,label\n" + "".join(lines))
        csv_file = str(tmp_path / "labels.csv")
        set_params(project, source="labels_csv", root=str(photos), labels_csv=csv_file)
    else:
        project.env |= bucket_at(request.getfixturevalue("s3_server"))
        at = {"shards_at": "s3://pictures/shards"}
        writer = Project(tmp_path / "writer", root)
        writer.env = project.env
        set_params(writer, source="folder", root=str(photos), **at)
        assert ran(writer, "shard") == ["listing", "shard"]
        shutil.rmtree(photos)
        set_params(project, source="published", shuffle_shards=2, **at)

    first = ran(project)
    assert {"listing", "shard", "pretrain", "finetune", "distill_small", "report"} <= set(first)
    assert ran(project) == ["listing"]
    assert sum(
        record(project)["splits"][name]["labelled"] for name in record(project)["splits"]
    ) == (labelled)
    with (project.folder / "report/label_fractions.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["mean"]]
    assert len(rows) >= 8
    assert all(0 <= float(row["mean"]) <= 1 for row in rows)
    if way == "bucket":
        assert not list((project.folder / "data/shards").glob("*.tar"))
        assert list((project.folder / "data/cache").glob("*.tar"))


def bucket_at(server: str) -> dict[str, str]:
    """The environment of a server's client, once the bucket `pictures` is there."""
    pytest.importorskip("s3fs")
    urllib.request.urlopen(urllib.request.Request(f"{server}/pictures", method="PUT")).close()
    return {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
