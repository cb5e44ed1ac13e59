"""The report, from files like those the stages write (`write_study` draws them, seeded)."""

import csv
import io
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.report.build import build_report
from pipeline.report.methods import fraction_title, methods_of, record_name
from pipeline.report.pictures import make_pictures
from pipeline.report.results import Study
from pipeline.report.svg import Scale, apart, ticks
from pipeline.report.tables import COLUMNS, html_table, markdown_table
from pipeline.report.verdict import (
    claims,
    gain_at,
    labels_for_same,
    points,
    sentence,
    t_quantile,
)
from stages.errors import UserError
from stages.params import Params, check_params
from stages.records import mean_and_deviation, write_json

ROOT = Path(__file__).parents[3]
CLASSES = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"]
CLASSES.append("Ankle boot")
LABELS = {"10_per_class": 100, "0.01": 550, "0.1": 5500}
# Accuracy at each label fraction, in the range a run of the quick profile gives.
ACCURACY = {
    "random_linear": (0.582, 0.686, 0.760),
    "random_knn": (0.541, 0.652, 0.741),
    "supervised": (0.717, 0.821, 0.887),
    "linear_probe": (0.745, 0.813, 0.846),
    "knn": (0.705, 0.792, 0.834),
    "finetune_layer_0": (0.751, 0.830, 0.889),
    "finetune_layer_1": (0.764, 0.833, 0.890),
    "finetune_layer_2": (0.761, 0.829, 0.888),
    "distill_same": (0.772, 0.838, 0.893),
    "distill_small": (0.758, 0.822, 0.874),
}


def quick_params(**finetune: Any) -> Params:
    written = yaml.safe_load((ROOT / "pipeline/profiles/quick.yaml").read_text(encoding="utf-8"))
    asked = {"label_fractions": list(LABELS), "layers": [0, 1, 2], "seeds": 3, **finetune}
    written["finetune"] |= {**asked, "overrides": {}}
    written["distill"]["teacher_layer"] = 1
    return check_params(written)


def confusion(accuracy: float, rng: np.random.Generator) -> list[list[int]]:
    """1,000 test images a class; shirts, coats and pullovers are taken for each other."""
    rows = []
    for true in range(10):
        weights = rng.uniform(0.05, 0.3, 10)
        weights[[0, 2, 4, 6]] += 3.0 if true in {0, 2, 4, 6} else 0.0
        weights[[5, 7, 9]] += 3.0 if true in {5, 7, 9} else 0.0
        weights[true] = 0
        hard = {6: -0.25, 2: -0.08, 4: -0.08, 1: 0.1, 8: 0.1, 9: 0.08}.get(true, 0.02)
        right = min(max(accuracy + hard + rng.normal(0, 0.01), 0.05), 0.99)
        wrong = rng.multinomial(1000 - round(1000 * right), weights / weights.sum())
        wrong[true] = round(1000 * right)
        rows.append([int(count) for count in wrong])
    return rows


def write_result(
    root: Path, params: Params, method: str, fraction: str, tests: list[float], seconds: float = 20
) -> None:
    """Add one method's numbers, a test accuracy per seed, to its record."""
    known = next(m for m in methods_of(params) if m.name == method)
    name = record_name(known, fraction)
    rng = np.random.default_rng(len(method) + LABELS[fraction])
    rows = []
    for seed, accuracy in enumerate(tests):
        counts = confusion(accuracy, rng)
        rows.append(
            {
                "method": method,
                "label_fraction": fraction,
                "labels": LABELS[fraction],
                "seed": seed,
                "test_accuracy": accuracy,
                "validation_accuracy": accuracy + 0.004,
                "macro_f1": accuracy - 0.003,
                "seconds": seconds / len(tests),
                "chosen": {"lr": 0.001, "duration": "300 steps"} if method == "supervised" else {},
                "parameters": 700_000,
                "per_class_accuracy": [row[k] / sum(row) for k, row in enumerate(counts)],
                "confusion": counts,
            }
        )
    numbers = {
        "test_accuracy": mean_and_deviation(tests),
        "validation_accuracy": mean_and_deviation([row["validation_accuracy"] for row in rows]),
    }
    path, details = root / f"metrics/{name}.json", root / f"metrics/{name}.run.json"
    old = json.loads(path.read_text()) if path.is_file() else {}
    old_rows = json.loads(details.read_text())["rows"] if details.is_file() else []
    write_json(path, {**old, method: numbers, "seconds": old.get("seconds", 0) + seconds})
    grid = [
        {"base_lr": lr, "duration": "300 steps", "crop_area": [0.2, 1.0], "validation_accuracy": v}
        for lr, v in ((0.001, 0.713), (0.003, 0.698))
    ]
    more = {"grid": grid} if method == "supervised" else {}
    known_by = {"params": {}, "data_fingerprint": "f00d", "run": RUN}
    write_json(details, {"rows": old_rows + rows, **more, **known_by})


