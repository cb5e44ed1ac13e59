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


def test_balanced_accuracy_is_the_mean_over_classes_and_not_over_images():
    classes_N = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    predicted_N = torch.tensor([0, 0, 0, 1, 1, 1, 2, 0])
    scored = scores(F.one_hot(predicted_N, 3).float(), classes_N)
    assert scored["balanced_accuracy"] == pytest.approx((0.75 + 1 + 0.5) / 3)


def test_top_5_counts_the_fifth_and_not_the_sixth():
    logits_NK = torch.arange(8.0).flip(0).expand(4, 8)  # class 0 is likeliest
    scored = scores(logits_NK, torch.tensor([0, 4, 5, 7]))
    assert (scored["accuracy"], scored["top5_accuracy"]) == (0.25, 0.5)
    assert "top5_accuracy" not in scores(torch.eye(3), torch.arange(3))


def test_the_temperature_comes_from_validation_and_its_effect_is_told_on_test():
    generator = torch.Generator().manual_seed(0)
    honest_NK = torch.randn(8000, 4, generator=generator)
    classes_N = torch.multinomial(honest_NK.softmax(dim=1), 1, generator=generator)[:, 0]
    logits_NK = 4 * honest_NK
    validation, test = (logits_NK[:4000], classes_N[:4000]), (logits_NK[4000:], classes_N[4000:])
    scored = scores(*test, validation)
    assert scored["temperature"] == pytest.approx(4, rel=0.1)
    assert scored["calibration_error_scaled"] < 0.03 < 0.2 < scored["calibration_error"]
    again = scores(logits_NK[4000:], classes_N[4000:].flip(0), validation)
    assert again["temperature"] == scored["temperature"]  # no test label has a say
