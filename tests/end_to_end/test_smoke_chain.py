"""The whole chain on real images: a copy of this project, the smoke profile, dvc and Prefect."""

import csv
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import first_table, rounded
from stages.data.fashion_mnist import read_fashion_mnist
from tests.end_to_end.project import RAN, Project
from tests.served.conftest import Server

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Project:
    """The copy after its first `dvc repro`."""
    made = Project(tmp_path_factory.mktemp("project"), root)
    made("python", "-m", "pipeline", "profile", "smoke")
    images = root / "data/raw/fashion_mnist"
    if images.is_dir():  # fetched before: no download
        made.edit("  root: null", f"  root: {images}")
    made("dvc", "repro")
    return made


def test_chain_leaves_a_report(project: Project):
    page = (project.folder / "report/index.html").read_text()
    assert "<html" in page
    assert (project.folder / "report/report.md").stat().st_size > 500
    out = project("python", "-m", "pipeline", "results")
    assert str(project.folder / "report/index.html") in out
    assert "profile: smoke" in out


def numbers_in(value: object) -> list[float]:
    if isinstance(value, dict):
        return [number for inner in value.values() for number in numbers_in(inner)]
    if isinstance(value, list):
        return [number for inner in value for number in numbers_in(inner)]
    return [float(value)] if isinstance(value, int | float) else []