RUN = {
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "python": "3.12.1",
    "system": "Linux",
    "machine": "x86_64",
    "processor": "Some CPU @ 2.50GHz",
    "cores": 2,
    "packages": {"torch": "2.11.0", "numpy": "2.2.0", "prefect": "3.8.8", "dvc": None},
}


def write_study(root: Path, params: Params, images_NHW: np.ndarray | None = None) -> None:
    """All the files of a whole run. `images_NHW`: uint8 pictures for the gallery."""
    rng = np.random.default_rng(7)
    for method, accuracies in ACCURACY.items():
        for fraction, accuracy in zip(LABELS, accuracies, strict=True):
            spread = 0.012 if fraction == "10_per_class" else 0.004
            shared = np.random.default_rng(LABELS[fraction]).normal(0, spread, 3)
            tests = accuracy + shared + rng.normal(0, spread / 4, 3)
            tests = [float(value) for value in tests[: 1 if method == "distill_small" else 3]]
            write_result(root, params, method, fraction, tests, float(rng.uniform(8, 60)))
    for fraction, labels in LABELS.items():
        each = labels // 10
        seeds = [{"seed": s, "sha256": f"{s}" * 64, "per_class": [each] * 10} for s in range(3)]
        write_json(
            root / f"metrics/subsets/{fraction}.json",
            {"labels": labels, "per_class_min": each, "per_class_max": each},
        )
        write_json(root / f"metrics/subsets/{fraction}.run.json", {"seeds": seeds, "run": RUN})
    write_shard(root)
    write_json(
        root / "metrics/pretrain.json",
        {
            **{"loss": 2.41, "contrastive_accuracy": 0.44, "effective_rank": 61.2},
            **{"z_std": 0.0871, "alignment": 0.31, "uniformity": -2.9, "steps": 4280},
            **{"images": 1_095_680, "seconds": 460.0, "images_per_second": 2382.0},
            **{"waited_share": 0.021},
        },
    )
    write_json(root / "metrics/pretrain.run.json", {"data_fingerprint": "f00d", "run": RUN})
    gallery = {"effective_rank_h": 31.5, "neighbour_agreement": 0.812, "seconds": 31.0}
    write_json(root / "metrics/gallery.json", gallery)
    write_transfer(root)
    write_curves(root, params, rng)
    write_gallery(root, rng, images_NHW)


def write_shard(root: Path) -> None:
    write_json(
        root / "metrics/shard.json",
        {
            "images": {"train": 55_000, "validation": 5_000, "test": 10_000},
            **{"classes": 10, "labelled": 60_000, "shards": 15, "bytes": 41_000_000},
            **{"quarantined": 2, "duplicates": 1, "seconds": 9.4},
            **{"near_duplicates": 74, "near_duplicates_across_splits": 18},
            "near_duplicates_dropped": 0,
        },
    )
    write_json(
        root / "metrics/shard.run.json",
        {
            "class_names": CLASSES,
            "quarantine": [
                {"key": "train/00017", "reason": "cannot identify <image>"},
                {"key": "train/04242", "reason": "truncated at 312 bytes"},
            ],
            "duplicates": [{"keys": ["train/00001", "test/09999"], "kept": "test/09999"}],
            "near_duplicates": [{"keys": ["test/2", "train/<3>"], "sides": ["train", "test"]}],
            "fingerprint": "f00d",
            "run": RUN,
        },
    )


def write_transfer(root: Path) -> None:
    accuracies = {
        "raw_pixels_linear": 0.953,
        "random_linear": 0.931,
        "linear_probe": 0.964,
        "knn": 0.951,
    }
    rows = [
        {
            **{"dataset": "digits", "method": method, "test_accuracy": accuracy},
            **{"macro_f1": accuracy - 0.001, "classes": 10, "images": 1797, "seconds": 1.2},
        }
        for method, accuracy in accuracies.items()
    ]
    skipped = [{"dataset": "elpv", "reason": "not installed; pip install elpv-dataset"}]
    write_json(root / "metrics/transfer.json", {"seconds": 5.0})
    write_json(root / "metrics/transfer.run.json", {"rows": rows, "skipped": skipped, "run": RUN})


