"""A linear classifier on frozen features: logistic regression by full-batch L-BFGS.

Shapes: N images, D width of the features, K classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LinearProbe:
    """Weights of a linear classifier on features that are standardised first."""

    mean_D: Tensor
    scale_D: Tensor
    weight_KD: Tensor
    bias_K: Tensor
    l2: float

    def __call__(self, features_ND: Tensor) -> Tensor:
        """Logits (N, K)."""
        return F.linear((features_ND - self.mean_D) / self.scale_D, self.weight_KD, self.bias_K)


def regularisation_path(
    features_ND: Tensor,
    classes_N: Tensor,
    n_classes: int,
    l2_grid: Sequence[float],
    max_iterations: int,
) -> Iterator[LinearProbe]:
    """Probes for every l2, from the strongest to the weakest, each started from the one before.

    Minimises mean cross entropy + l2 / 2 * ||W||^2 (the bias is free), a convex problem, so the
    start changes the time and not the answer.
    """
    mean_D = features_ND.mean(dim=0)
    scale_D = features_ND.std(dim=0, correction=0).clamp(min=1e-6)
    inputs_ND = (features_ND - mean_D) / scale_D
    weight_KD = torch.zeros(n_classes, inputs_ND.shape[1])
    bias_K = torch.zeros(n_classes)
    for l2 in sorted(l2_grid, reverse=True):
        weight_KD, bias_K = _minimise(inputs_ND, classes_N, weight_KD, bias_K, l2, max_iterations)
        yield LinearProbe(mean_D, scale_D, weight_KD, bias_K, l2)


def _minimise(
    inputs_ND: Tensor,
    classes_N: Tensor,
    weight_KD: Tensor,
    bias_K: Tensor,
    l2: float,
    max_iterations: int,
) -> tuple[Tensor, Tensor]:
    weight_KD, bias_K = weight_KD.clone().requires_grad_(), bias_K.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight_KD, bias_K],
        max_iter=max_iterations,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        logits_NK = F.linear(inputs_ND, weight_KD, bias_K)
        loss = F.cross_entropy(logits_NK, classes_N) + l2 / 2 * weight_KD.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)  # type: ignore[arg-type]
    return weight_KD.detach(), bias_K.detach()
