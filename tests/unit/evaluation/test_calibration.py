"""Calibration, against gaps counted by hand and a temperature known beforehand."""

import pytest
import torch

from stages.evaluation.calibration import COLDEST, best_temperature
from stages.evaluation.classify import calibration_error


def sure(confidence: float) -> list[float]:
    """Logits of two classes, the first of which is this likely."""
    return torch.tensor([confidence, 1 - confidence]).log().tolist()


def test_the_expected_calibration_error_of_two_bins_is_their_gaps_by_their_shares():
    # four images at 90%, three of them right; two at 58%, none right
    logits_NK = torch.tensor([sure(0.9)] * 4 + [sure(0.58)] * 2)
    classes_N = torch.tensor([0, 0, 0, 1, 1, 1])
    expected = 4 / 6 * abs(0.9 - 0.75) + 2 / 6 * abs(0.58 - 0.0)
    assert calibration_error(logits_NK, classes_N) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("true_temperature", [0.25, 1.0, 3.0])
def test_the_temperature_that_logits_were_spoilt_by_is_found(true_temperature: float):
    generator = torch.Generator().manual_seed(0)
    honest_NK = 2 * torch.randn(20_000, 5, generator=generator)
    classes_N = torch.multinomial(honest_NK.softmax(dim=1), 1, generator=generator)[:, 0]
    spoilt_NK = honest_NK * true_temperature
    found = best_temperature(spoilt_NK, classes_N)
    assert found == pytest.approx(true_temperature, rel=0.03)
    before = calibration_error(spoilt_NK, classes_N)
    after = calibration_error(spoilt_NK / found, classes_N)
    assert after < 0.01
    assert true_temperature == 1 or before > 5 * after


def test_a_classifier_that_is_always_right_is_made_as_sure_as_can_be():
    assert best_temperature(torch.eye(4), torch.arange(4)) == pytest.approx(COLDEST, rel=1e-6)