def write_csv(path: Path, columns: str, rows: list[list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [columns, *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_curves(root: Path, params: Params, rng: np.random.Generator) -> None:
    rows = []
    for step in range(50, 4281, 50):
        share = step / 4280
        warm = min(step / 214, 1)
        rows.append(
            [
                step,
                step / 214,
                2.4 + 2.6 * math.exp(-6 * share) + rng.normal(0, 0.02),
                0.46 * (1 - math.exp(-5 * share)) + rng.normal(0, 0.004),
                0.06 + 0.02 * share,
                20 + 42 * (1 - math.exp(-4 * share)),
                0.002 * warm * 0.5 * (1 + math.cos(math.pi * share)),
                2380 + rng.normal(0, 40),
            ]
        )
    columns = "step,epoch,loss,contrastive_accuracy,z_std,effective_rank,lr,images_per_second"
    write_csv(root / "plots/pretrain.csv", columns, rows)
    curves: dict[str, list[list[Any]]] = {}
    for method in methods_of(params)[2:]:
        if not method.name.startswith(("supervised", "finetune", "distill")):
            continue
        for fraction in LABELS:
            name = record_name(method, fraction)
            fast = 4 if method.name.startswith("finetune") else 2.5
            losses = [
                [method.name, seed, step, math.exp(-fast * step / 300) + rng.uniform(0, 0.1), 1e-3]
                for seed in range(3)
                for step in range(0, 301, 10)
            ]
            curves.setdefault(name, []).extend(losses)
    for name, rows in curves.items():
        write_csv(root / f"plots/{name}.csv", "method,seed,step,loss,lr", rows)


def write_gallery(root: Path, rng: np.random.Generator, images_NHW: np.ndarray | None) -> None:
    if images_NHW is None:
        images_NHW = rng.integers(0, 256, (64, 28, 28), dtype=np.uint8)
    images_NHWC = images_NHW[..., None]
    crops = np.stack([np.roll(images_NHWC[:8], 4, axis=1), images_NHWC[:8, :, ::-1]])
    classes_M = rng.integers(0, 10, 2000)
    centres_K2 = rng.normal(0, 4, (10, 2))
    folder = root / "artifacts/gallery"
    folder.mkdir(parents=True)
    np.savez_compressed(
        folder / "gallery.npz",
        originals=images_NHWC[:8],
        views=crops,
        query_images=images_NHWC[8:16],
        query_classes=np.arange(8),
        neighbour_images=images_NHWC[16:56].reshape(8, 5, *images_NHWC.shape[1:]),
        neighbour_classes=np.where(rng.random((8, 5)) < 0.85, np.arange(8)[:, None], -1),
        neighbour_similarity=np.sort(rng.uniform(0.9, 0.99, (8, 5)))[:, ::-1],
        map_xy=(centres_K2[classes_M] + rng.normal(0, 1, (2000, 2))).astype(np.float32),
        map_xy_random=(centres_K2[classes_M] / 4 + rng.normal(0, 1, (2000, 2))).astype(np.float32),
        map_classes=classes_M,
    )


class WellFormed(HTMLParser):
    """Checks that tags nest, and collects what a browser would load and jump to."""

    VOID = frozenset({"meta", "br", "img", "link", "hr", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.targets: list[str] = []
        self.ids: list[str] = []
        self.images_without_alt = 0
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [found[key] or "" for key in ("src", "data", "srcset") if key in found]
        if "href" in found:
            (self.targets if tag == "a" else self.loads).append(found["href"] or "")
        if "id" in found:
            self.ids.append(found["id"] or "")
        no_alt = (tag == "img" and not found.get("alt")) or (
            tag == "svg" and not found.get("aria-label")
        )
        self.images_without_alt += no_alt

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parsed(html: str) -> WellFormed:
    parser = WellFormed()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole run and its report."""
    root = tmp_path_factory.mktemp("whole")
    params = quick_params()
    write_study(root, params)
    build_report(root, params)
    return root


def pair(root: Path, ours: list[float], supervised: list[float]) -> Study:
    """A study of two methods at 10 labels per class."""
    params = quick_params(label_fractions=["10_per_class"], layers=[1])
    write_shard(root)
    write_result(root, params, "finetune_layer_1", "10_per_class", ours)
    write_result(root, params, "supervised", "10_per_class", supervised)
    return Study(root, params)


def test_gain_is_the_mean_of_the_differences_seed_by_seed(tmp_path: Path):
    gain = gain_at(pair(tmp_path, [0.77, 0.75, 0.76], [0.71, 0.72, 0.70]), "10_per_class")
    assert gain is not None
    assert gain.by_seed == pytest.approx({0: 0.06, 1: 0.03, 2: 0.06})
    assert gain.mean == pytest.approx(0.05)
    # Deviation 0.0173 over 3 seeds, Student's t with 2 degrees 4.303: 4.303 * 0.01.
    assert gain.half_width == pytest.approx(0.04303)
    assert gain.kind == "gain"


def test_a_clear_gain_is_one_sentence_with_both_accuracies(tmp_path: Path):
    study = pair(tmp_path, [0.77, 0.75, 0.76], [0.71, 0.72, 0.70])
    assert sentence(study) == (
        "With 10 labels per class, the 55,000 unlabelled images were worth +5.0 points "
        "(71.0 → 76.0 %, mean of 3 label subsets) over the same net trained on the labels alone."
    )


def test_a_gain_below_the_spread_is_called_no_gain(tmp_path: Path):
    study = pair(tmp_path, [0.75, 0.70, 0.72], [0.71, 0.72, 0.70])
    gain = gain_at(study, "10_per_class")
    assert gain is not None
    assert gain.mean > 0
    assert gain.kind == "unclear"
    said = "brought no gain that stands out from the spread over seeds: +1.3 points"
    assert said in sentence(study)


def test_a_loss_is_called_a_cost(tmp_path: Path):
    study = pair(tmp_path, [0.60, 0.61, 0.60], [0.71, 0.72, 0.70])
    assert "unlabelled images cost 10.7 points (71.0 → 60.3 %" in sentence(study)


def test_one_seed_gives_no_verdict(tmp_path: Path):
    study = pair(tmp_path, [0.77], [0.71])
    assert "this is no verdict yet" in sentence(study)
    assert "worth" not in sentence(study)


def test_ours_is_chosen_on_validation_and_not_on_test(tmp_path: Path):
    study = pair(tmp_path, [0.70, 0.70, 0.70], [0.65, 0.66, 0.64])
    write_result(tmp_path, study.params, "linear_probe", "10_per_class", [0.80, 0.80, 0.80])
    path = tmp_path / "metrics/probe/10_per_class.json"
    numbers = json.loads(path.read_text())
    numbers["linear_probe"]["validation_accuracy"]["mean"] = 0.1
    write_json(path, numbers)
    gain = gain_at(Study(tmp_path, study.params), "10_per_class")
    assert gain is not None
    assert gain.ours.method.name == "finetune_layer_1"


def test_a_smaller_student_is_never_the_same_net(tmp_path: Path):
    study = pair(tmp_path, [0.70, 0.70, 0.70], [0.65, 0.66, 0.64])
    write_result(tmp_path, study.params, "distill_small", "10_per_class", [0.9, 0.9, 0.9])
    gain = gain_at(Study(tmp_path, study.params), "10_per_class")
    assert gain is not None
    assert gain.ours.method.name == "finetune_layer_1"


@pytest.mark.parametrize(("degrees", "value"), [(1, 12.706), (2, 4.303), (30, 2.042), (60, 2.0003)])
def test_t_quantile_is_students(degrees: int, value: float):
    assert t_quantile(degrees) == pytest.approx(value, abs=0.003)


def test_labels_for_the_same_accuracy_are_read_off_the_supervised_curve(whole: Path):
    study = Study(whole, quick_params())
    gain = gain_at(study, "10_per_class")
    assert gain is not None
    sign, labels = labels_for_same(study, gain) or ("", None)
    supervised = {r.labels: r.mean for k, r in study.results.items() if k[0] == "supervised"}
    share = (gain.ours.mean - supervised[100]) / (supervised[550] - supervised[100])
    assert sign == "="
    assert labels == pytest.approx(100 * 5.5**share)


def test_points_have_a_sign_and_no_negative_zero():
    shown = [points(x) for x in (0.0471, -0.003, -0.0001, 0)]
    assert shown == ["+4.7", "\N{MINUS SIGN}0.3", "+0.0", "+0.0"]


def test_claims_are_answered_from_the_numbers(whole: Path):
    found = {claim.text: claim for claim in claims(Study(whole, quick_params()))}
    verdicts = [claim.verdict for claim in found.values()]
    assert len(verdicts) == 4
    assert verdicts[3] == "not tested"
    assert set(verdicts) <= {"yes", "no", "undecided", "not tested"}


def test_csv_has_the_columns_and_the_values_of_the_json(whole: Path):
    rows = list(csv.DictReader(io.StringIO((whole / "report/label_fractions.csv").read_text())))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == len(ACCURACY) * len(LABELS)
    for row in rows:
        numbers = json.loads((whole / row["file"]).read_text())[row["method"]]
        assert float(row["mean"]) == numbers["test_accuracy"]["mean"]
        assert float(row["std"]) == numbers["test_accuracy"]["std"]
        assert float(row["validation_mean"]) == numbers["validation_accuracy"]["mean"]
        assert float(row["min"]) <= float(row["mean"]) <= float(row["max"])
        assert int(row["labels"]) == LABELS[row["label_fraction"]]
        assert int(row["seeds"]) == (1 if row["method"] == "distill_small" else 3)


def test_tables_show_the_numbers_of_the_json(whole: Path):
    study = Study(whole, quick_params())
    html = re.sub(r"<small>|</small>", "", html_table(study))
    markdown = markdown_table(study)
    for method in study.methods:
        for fraction in LABELS:
            path = whole / f"metrics/{record_name(method, fraction)}.json"
            accuracy = json.loads(path.read_text())[method.name]["test_accuracy"]
            shown = f"{accuracy['mean'] * 100:.1f}"
            if method.name != "distill_small":
                shown += f" ± {accuracy['std'] * 100:.1f}"
            assert shown in html
            line = next(line for line in markdown.splitlines() if f"| {method.title} |" in line)
            assert shown in line


def test_page_is_well_formed_and_loads_nothing(whole: Path):
    html = (whole / "report/index.html").read_text(encoding="utf-8")
    page = parsed(html)
    assert page.loads
    assert all(address.startswith("data:image/") for address in page.loads)
    assert "url(" not in html
    assert "@import" not in html
    assert "<script" not in html
    assert page.images_without_alt == 0


def test_every_link_of_the_page_leads_somewhere(whole: Path):
    page = parsed((whole / "report/index.html").read_text(encoding="utf-8"))
    assert len(page.ids) == len(set(page.ids))
    assert {target.removeprefix("#") for target in page.targets} <= set(page.ids)


def test_page_tells_near_copies_and_how_many_stand_on_two_sides(whole: Path):
    page = (whole / "report/index.html").read_text()
    assert "74, 18 groups across splits" in page
    assert "Near duplicates (1)" in page
    assert "train/&lt;3&gt;" in page


def test_page_tells_names_of_strangers_as_text(whole: Path):
    html = (whole / "report/index.html").read_text(encoding="utf-8")
    assert "cannot identify &lt;image&gt;" in html
    assert "<image>" not in html


def test_an_image_without_a_label_counts_neither_right_nor_wrong(whole: Path):
    html = (whole / "report/index.html").read_text(encoding="utf-8")
    unknown = html.count("? no label")
    assert unknown > 0
    assert f"Here {40 - unknown} of {40 - unknown} neighbours have the class" in html


def test_every_setting_of_the_baseline_is_shown_and_the_best_is_bold(whole: Path):
    html = (whole / "report/index.html").read_text(encoding="utf-8")
    assert html.count("<b>71.3%</b>") == len(LABELS)
    assert html.count("<td>69.8%</td>") == len(LABELS)


def test_report_of_nothing_says_not_run_yet(tmp_path: Path):
    build_report(tmp_path, quick_params())
    html = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    page = parsed(html)
    assert "Not run yet: the answer needs" in "".join(page.texts)
    assert (tmp_path / "report/label_fractions.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert "not run yet" in (tmp_path / "report/report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "folder", ["metrics/subsets", "metrics/probe", "metrics/finetune", "plots"]
)
def test_report_does_without_what_has_not_run(tmp_path: Path, folder: str):
    params = quick_params()
    write_study(tmp_path, params)
    (tmp_path / folder).rename(tmp_path / "elsewhere")
    for path in ("metrics/shard.run.json", "metrics/transfer.run.json"):
        (tmp_path / path).unlink()
    (tmp_path / "artifacts/gallery/gallery.npz").unlink()
    build_report(tmp_path, params)
    parsed((tmp_path / "report/index.html").read_text(encoding="utf-8"))


def test_records_without_their_details_still_give_the_table(tmp_path: Path):
    params = quick_params()
    write_study(tmp_path, params)
    for path in (tmp_path / "metrics").rglob("*.run.json"):
        path.unlink()
    build_report(tmp_path, params)
    page = parsed((tmp_path / "report/index.html").read_text(encoding="utf-8"))
    assert {target.removeprefix("#") for target in page.targets} <= set(page.ids)


def test_numbers_of_other_params_are_not_shown(whole: Path):
    study = Study(whole, quick_params(label_fractions=["0.01"], layers=[1]))
    assert {fraction for _, fraction in study.results} == {"0.01"}
    assert ("finetune_layer_0", "0.01") not in study.results


def test_numbers_from_two_data_sets_are_announced(tmp_path: Path):
    params = quick_params()
    write_study(tmp_path, params)
    path = tmp_path / "metrics/supervised/0.1.run.json"
    write_json(path, {**json.loads(path.read_text()), "data_fingerprint": "beef"})
    build_report(tmp_path, params)
    html = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert "come from different data" in html


def test_a_damaged_record_is_named(tmp_path: Path):
    params = quick_params()
    path = tmp_path / "metrics/probe/0.01.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"knn": ')
    with pytest.raises(UserError, match=r"probe/0\.01\.json can't be read"):
        build_report(tmp_path, params)
    assert not (tmp_path / "report/index.html").exists()


def test_many_classes_list_their_worst_confusions(tmp_path: Path):
    study = pair(tmp_path, [0.77, 0.75, 0.76], [0.71, 0.72, 0.70])
    names = [f"kind {number}" for number in range(120)]
    shard = tmp_path / "metrics/shard.run.json"
    write_json(shard, {**json.loads(shard.read_text()), "class_names": names})
    for name in ("finetune/10_per_class", "supervised/10_per_class"):
        path = tmp_path / f"metrics/{name}.run.json"
        record = json.loads(path.read_text())
        counts = np.diag(np.full(120, 8)) + np.roll(np.eye(120, dtype=int), 1, axis=1)
        for row in record["rows"]:
            row |= {"confusion": counts.tolist(), "per_class_accuracy": [8 / 9] * 120}
        write_json(path, record)
    build_report(tmp_path, study.params)
    html = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    parsed(html)
    assert 'class="confusion"' not in html
    assert "Most frequent mistakes: kind " in html


def test_fractions_are_named_as_one_speaks():
    assert [fraction_title(f) for f in ("10_per_class", "0.01", "1.0")] == [
        "10 per class",
        "1%",
        "100%",
    ]


def test_labels_of_a_plot_stand_apart_and_inside():
    places = apart([10, 11, 12, 100, 101], gap=17, low=0, high=120)
    assert all(b - a >= 17 - 1e-9 for a, b in pairwise(places))
    assert places[0] >= 0
    assert places[-1] <= 120


def test_ticks_are_round_and_inside():
    assert ticks(0.612, 0.891, 5) == [0.65, 0.7, 0.75, 0.8, 0.85]
    assert ticks(0, 4280, 4) == [0, 1000, 2000, 3000, 4000]


def test_a_log_scale_puts_the_geometric_mean_in_the_middle():
    assert Scale(100, 10_000, 0, 1, log=True)(1000) == pytest.approx(0.5)


def test_pictures_are_small_and_drawn_from_the_results(whole: Path):
    written = make_pictures(whole, quick_params())
    assert [path.name for path in written] == ["label_fractions.png", "views.png", "map.png"]
    for path in written:
        assert path.parent == whole / "pipeline/docs/pictures"
        assert path.stat().st_size < 200_000
        with Image.open(path) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 20


def test_pictures_of_nothing_tell_what_to_run(tmp_path: Path):
    with pytest.raises(UserError, match="dvc repro"):
        make_pictures(tmp_path, quick_params())
    assert not (tmp_path / "pipeline").exists()
