"""The papers' figures: what is held, and beside which runs they may stand."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.report.papers import UNVERIFIED, comparable, papers, papers_section, published_for
from pipeline.report.results import Study
from pipeline.report.transfer import transfer_section
from stages.params import check_params
from stages.records import write_json

ROOT = Path(__file__).parents[3]
IMAGENET = {"classes": 1000, "images": {"train": 1_271_167, "validation": 10_000, "test": 50_000}}
SYSTEMS = (
    *("Local Agg.", "MoCo", "PIRL", "CPC v2", "Rotation", "BigBiGAN", "AMDIM", "CMC"),
    *("Pseudo-label", "VAT + EntMin", "UDA", "FixMatch", "S4L", "InstDisc"),
)


def study(root: Path, shard: dict[str, Any], profile: str = "imagenet", **data: Any) -> Study:
    text = (ROOT / f"pipeline/profiles/{profile}.yaml").read_text(encoding="utf-8")
    written = yaml.safe_load(text)
    written["data"] |= data
    write_json(root / "metrics/shard.json", shard)
    return Study(root, check_params(written))


def figure(method: str, about: float | str, measure: str, architecture: str) -> list[float]:
    return [
        row.value
        for row in papers()
        if (row.method, row.about, row.measure) == (method, about, measure)
        and row.architecture == architecture
        and row.protocol in {"linear", "few labels", "distilled", "fine-tuned", "transfer"}
    ]


def test_figures_are_those_of_the_tables():
    assert figure("SimCLR", 1.0, "top-1", "ResNet-50 4x")[0] == 76.5
    assert figure("MoCo", 1.0, "top-1", "ResNet-50") == [60.6]
    assert figure("SimCLR", 0.01, "top-5", "ResNet-50 4x") == [85.8, 86.6]  # 7, and B.2
    assert figure("InstDisc", 0.1, "top-5", "ResNet-50") == [77.4]
    assert figure("SimCLRv2", 0.01, "top-1", "ResNet-152 3x + SK") == [74.9]
    assert figure("SimCLRv2 distilled", 0.1, "top-1", "ResNet-50") == [77.5]
    assert figure("SimCLR, linear", "flowers102", "score", "ResNet-50 4x") == [95.0]
    assert figure("From scratch", "voc2007", "score", "ResNet-50") == [67.3]


def test_every_paper_table_and_system_is_there_with_a_source():
    tables = {row.table for row in papers()}
    wanted = {f"SimCLR, Table {n}" for n in ("1", "6", "8", "B.1", "B.2", "B.3", "B.5")}
    wanted |= {"SimCLR, Tables B.4 and 7"} | {f"SimCLRv2, Table {n}" for n in (1, 2, 3)}
    assert wanted <= tables
    for system in SYSTEMS:
        assert any(row.method.startswith(system) for row in papers()), system
    assert all(row.source for row in papers())
    assert all(0 < row.value < 100 for row in papers())
    assert {row.verified for row in papers() if row.table == "SimCLRv2, Table 2"} == {False}
    assert {row.verified for row in papers() if row.table == "SimCLR, Table 6"} == {True}


def test_a_run_on_imagenet_has_the_papers_figures_of_its_own_label_fractions(tmp_path: Path):
    found = comparable(study(tmp_path, IMAGENET))
    assert {row.about for row in found if not isinstance(row.about, str)} == {0.01, 0.1, 1.0}
    assert {"food101", "voc2007"} <= {row.about for row in found}
    page = papers_section(study(tmp_path, IMAGENET))
    assert "FixMatch" in page
    assert page.count(UNVERIFIED) >= 4  # SimCLRv2's Table 2


def test_a_label_fraction_that_was_not_run_brings_no_figure(tmp_path: Path):
    written = study(tmp_path, IMAGENET)
    params = written.params.finetune.model_copy(update={"label_fractions": ["0.1", "13_per_class"]})
    few = Study(tmp_path, written.params.model_copy(update={"finetune": params}))
    shares = {row.about for row in comparable(few) if not isinstance(row.about, str)}
    assert shares == {0.1}


@pytest.mark.parametrize(
    ("shard", "data"),
    [
        ({"classes": 10, "images": {"train": 55_000, "validation": 5000, "test": 10_000}}, {}),
        ({"classes": 100, "images": {"train": 126_689, "test": 5000}}, {}),  # a part of ImageNet
        ({**IMAGENET, "images": {"train": 100_000, "test": 50_000}}, {}),  # and fewer images of it
        (IMAGENET, {"image_size": 64}),
        ({}, {}),  # nothing run yet, whatever the params promise
    ],
)
def test_no_other_run_has_a_figure_of_the_papers_beside_it(
    shard: dict[str, Any], data: dict[str, Any], tmp_path: Path
):
    other = study(tmp_path, shard, **data)
    assert comparable(other) == []
    page = papers_section(other)
    assert "none is shown" in page
    assert "FixMatch" not in page


def test_no_transfer_asked_for_is_not_told_as_not_run(tmp_path: Path):
    written = study(tmp_path, {}, profile="quick").params
    transfer = written.transfer.model_copy(update={"datasets": []})
    none = written.model_copy(update={"transfer": transfer})
    assert "not run yet" in transfer_section(Study(tmp_path, none))
    write_json(tmp_path / "metrics/transfer.run.json", {"rows": [], "tests": [], "skipped": []})
    assert "None was asked for" in transfer_section(Study(tmp_path, none))
    assert "not run yet" in transfer_section(Study(tmp_path, written))


def test_a_transfer_data_set_shows_what_was_published_on_the_same_images(tmp_path: Path):
    row = {"dataset": "elpv", "method": "linear_probe", "metric": "accuracy", "score": 0.788}
    row |= {"test_accuracy": 0.788, "macro_f1": 0.727, "classes": 2, "images": 2624}
    test = {"dataset": "elpv", "method": "linear_probe", "against": "supervised_linear"}
    test |= {"difference": -0.026, "p": 0.064, "verdict": "no difference"}
    skipped = [{"dataset": "dtd", "reason": "put it there"}]
    record = {"rows": [row], "tests": [test], "skipped": skipped}
    write_json(tmp_path / "metrics/transfer.run.json", record)
    page = transfer_section(study(tmp_path, {}, profile="quick"))
    assert [row.value for row in published_for("elpv")] == [88.42, 82.44]
    assert "88.42%" in page
    assert UNVERIFIED in page
    assert "\N{MINUS SIGN}2.6 points, <b>no difference</b> (p = 0.064)" in page
    assert "put it there" in page
    assert published_for("food101") == []  # of encoders pretrained on ImageNet
