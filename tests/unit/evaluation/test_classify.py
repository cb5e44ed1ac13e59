"""Scores of a small confusion that can be counted by hand."""

import pytest
import torch
import torch.nn.functional as F

from stages.evaluation.classify import scores


def test_scores_of_a_confusion_counted_by_hand():
    classes_N = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    predicted_N = torch.tensor([0, 0, 0, 1, 1, 1, 2, 0])
    scored = scores(F.one_hot(predicted_N, 3).float(), classes_N)
    assert scored["accuracy"] == pytest.approx(6 / 8)
    assert scored["per_class_accuracy"] == [0.75, 1.0, 0.5]
    assert scored["confusion"] == [[3, 1, 0], [0, 2, 0], [1, 0, 1]]
    # precision 3/4, 2/3, 1; recall 3/4, 1, 1/2
    assert scored["macro_f1"] == pytest.approx((0.75 + 0.8 + 2 / 3) / 3)


def test_a_confusion_matrix_too_large_to_read_is_left_out():
    classes_N = torch.arange(60)
    assert "confusion" not in scores(torch.eye(60), classes_N)
