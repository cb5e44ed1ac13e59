"""The report, from files like those the stages write (`write_study` draws them, seeded)."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.report.build import build_report
from pipeline.report.methods import fraction_title, record_name
from pipeline.report.pictures import make_pictures
from pipeline.report.results import Study
from pipeline.report.svg import Scale, apart, ticks
from pipeline.report.tables import COLUMNS, html_table, markdown_table
from pipeline.report.training import grid_section
from pipeline.report.verdict import gain_at, sentence
from stages.errors import UserError
from stages.records import write_json
from tests.unit.pipeline.study_files import (
    ACCURACY,
    LABELS,
    quick_params,
    write_result,
    write_shard,
    write_study,
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
    assert gain.half_width == pytest.approx(0.04303, abs=5e-6)
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
    assert "keys: test/2, train/&lt;3&gt;; sides: train, test" in page


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


def test_a_best_rate_at_the_end_of_the_grid_is_told(tmp_path: Path):
    def told(lower: float | None) -> bool:
        record = json.loads(path.read_text())
        if lower is not None:
            worse = {**record["grid"][0], "base_lr": lower, "validation_accuracy": 0.5}
            write_json(path, {**record, "grid": [*record["grid"], worse]})
        return "Best was the lowest rate tried (0.001) at " in grid_section(Study(tmp_path, params))

    params = quick_params()
    write_study(tmp_path, params)
    for fraction in list(LABELS)[1:]:
        (tmp_path / f"metrics/supervised/{fraction}.run.json").unlink()
    path = tmp_path / "metrics/supervised/10_per_class.run.json"
    assert told(None)
    assert not told(0.0003)


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
