"""The study on drawn pictures: all labels, seeds apart, neighbours, sizes, the test split."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.report.build import build_report
from pipeline.report.results import Study
from stages.data.store import ImageStore
from stages.errors import UserError
from stages.params import load_params
from stages.training.classifier import Examiner, labelled_keys
from stages.training.seeds import SeedPair, seed_pairs
from tests.unit.tiny_study import (
    KINDS,
    digests,
    draw_pictures,
    numbers_of,
    prepare,
    rows_of,
    run,
    told,
    write_params,
)

FEW, ALL = "4_per_class", "1.0"
BIG, SMALL = "r10_0.125x_sk0", "r10_0.0625x_sk0"
SECTIONS: dict[str, dict[str, Any]] = {
    "finetune": {"label_fractions": [FEW, ALL], "seeds": 2, "layers": [0, 1], "initialisations": 2},
    "semisup": {"methods": ["fixmatch", "pseudo_label"], "seeds": 2},
    "sizes": {
        **{"encoders": [BIG], "students": [SMALL], "label_fractions": [FEW]},
        **{"label_shares": [0.0, 0.3], "seeds": 1},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with shards, subsets and a pretrained net."""
    made = tmp_path_factory.mktemp("study")
    draw_pictures(made / "pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        prepare(made, **SECTIONS)
        run("pretrain")
    return made


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_seeds_of_pairs_never_meet_and_first_nets_keep_their_seed():
    pairs = seed_pairs(100, 100)
    assert len({pair.seed for pair in pairs}) == 10_000
    assert [SeedPair(subset).seed for subset in range(3)] == [0, 1, 2]
    assert len({pair.folder for pair in pairs}) == 10_000
    assert seed_pairs(2, 2)[:2] == [SeedPair(0), SeedPair(1)]


def test_all_labels_are_a_fraction_like_another():
    run("supervised", "--fraction", ALL)
    run("finetune", "--fraction", ALL)
    images = numbers_of("shard")["images"]["train"]
    assert numbers_of(f"subsets/{ALL}")["labels"] == images
    assert labelled_keys(ALL, 0) == labelled_keys(ALL, 1)
    assert {row["labels"] for row in rows_of(f"finetune/{ALL}")} == {images}
    study = Study(Path(), load_params())
    assert study.fractions == [FEW, ALL]
    assert study.results["supervised", ALL].labels == images
    build_report(Path(), study.params)
    assert "100%" in Path("report/index.html").read_text(encoding="utf-8")


def test_test_split_is_opened_once_by_a_stage_and_after_every_choice():
    for stage, arguments in (
        ("probe", ["--fraction", FEW]),
        ("supervised", ["--fraction", FEW]),
        ("finetune", ["--fraction", FEW]),
        ("distill", ["--student", "same", "--fraction", FEW]),
        ("semisup", ["--method", "fixmatch", "--fraction", FEW]),
        ("semisup", ["--method", "pseudo_label", "--fraction", FEW]),
    ):
        events: list[str] = []
        real = ImageStore.open.__func__

        def opening(
            cls: type,
            place: Path,
            split: str,
            *,
            events: list[str] = events,
            real: Any = real,
            **more: Any,
        ) -> ImageStore:
            events.append(split)
            return real(cls, place, split, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ImageStore, "open", classmethod(opening))
            with told(events, Examiner, "choose", "choice"):
                run(stage, *arguments)
        assert events.count("test") == 1, stage
        if stage == "probe":  # its features are made at once; test_honesty shows what chooses
            continue
        before, after = events[: events.index("test")], events[events.index("test") + 1 :]
        assert "train" in before, stage
        assert "train" not in after, stage  # nothing is trained once the test split was seen
        if stage in {"supervised", "semisup"}:
            grid = 2 if stage == "supervised" else 1
            assert before.count("choice") == grid, stage


def test_two_nets_of_a_subset_differ_in_their_start_and_not_in_their_labels():
    run("finetune", "--fraction", FEW)
    rows = [row for row in rows_of(f"finetune/{FEW}") if row["method"] == "finetune_layer_1"]
    assert [(row["seed"], row["initialisation"]) for row in rows] == [
        (0, 0),
        (1, 0),
        (0, 1),
        (1, 1),
    ]
    folder = Path(f"artifacts/finetune/{FEW}/layer-1")
    assert {path.name for path in folder.iterdir()} == {
        *("seed-0", "seed-1", "seed-0-initialisation-1", "seed-1-initialisation-1")
    }
    found = digests(Path())
    assert len({found[f"{folder}/{path.name}"] for path in folder.iterdir()}) == 4
    told_here = numbers_of(f"finetune/{FEW}")["finetune_layer_1"]["test_accuracy"]
    means = [np.mean([r["test_accuracy"] for r in rows if r["seed"] == seed]) for seed in (0, 1)]
    assert told_here["std"] == pytest.approx(np.std(means, ddof=1))
    firsts = {name: found[f"{folder}/{name}"] for name in ("seed-0", "seed-1")}
    write_params(Path(), **{**SECTIONS, "finetune": {**SECTIONS["finetune"], "initialisations": 1}})
    try:
        run("finetune", "--fraction", FEW)
    finally:
        write_params(Path(), **SECTIONS)
    found = digests(Path())
    assert {name: found[f"{folder}/{name}"] for name in firsts} == firsts


def test_a_neighbour_that_is_not_asked_for_is_told():
    write_params(Path(), **{**SECTIONS, "semisup": {"methods": []}})
    try:
        with pytest.raises(UserError, match=r"semisup\.methods in params\.yaml names: none"):
            run("semisup", "--method", "fixmatch", "--fraction", FEW)
    finally:
        write_params(Path(), **SECTIONS)


def test_sizes_are_pretrained_fine_tuned_and_teach():
    run("pretrain", "--size", BIG)
    run("supervised", "--size", BIG, "--fraction", FEW)
    run("finetune", "--size", BIG, "--fraction", FEW)
    run("finetune", "--fraction", FEW)
    run("distill", "--teacher", BIG, "--student", SMALL, "--fraction", FEW)
    run("distill", "--student", SMALL, "--fraction", FEW)
    study = Study(Path(), load_params())
    assert study.sizes == [SMALL, BIG]
    assert study.parameters_of(BIG) > 3 * study.parameters_of(SMALL)
    assert study.sized(BIG, "finetune_layer_0", FEW) is None  # only the layer that teaches
    grid = {(teacher, student, r.method.name) for teacher, student, r in study.students(FEW)}
    methods = ("student", "student_0.3_labels")
    assert grid == {(teacher, SMALL, method) for teacher in (SMALL, BIG) for method in methods}
    (row,) = [r for r in rows_of(f"students/{BIG}/{SMALL}/{FEW}") if r["method"] == "student"]
    assert (row["teacher"], row["student"], row["label_share"]) == (BIG, SMALL, 0.0)
    assert row["parameters"] == study.parameters_of(SMALL)
    build_report(Path(), study.params)


@pytest.mark.parametrize(
    ("stage", "arguments", "message"),
    [
        ("pretrain", ["--size", "r50_1x_sk0"], "sizes.encoders names: r10_0.125x_sk0"),
        ("distill", ["--student", BIG, "--fraction", FEW], "sizes.students names: r10_0.0625x_sk0"),
    ],
)
def test_a_size_that_is_not_in_params_is_told(stage: str, arguments: list[str], message: str):
    with pytest.raises(UserError, match=message):
        run(stage, *arguments)


def test_answers_to_the_test_images_are_kept_small_with_the_surest_mistakes():
    run("supervised", "--fraction", FEW)
    path = Path(f"artifacts/predictions/supervised/{FEW}.npz")
    with np.load(path, allow_pickle=False) as kept:
        found = {name: kept[name] for name in kept.files}
    rows = rows_of(f"supervised/{FEW}")
    assert found["said"].shape == (len(rows), 12 * len(KINDS))
    for place, row in enumerate(rows):
        right = found["said"][place] == found["classes"]
        assert right.mean() == pytest.approx(row["test_accuracy"], abs=1e-6)
        mistakes = [p for p in found["mistakes"][place].tolist() if p >= 0]
        assert len(mistakes) == min((~right).sum(), 12)
        assert not right[mistakes].any()
        sure = found["confidence"][place][mistakes].astype(float)
        assert (np.diff(sure) <= 1e-3).all()
        bins = row["reliability"]
        assert sum(bins["count"]) == len(right)
        whole = np.average(bins["accuracy"], weights=bins["count"])
        assert whole == pytest.approx(row["test_accuracy"], abs=1e-4)
    assert found["pictures"].shape == (len(found["shown"]), 16, 16, 1)
    assert path.stat().st_size < 30_000
