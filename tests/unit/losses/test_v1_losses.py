"""NT-Logistic and margin triplet against Table 2 of SimCLR written as loops."""

import math

import pytest
import torch
from torch import Tensor

from stages.losses.margin_triplet import margin_triplet
from stages.losses.nt_logistic import nt_logistic


def anchors(z0: Tensor, z1: Tensor) -> list[tuple[float, list[float]]]:
    """For each anchor the cosine of its positive, and those of negatives of the other view."""
    found = []
    for anchor_view, other_view in ((z0, z1), (z1, z0)):
        for i, anchor in enumerate(anchor_view):
            cosines = [(anchor @ z / (anchor.norm() * z.norm())).item() for z in other_view]
            found.append((cosines[i], cosines[:i] + cosines[i + 1 :]))
    return found


def semi_hard(positive: float, negatives: list[float]) -> list[float]:
    further = [s for s in negatives if s < positive]
    return [max(further)] if further else []


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


@pytest.mark.parametrize("is_semi_hard", [False, True])
@pytest.mark.parametrize("margin", [0.0, 0.4, 1.6])
def test_margin_triplet_is_table_2(draw_views, margin, is_semi_hard):
    z0_BP, z1_BP = draw_views(6, 3)
    expected = 0.0
    for positive, negatives in anchors(z0_BP, z1_BP):
        if is_semi_hard:
            negatives = semi_hard(positive, negatives)
        hinges = [max(s - positive + margin, 0) for s in negatives]
        expected += sum(hinges) / max(len(hinges), 1) / 12
    loss = margin_triplet(z0_BP, z1_BP, margin, semi_hard=is_semi_hard)
    assert loss.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("is_semi_hard", [False, True])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_nt_logistic_is_table_2(draw_views, temperature, is_semi_hard):
    z0_BP, z1_BP = draw_views(6, 3)
    expected = 0.0
    for positive, negatives in anchors(z0_BP, z1_BP):
        if is_semi_hard:
            negatives = semi_hard(positive, negatives)
        on_negatives = [-log_sigmoid(-s / temperature) for s in negatives]
        expected += -log_sigmoid(positive / temperature) / 12
        expected += sum(on_negatives) / max(len(on_negatives), 1) / 12
    loss = nt_logistic(z0_BP, z1_BP, temperature, semi_hard=is_semi_hard)
    assert loss.item() == pytest.approx(expected, rel=1e-10)


def test_an_anchor_without_a_semi_hard_negative_has_none_made_up():
    z0_BP = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    z1_BP = torch.tensor([[0.0, 1.0], [0.6, 0.8]])
    cosines = [(0.0, 0.6), (0.8, 1.0), (0.0, 1.0), (0.8, 0.6)]  # positive, negative by hand
    assert anchors(z0_BP, z1_BP) == [(pytest.approx(p), [pytest.approx(n)]) for p, n in cosines]
    loss = margin_triplet(z0_BP, z1_BP, 0.5, semi_hard=True)  # only the last one has one
    assert loss.item() == pytest.approx((0.6 - 0.8 + 0.5) / 4)
    loss = nt_logistic(z0_BP, z1_BP, 1.0, semi_hard=True)
    on_positives = -(2 * log_sigmoid(0.0) + 2 * log_sigmoid(0.8)) / 4
    assert loss.item() == pytest.approx(on_positives - log_sigmoid(-0.6) / 4)


@pytest.mark.parametrize("is_semi_hard", [False, True])
def test_gradients_are_those_of_finite_differences(draw_views, is_semi_hard):
    views = draw_views(6, 3)
    for loss_function, constant in ((margin_triplet, 0.4), (nt_logistic, 0.5)):
        assert torch.autograd.gradcheck(
            lambda a, b, f=loss_function, c=constant: f(a, b, c, semi_hard=is_semi_hard), views
        )


def test_losses_of_a_collapsed_encoder_are_those_of_equal_cosines():
    same_BP = torch.ones(8, 4)
    assert margin_triplet(same_BP, same_BP, 0.4).item() == pytest.approx(0.4, rel=1e-6)
    assert margin_triplet(same_BP, same_BP, 0.4, semi_hard=True).item() == 0
    expected = -log_sigmoid(2.0) - log_sigmoid(-2.0)
    assert nt_logistic(same_BP, same_BP, 0.5).item() == pytest.approx(expected, rel=1e-6)
