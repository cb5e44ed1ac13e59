"""A linear classifier on frozen features: logistic regression, its L2 strength chosen by somebody.

Shapes: N images, D width of the features, K classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.evaluation.logistic_regression import (
    Answer,
    BinaryCrossEntropies,
    CrossEntropy,
    answers_along,
)
from stages.evaluation.principal_axes import PrincipalAxes

TOLERANCE = 1e-6  # largest entry of the gradient at the minimum
CPU = torch.device("cpu")


@dataclass(frozen=True)
class LinearProbe:
    """Weights of a linear classifier on features that are standardised first.

    Attributes:
        mean_D: of the features it learnt from.
        scale_D: their standard deviation, at least 1e-6.
        weight_KD: of the standardised features.
        bias_K: of the classes.
        l2: strength of the penalty, per image: of mean cross entropy + l2 / 2 * ||W||^2.
        converged: whether the gradient fell below TOLERANCE.
    """

    mean_D: Tensor
    scale_D: Tensor
    weight_KD: Tensor
    bias_K: Tensor
    l2: float
    converged: bool = True

    def __call__(self, features_ND: Tensor) -> Tensor:
        """Logits (N, K)."""
        return F.linear((features_ND - self.mean_D) / self.scale_D, self.weight_KD, self.bias_K)


def regularisation_path(
    features_ND: Tensor,
    targets: Tensor,
    n_classes: int,
    l2_grid: Sequence[float],
    max_iterations: int,
    tolerance: float = TOLERANCE,
    device: torch.device = CPU,
) -> Iterator[LinearProbe]:
    """Probes for every l2, from the strongest to the weakest.

    Args:
        features_ND: float32 on any device; one copy of them, rotated, lies on `device` meanwhile.
        targets: (N,) class numbers, or (N, K) zeros and ones where an image has several classes;
            then every class is a regression of its own.
        n_classes: K.
        l2_grid: in any order.
        max_iterations: of L-BFGS, for each l2.
        tolerance: largest entry of the gradient at the minimum.
        device: where the work is done; the probes come back to the CPU.
    """
    axes = PrincipalAxes.of(features_ND, device)
    if targets.dim() == 1:
        loss = CrossEntropy(axes, features_ND, targets[None], n_classes)
    else:
        loss = BinaryCrossEntropies(axes, features_ND, targets.T.float().contiguous(), n_classes)
    for answer in answers_along(loss, l2_grid, tolerance, max_iterations):
        bias_K = answer.point.theta_KE[:, -1]
        if targets.dim() == 1:  # a softmax does not see what is added to all: the answer with sum 0
            bias_K = bias_K - bias_K.mean()
        yield _probe(axes, answer, bias_K)


def _probe(axes: PrincipalAxes, answer: Answer, bias_K: Tensor) -> LinearProbe:
    weight_KD = answer.point.theta_KE[:, :-1] @ axes.axes_DR.T
    tensors = (axes.mean_D, axes.scale_D, weight_KD, bias_K)
    return LinearProbe(*(tensor.cpu() for tensor in tensors), answer.l2, answer.converged)


def refitted(
    chosen_l2: float,
    n_chosen_on: int,
    features_ND: Tensor,
    targets: Tensor,
    n_classes: int,
    max_iterations: int,
    device: torch.device = CPU,
) -> LinearProbe:
    """The probe of more images, at the penalty that was chosen with fewer (SimCLR, B.8).

    The whole penalty stays what it was while the images become more, as in an objective that sums
    over them (C of scikit-learn): per image, as here, it is weaker by their ratio.

    Args:
        chosen_l2: per image, chosen with `n_chosen_on` of them.
        n_chosen_on: how many the probes that were compared had learnt from.
        features_ND: of all images to learn from now.
        targets: of all.
        n_classes: K.
        max_iterations: of L-BFGS.
        device: where the work is done.
    """
    l2 = chosen_l2 * n_chosen_on / len(features_ND)
    (probe,) = regularisation_path(
        features_ND, targets, n_classes, [l2], max_iterations, device=device
    )
    return probe
