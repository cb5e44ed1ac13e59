"""The test between two models, against all swaps gone through one by one and against McNemar."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest

from stages.evaluation.permutation_test import per_image_scores, permutation_p


@pytest.mark.parametrize(("ours", "theirs"), [(9, 2), (30, 30), (1, 0), (400, 330)])
def test_of_top_1_it_is_mcnemars_exact_test(ours: int, theirs: int):
    differences_N = np.array([1.0] * ours + [-1.0] * theirs + [0.0] * 50) / 1000
    expected = binomtest(ours, ours + theirs).pvalue
    assert permutation_p(differences_N) == pytest.approx(expected, rel=1e-9)


def test_of_images_that_count_differently_it_is_the_share_of_all_swaps():
    differences_N = np.array([0.3, 0.3, 0.3, -0.1, 0.1, 0.1, 0.1, -0.3, 0.2, 0.2, 0.2, 0.2])
    seen = abs(differences_N.sum())
    sums = [abs(np.dot(signs, differences_N)) for signs in product((1, -1), repeat=12)]
    exact = np.mean(np.array(sums) >= seen - 1e-9)
    assert permutation_p(differences_N) == pytest.approx(exact, abs=0.005)


def test_two_models_that_answer_alike_are_not_different():
    assert permutation_p(np.zeros(20)) == 1.0


def test_a_models_scores_sum_to_accuracy_or_to_its_mean_over_classes():
    right_N = np.array([True, True, False, True, False])
    classes_N = np.array([0, 0, 0, 7, 7])
    plain = per_image_scores(right_N, classes_N, balanced=False)
    assert plain.sum() == pytest.approx(3 / 5)
    balanced = per_image_scores(right_N, classes_N, balanced=True)
    assert balanced.sum() == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_chance_is_called_a_difference_as_often_as_the_level_says():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        classes_N = rng.integers(0, 5, 200)
        parts = [
            per_image_scores(rng.random(200) < 0.7, classes_N, balanced=True) for _ in range(2)
        ]
        found.append(permutation_p(parts[0] - parts[1], samples=2000))
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.035)