def test_every_accuracy_in_the_table_is_in_a_metrics_file(project: Project):
    known = [
        number
        for file in (project.folder / "metrics").rglob("*.json")
        for number in numbers_in(json.loads(file.read_text()))
    ]
    with (project.folder / "report/label_fractions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    measured = [row for row in rows if row["mean"]]
    assert {"method", "labels", "seeds", "mean", "std"} <= set(rows[0])
    assert len(measured) == 10  # every method, at the one label fraction
    for row in measured:
        for column in ("mean", "std"):
            figure = float(row[column])
            assert any(abs(figure - number) < 1e-6 for number in known), (column, row)


def test_second_repro_does_nothing_and_leaves_git_clean_of_changes_to_code(project: Project):
    assert RAN.findall(project("dvc", "repro")) == ["listing"]  # it always looks
    changed = project("git", "status", "--porcelain", "--", "stages", "pipeline", "tests")
    assert changed == ""


def test_metrics_and_their_differences_are_shown(project: Project):
    shown = json.loads(project("dvc", "metrics", "show", "--json"))
    assert "metrics/pretrain.json" in shown[""]["data"]
    project("dvc", "metrics", "diff")


def test_prefect_finds_everything_up_to_date(project: Project):
    out = project("python", "-m", "pipeline", "run")
    assert re.search(r"\d+ stages up to date; 1 had to be run: listing", out)


def test_misspelt_key_stops_every_stage_with_one_message(project: Project):
    params = project.folder / "params.yaml"
    good = params.read_text()
    try:
        project.edit("  temperature: 0.2", "  temprature: 0.2")
        for words in (["-m", "stages.pretrain"], ["-m", "pipeline", "run"]):
            out = project("python", *words, code=2)
            assert "pretrain.temprature: no such key" in out
            assert "Traceback" not in out
    finally:
        params.write_text(good)


def test_a_new_label_fraction_runs_only_what_is_new(project: Project):
    project.edit("label_fractions: [10_per_class]", "label_fractions: [10_per_class, 0.1]")
    try:
        changed = json.loads(project("dvc", "status", "--json"))
    finally:
        project.edit("label_fractions: [10_per_class, 0.1]", "label_fractions: [10_per_class]")
    # `listing` looks every time; `transfer` takes the baseline of the fraction with most labels.
    known = {"listing", "transfer"}
    assert {name for name in changed if not name.endswith(("@0.1", "-0.1"))} - known == {"report"}
    assert {name.split("@")[0] for name in changed} - known == {
        "subsets",
        "probe",
        "supervised",
        "semisup",
        "finetune",
        "distill_same",
        "distill_small",
        "report",
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`prefect server start`, with nothing in it yet."""
    with Server(tmp_path_factory.mktemp("prefect")) as started:
        yield started


def run_on(server: Server, project: Project) -> tuple[float, dict[str, Any], dict[str, str]]:
    """A run of the whole chain on a server: its seconds, what became of it, and its artifacts."""
    settings = {name: server.env[name] for name in ("PREFECT_HOME", "PREFECT_API_URL")}
    begun = time.monotonic()
    project("python", "-m", "pipeline", "run", settings=settings)
    seconds = time.monotonic() - begun
    run = server("/flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": 1})[0]
    shown = {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}, "limit": 200}
    return seconds, run, {one["key"]: one["data"] for one in server("/artifacts/filter", shown)}


def test_new_finetune_duration_runs_finetune_and_what_follows_it_on_the_page_of_a_server(
    project: Project, server: Server
):
    text = (project.folder / "params.yaml").read_text()
    section = text[text.index("\nfinetune:") : text.index("\ndistill:")]
    project.edit(section, section.replace("duration: 40 steps", "duration: 30 steps"))
    _, run, artifacts = run_on(server, project)
    assert run["state"]["name"] == "Completed"
    stages = project("dvc", "stage", "list", "--name-only").split()
    said = run["state"]["message"]
    assert said.startswith(f"{len(stages)} stages are up to date; new results of ")
    new = said.partition(" of ")[2].partition(" (")[0].split(", ")
    followed = {"finetune", "distill_same", "distill_small", "report"}
    assert {name.split("@")[0] for name in new} == followed

    of_run = {"flow_runs": {"id": {"any_": [run["id"]]}}, "limit": 200}
    tasks = server("/task_runs/filter", of_run)
    assert len(tasks) == len(stages)
    states = {task["name"]: task["state"]["name"] for task in tasks}
    ran = {"listing", *new}  # listing looks each time
    assert states == {name: "Completed" if name in ran else "Cached" for name in stages}

    report = (project.folder / "report/report.md").read_text()
    assert "Fine-tuned from head layer 1" in first_table(report)
    assert first_table(report) in artifacts["results"]
    assert "data:image/svg+xml" in artifacts["results"]  # the plot over label fractions
    assert "duration: 30 steps" in artifacts["what-was-run"]
    metrics = json.loads((project.folder / "metrics/finetune/10_per_class.json").read_text())
    shown = json.loads(artifacts["metrics-finetune-10-per-class"])
    rows = {row["metric"]: row["value"] for row in shown}
    mean = metrics["finetune_layer_1"]["test_accuracy"]["mean"]
    assert rows["finetune_layer_1.test_accuracy.mean"] == rounded(mean)


def test_a_run_with_nothing_to_do_costs_seconds_more_than_dvc_alone(
    project: Project, server: Server
):
    begun = time.monotonic()
    assert RAN.findall(project("dvc", "repro")) == ["listing"]
    alone = time.monotonic() - begun
    took, run, _ = run_on(server, project)
    assert run["state"]["message"].startswith("nothing changed: ")
    # Below 30 s on two quiet cores, by far; here others may be at work.
    assert took - alone < 60, f"{took:.1f} s, dvc repro {alone:.1f} s"


@pytest.mark.slow
def test_init_fits_a_flat_folder_with_a_short_list_of_labels_and_the_chain_runs(
    tmp_path: Path, root: Path
):
    photos = tmp_path / "photos"
    photos.mkdir()
    named = root / "data/raw/fashion_mnist"
    source = read_fashion_mnist(named if named.is_dir() else None, tmp_path / "raw")
    test = [picture for picture in source.pictures if picture.split == "test"][:400]
    for picture in test:
        (photos / f"{picture.key}.png").write_bytes(picture.location.read_bytes())
    lines = [f"{picture.key},{picture.class_name}\n" for picture in test[:300]]
    (photos / "labels.csv").write_text("key,label\n" + "".join(lines))

    made = Project(tmp_path / "project", root)
    decided = made("python", "-m", "pipeline", "init", str(photos), "--profile", "quick")
    assert "400 images, 300 of them labelled, 10 classes" in decided
    assert "image_size 28: shorter sides are 28 to 28 pixels" in decided
    assert "good (from the profile quick)" in made("python", "-m", "pipeline", "check")
    made("dvc", "repro", limit_seconds=3600)
    numbers = json.loads((made.folder / "metrics/shard.json").read_text())
    assert numbers["images"] == {"train": 300, "validation": 49, "test": 51}
    with (made.folder / "report/label_fractions.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["mean"]]
    assert {row["method"] for row in rows}
    assert all(0 <= float(row["mean"]) <= 1 for row in rows)
