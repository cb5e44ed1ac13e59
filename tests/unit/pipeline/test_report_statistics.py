"""What the report may conclude: tests, intervals, label efficiency and the paper's claims."""

import math
from pathlib import Path

import numpy as np
import pytest

from pipeline.report.claims import Claim, claims
from pipeline.report.comparison import points
from pipeline.report.efficiency import efficiency_of, read_off, times_text
from pipeline.report.results import Study
from pipeline.report.statistics import p_by_signs, p_by_t, t_quantile, t_within
from pipeline.report.verdict import efficiency_sentence, gain_at, labels_for_same
from stages.params import Params
from tests.unit.pipeline.study_files import (
    LABELS,
    quick_params,
    with_sizes,
    write_result,
    write_study,
)

FEW, MANY = "10_per_class", "0.1"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a whole run."""
    root = tmp_path_factory.mktemp("whole")
    write_study(root, quick_params())
    return root


@pytest.mark.parametrize(
    ("degrees", "value"), [(1, 12.7062), (2, 4.3027), (5, 2.5706), (30, 2.0423), (99, 1.9842)]
)
def test_t_quantile_is_that_of_printed_tables(degrees: int, value: float):
    assert t_quantile(degrees) == pytest.approx(value, abs=5e-5)
    assert t_within(t_quantile(degrees), degrees) == pytest.approx(0.95, abs=1e-8)


def test_p_of_the_paired_t_test_is_that_of_a_worked_example():
    # Mean 0.05, deviation 0.01732 over 3: t = 5 with 2 degrees, p = 1 - 5 / sqrt(27).
    assert p_by_t([0.06, 0.03, 0.06]) == pytest.approx(1 - 5 / math.sqrt(27))
    assert p_by_t([0.06]) is None
    assert p_by_t([0.06, 0.06]) is None


def test_permutation_test_counts_patterns_of_signs():
    assert p_by_signs([0.06, 0.03, 0.06]) == 2 / 8  # the smallest that three seeds can give
    assert p_by_signs([0.1] * 6) == 2 / 64
    assert p_by_signs([0.3, -0.1, 0.1]) == 6 / 8  # all but +-- and -++ reach the sum of 0.3
    assert p_by_signs([0.0, 0.0]) == 1
    assert p_by_signs([0.1]) is None


def test_p_values_are_uniform_where_there_is_no_effect():
    rng = np.random.default_rng(0)
    draws = rng.normal(0, 1, (2000, 5))
    by_t = np.array([p_by_t(row.tolist()) for row in draws])
    assert np.mean(by_t < 0.05) == pytest.approx(0.05, abs=0.015)
    assert np.mean(by_t < 0.5) == pytest.approx(0.5, abs=0.03)
    by_signs = np.array([p_by_signs(row.tolist()) for row in draws])
    assert np.mean(by_signs <= 2 / 32) == pytest.approx(2 / 32, abs=0.02)


def test_several_nets_of_one_label_subset_count_as_one_value_of_it(tmp_path: Path):
    params = quick_params(label_fractions=[FEW], layers=[1], initialisations=2)
    write_result(tmp_path, params, "finetune_layer_1", FEW, [0.78, 0.74, 0.76, 0.76], per_subset=2)
    write_result(tmp_path, params, "supervised", FEW, [0.70, 0.72, 0.71, 0.69], per_subset=2)
    study = Study(tmp_path, params)
    ours = study.results["finetune_layer_1", FEW]
    assert ours.by_seed() == pytest.approx({0: 0.76, 1: 0.76})
    assert ours.initialisations == 2
    assert ours.spread_of_initialisations == pytest.approx(math.sqrt((0.0008 + 0) / 2))
    gain = gain_at(study, FEW)
    assert gain is not None
    assert gain.by_seed == pytest.approx({0: 0.05, 1: 0.06})


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [(0.7, ("=", 100)), (0.8, ("=", 1000)), (0.85, ("=", 10**3.5)), (0.9, ("=", 10_000))],
)
def test_labels_are_read_off_a_curve_over_their_logarithm(
    accuracy: float, expected: tuple[str, float]
):
    curve = [(100, 0.7), (1000, 0.8), (10_000, 0.9)]
    sign, labels = read_off(curve, accuracy)
    assert (sign, labels) == (expected[0], pytest.approx(expected[1]))
    assert read_off(curve, 0.69) == ("<", 100)
    assert read_off(curve, 0.91) == (">", 10_000)


def test_labels_for_the_same_accuracy_are_read_off_the_supervised_curve(whole: Path):
    study = Study(whole, quick_params())
    gain = gain_at(study, FEW)
    assert gain is not None
    needed = labels_for_same(study, gain)
    supervised = {r.labels: r.mean for k, r in study.results.items() if k[0] == "supervised"}
    share = (gain.ours.mean - supervised[100]) / (supervised[550] - supervised[100])
    assert needed is not None
    assert needed.sign == "="
    assert needed.labels == pytest.approx(100 * 5.5**share)
    assert needed.interval is not None
    assert needed.interval[0] < needed.times < needed.interval[1]
    assert len(needed.by_seed) == 3
    assert f"Ours at 100 labels is worth {needed.times:.1f} times the labels (95% interval " in (
        efficiency_sentence(study)
    )


def test_efficiency_of_the_supervised_net_itself_is_one(whole: Path):
    study = Study(whole, quick_params())
    found = efficiency_of(study, study.results["supervised", "0.01"])
    assert found is not None
    assert found.times == pytest.approx(1)


def test_efficiency_beyond_the_curve_is_a_bound_and_not_a_figure(tmp_path: Path):
    params = quick_params()
    for fraction, accuracy in zip(LABELS, (0.70, 0.80, 0.85), strict=True):
        write_result(tmp_path, params, "supervised", fraction, [accuracy] * 3)
        write_result(tmp_path, params, "finetune_layer_1", fraction, [0.9] * 3)
    study = Study(tmp_path, params)
    found = efficiency_of(study, study.results["finetune_layer_1", FEW])
    assert found is not None
    assert (found.sign, found.times, found.interval) == (">", 55, None)
    assert found.words == "more than 55.0 times the labels"
    assert [times_text(times) for times in (0.018, 0.28, 1234)] == ["0.02", "0.3", "1,234"]


def test_points_have_a_sign_and_no_negative_zero():
    shown = [points(x) for x in (0.0471, -0.003, -0.0001, 0)]
    assert shown == ["+4.7", "\N{MINUS SIGN}0.3", "+0.0", "+0.0"]


def of_claims(root: Path, params: Params) -> dict[str, Claim]:
    bigger, middle, near, _ = claims(Study(root, params))
    return {"bigger": bigger, "middle": middle, "near": near}


@pytest.mark.parametrize(
    ("middle", "verdict"),
    [([0.77, 0.78, 0.775], "yes"), ([0.73, 0.74, 0.735], "no"), ([0.75, 0.78, 0.72], "undecided")],
)
def test_middle_layer_is_judged_by_the_interval(tmp_path: Path, middle: list[float], verdict: str):
    params = quick_params(label_fractions=[FEW], layers=[0, 1])
    write_result(tmp_path, params, "finetune_layer_0", FEW, [0.75, 0.76, 0.755])
    write_result(tmp_path, params, "finetune_layer_1", FEW, middle)
    assert of_claims(tmp_path, params)["middle"].verdict == verdict


@pytest.mark.parametrize(
    ("student", "verdict"),
    [
        ([0.769, 0.771, 0.770], "yes"),
        ([0.73, 0.74, 0.735], "no"),
        ([0.75, 0.78, 0.77], "undecided"),
        ([0.77], "undecided"),
    ],
)
def test_near_the_teacher_means_the_interval_is_within_a_point(
    tmp_path: Path, student: list[float], verdict: str
):
    params = quick_params(label_fractions=[FEW])
    write_result(tmp_path, params, "distill_same", FEW, [0.772, 0.775, 0.773])
    write_result(tmp_path, params, "distill_small", FEW, student)
    claim = of_claims(tmp_path, params)["near"]
    assert claim.verdict == verdict
    assert "student minus teacher" in claim.why
    assert ("one seed" in claim.why) == (len(student) == 1)


@pytest.mark.parametrize(
    ("big_few", "verdict"),
    [(0.10, "yes"), (0.01, "no"), (None, "undecided")],
)
def test_bigger_nets_are_judged_by_the_change_of_their_gain(
    tmp_path: Path, big_few: float | None, verdict: str
):
    params, layer = with_sizes(), "finetune_layer_1"
    for fraction, base, more in ((FEW, 0.70, big_few), (MANY, 0.88, 0.05)):
        write_result(tmp_path, params, layer, fraction, [base, base + 0.01, base - 0.01])
        if more is not None:
            ours = [base + more, base + more + 0.012, base + more - 0.01]
            write_result(
                tmp_path, params, layer, fraction, ours, size="r10_1x_sk0", parameters=5_000_000
            )
    claim = of_claims(tmp_path, params)["bigger"]
    assert claim.verdict == verdict
    if big_few:
        assert "r10_1x_sk0 over r10_0.25x_sk0, fine-tuned" in claim.why


def test_one_size_leaves_bigger_nets_undecided_and_says_why(whole: Path):
    claim = of_claims(whole, quick_params())["bigger"]
    assert claim.verdict == "undecided"
    assert "one net size only" in claim.why


def test_every_claim_is_yes_no_or_undecided_even_before_anything_ran(tmp_path: Path):
    found = claims(Study(tmp_path, quick_params()))
    assert {claim.verdict for claim in found} == {"undecided"}
    assert all(claim.why for claim in found)
