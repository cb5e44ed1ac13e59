"""The measure of VOC 2007, against cases worked out on paper."""

import math

import pytest
import torch

from stages.evaluation.average_precision import eleven_point_average_precision, eleven_point_map


def test_eleven_points_of_a_ranking_read_off_by_hand():
    # Ranked: right, wrong, right, wrong, wrong, right. Precisions where right: 1, 2/3, 3/6.
    # Recalls there: 1/3, 2/3, 1. Best precision from recall 0, .1, .2, .3: 1; .4, .5, .6: 2/3;
    # .7, .8, .9, 1: 1/2.
    scores_N = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    positive_N = torch.tensor([True, False, True, False, False, True])
    expected = (4 * 1 + 3 * (2 / 3) + 4 * 0.5) / 11
    assert eleven_point_average_precision(scores_N, positive_N) == pytest.approx(expected)
    shuffled = torch.tensor([3, 0, 5, 1, 4, 2])
    found = eleven_point_average_precision(scores_N[shuffled], positive_N[shuffled])
    assert found == pytest.approx(expected)


def test_a_recall_of_three_tenths_is_reached_by_three_of_ten():
    # Ten right ones first to third and then after a long run of wrong ones.
    positive_N = torch.tensor([True] * 3 + [False] * 20 + [True] * 7)
    scores_N = -torch.arange(30.0)
    expected = (4 * 1 + 7 * (10 / 30)) / 11
    assert eleven_point_average_precision(scores_N, positive_N) == pytest.approx(expected)


def test_difficult_images_are_neither_right_nor_wrong():
    scores_N = torch.tensor([0.9, 0.8, 0.7])
    positive_N = torch.tensor([False, True, True])
    counted_N = torch.tensor([False, True, True])
    assert eleven_point_average_precision(scores_N, positive_N) < 1
    assert eleven_point_average_precision(scores_N, positive_N, counted_N) == 1


def test_a_perfect_ranking_has_1_and_a_class_without_images_has_none():
    scores_N = torch.tensor([2.0, 1.0, 0.0])
    assert eleven_point_average_precision(scores_N, torch.tensor([True, True, False])) == 1
    assert math.isnan(eleven_point_average_precision(scores_N, torch.zeros(3, dtype=torch.bool)))


def test_the_mean_leaves_out_a_class_without_images():
    logits_NK = torch.tensor([[2.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 2.0, 2.0]])
    positive_NK = torch.tensor([[True, False, False], [False, True, False], [False, False, False]])
    found = eleven_point_map(logits_NK, positive_NK)
    assert found["per_class_average_precision"] == [1.0, 0.5, None]
    assert found["mean_average_precision"] == 0.75
