"""Logistic regression by full-batch L-BFGS, along a path of L2 strengths.

Minimises cross entropy + l2 / 2 * ||W||^2, the bias free: a convex problem with one answer, so that
what follows changes the time and not the result. The path goes from the strongest to the weakest
l2. Each starts on the line through the last two answers; curvature learnt at one l2 is carried to
the next, where it differs by a known multiple of the steps; steps are preconditioned by the
diagonal of a bound of the Hessian, which is close to it along principal axes.

Shapes: N images, C a chunk of them, R axes, K classes, E = R + 1: an axis more for the bias, X rows
of targets.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.evaluation.principal_axes import CHUNK, PrincipalAxes

_PAIRS = 10  # steps that L-BFGS remembers
_SUFFICIENT = 1e-4  # share of the promised decrease that a step must bring (Armijo)
_MOST_HALVINGS = 20
_ROUNDING = 1e-7  # of the objective: a smaller rise is float32's


@dataclass(frozen=True)
class Point:
    """The loss at some weights.

    Attributes:
        theta_KE: weights along the axes, and the bias in the last column.
        loss: mean over the images, in nats.
        gradient_KE: of the loss, without the penalty.
        spread_K: mean of p (1 - p) over the images, what the Hessian is in proportion to.
    """

    theta_KE: Tensor
    loss: float
    gradient_KE: Tensor
    spread_K: Tensor

    def objective(self, l2: float) -> float:
        return self.loss + l2 / 2 * float(self.theta_KE[:, :-1].square().sum())

    def slope(self, l2: float) -> Tensor:
        """Gradient (K, E) of the objective."""
        gradient_KE = self.gradient_KE.clone()
        gradient_KE[:, :-1] += l2 * self.theta_KE[:, :-1]
        return gradient_KE


class LinearLoss:
    """A loss of linear logits on rotated features, and its gradient.

    Works through the images in chunks: beside the features it takes memory for one chunk. Classes
    lie along the rows, for a softmax over few of them is many times as fast across rows.
    """

    def __init__(
        self, axes: PrincipalAxes, features_ND: Tensor, targets_XN: Tensor, n_classes: int
    ):
        self.axes = axes
        self.n_classes = n_classes
        self._inputs_NR = axes.rotate(features_ND)
        self._targets_XN = targets_XN.to(self._inputs_NR.device)

    def judge(self, logits_KC: Tensor, targets_XC: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the loss over a chunk, and p (K, C), which may lie where the logits did."""
        raise NotImplementedError

    def subtract_targets(self, p_KC: Tensor, targets_XC: Tensor) -> None:
        """Turn p into p - y, the gradient by the logits, in place."""
        raise NotImplementedError

    def at(self, theta_KE: Tensor) -> Point:
        """Two matrix products for each chunk: logits, and the gradient."""
        weight_KR, bias_K1 = theta_KE[:, :-1], theta_KE[:, -1:]
        gradient_KE = torch.zeros_like(theta_KE)
        loss = torch.zeros((), dtype=torch.float64, device=theta_KE.device)
        spread_K = theta_KE.new_zeros(self.n_classes)
        for inputs_CR, targets_XC in zip(
            self._inputs_NR.split(CHUNK), self._targets_XN.split(CHUNK, dim=1), strict=True
        ):
            logits_KC = torch.addmm(bias_K1, weight_KR, inputs_CR.T)
            chunk_loss, error_KC = self.judge(logits_KC, targets_XC)
            loss += chunk_loss
            spread_K += (error_KC - error_KC.square()).sum(dim=1)
            self.subtract_targets(error_KC, targets_XC)
            gradient_KE[:, :-1].addmm_(error_KC, inputs_CR)
            gradient_KE[:, -1] += error_KC.sum(dim=1)
        n_images = len(self._inputs_NR)
        return Point(theta_KE, float(loss) / n_images, gradient_KE / n_images, spread_K / n_images)

    def steepest(self, slope_KE: Tensor) -> float:
        """Largest absolute entry of a gradient, by feature and not by axis, as others count it."""
        by_feature_KD = slope_KE[:, :-1] @ self.axes.axes_DR.T
        return max(float(by_feature_KD.abs().max()), float(slope_KE[:, -1].abs().max()))

    def has_converged(self, slope_KE: Tensor, tolerance: float) -> bool:
        """Whether no entry of the gradient exceeds the tolerance."""
        length = float(slope_KE.norm())  # by feature as long as by axis: bounds from both sides
        width = self.axes.axes_DR.shape[0] + 1
        if length <= tolerance:
            return True
        within_reach = length <= tolerance * (self.n_classes * width) ** 0.5
        return within_reach and self.steepest(slope_KE) <= tolerance


class CrossEntropy(LinearLoss):
    """Mean softmax cross entropy; targets (1, N) are class numbers."""

    def judge(self, logits_KC: Tensor, targets_XC: Tensor) -> tuple[Tensor, Tensor]:
        log_p_KC = logits_KC.log_softmax(dim=0)
        return -log_p_KC.gather(0, targets_XC).sum(dtype=torch.float64), log_p_KC.exp_()

    def subtract_targets(self, p_KC: Tensor, targets_XC: Tensor) -> None:
        p_KC.scatter_add_(0, targets_XC, p_KC.new_full(targets_XC.shape, -1.0))


class BinaryCrossEntropies(LinearLoss):
    """Sum over classes of mean logistic losses, each alone; targets (K, N) are zeros and ones."""

    def judge(self, logits_KC: Tensor, targets_XC: Tensor) -> tuple[Tensor, Tensor]:
        losses_KC = F.binary_cross_entropy_with_logits(logits_KC, targets_XC, reduction="none")
        return losses_KC.sum(dtype=torch.float64), logits_KC.sigmoid_()

    def subtract_targets(self, p_KC: Tensor, targets_XC: Tensor) -> None:
        p_KC -= targets_XC


@dataclass(frozen=True)
class Answer:
    """The minimum at one l2, or where float32 or the iterations ended."""

    l2: float
    point: Point
    iterations: int
    converged: bool


def answers_along(
    loss: LinearLoss, l2_grid: Sequence[float], tolerance: float, max_iterations: int
) -> Iterator[Answer]:
    """The minimum for every l2, from the strongest to the weakest.

    Args:
        loss: what is minimised, beside the penalty.
        l2_grid: strengths of the penalty, in any order.
        tolerance: no entry of the gradient is larger at the minimum.
        max_iterations: for each l2.
    """
    width = loss.axes.axes_DR.shape[1] + 1
    here = loss.at(torch.zeros(loss.n_classes, width, device=loss.axes.axes_DR.device))
    memory = _Memory(loss.axes.variance_R)
    descending = sorted(l2_grid, reverse=True)
    before: Tensor | None = None
    for last_l2, l2 in pairwise([descending[0], *descending]):
        memory.carry_to(l2 - last_l2)
        start = here
        if before is not None and not loss.has_converged(here.slope(l2), tolerance):
            ahead = loss.at(2 * here.theta_KE - before)
            start = ahead if ahead.objective(l2) < here.objective(l2) else here
        before = here.theta_KE
        answer = _minimise(loss, start, l2, memory, tolerance, max_iterations)
        here = answer.point
        yield answer


def _minimise(
    loss: LinearLoss,
    here: Point,
    l2: float,
    memory: "_Memory",
    tolerance: float,
    max_iterations: int,
) -> Answer:
    slope_KE = here.slope(l2)
    for iteration in range(max_iterations):
        if loss.has_converged(slope_KE, tolerance):
            return Answer(l2, here, iteration, converged=True)
        direction_KE = memory.direction(slope_KE, here.spread_K, l2)
        found = _search(loss, here, l2, direction_KE, float(_dot(slope_KE, direction_KE)))
        if found is None:
            return Answer(l2, here, iteration, converged=False)
        found_slope_KE = found.slope(l2)
        memory.learn(found.theta_KE - here.theta_KE, found_slope_KE - slope_KE)
        here, slope_KE = found, found_slope_KE
    return Answer(l2, here, max_iterations, loss.has_converged(slope_KE, tolerance))


def _search(
    loss: LinearLoss, here: Point, l2: float, direction_KE: Tensor, descent: float
) -> Point | None:
    """The first step along a direction that lowers the objective enough; None: none does."""
    begun = here.objective(l2)
    length = 1.0
    for _ in range(_MOST_HALVINGS):
        there = loss.at(here.theta_KE + length * direction_KE)
        rise = there.objective(l2) - begun
        if rise <= _SUFFICIENT * length * descent + _ROUNDING * abs(begun):
            return there
        lowest = -descent * length**2 / (2 * (rise - descent * length))  # of the parabola
        length = min(max(lowest, 0.1 * length), 0.5 * length)
    return None


class _Memory:
    """What L-BFGS knows of the Hessian: the last steps, and how the gradient changed by each."""

    def __init__(self, variance_R: Tensor):
        self._variance_E = torch.cat([variance_R, variance_R.new_ones(1)])
        self._pairs: list[_Pair] = []

    def carry_to(self, stronger_by: float) -> None:
        """Change what was learnt to what another l2 would have taught: its Hessian differs so."""
        for pair in self._pairs:
            pair.change_KE[:, :-1] += stronger_by * pair.step_KE[:, :-1]
        carried = [_Pair.of(pair.step_KE, pair.change_KE) for pair in self._pairs]
        self._pairs = [pair for pair in carried if pair.tells]  # 1e5 less 1e5 may leave rounding

    def learn(self, step_KE: Tensor, change_KE: Tensor) -> None:
        pair = _Pair.of(step_KE, change_KE)
        if pair.tells:
            self._pairs = [*self._pairs, pair][-_PAIRS:]

    def direction(self, slope_KE: Tensor, spread_K: Tensor, l2: float) -> Tensor:
        """Downhill (Nocedal & Wright 2006, algorithm 7.4), from a diagonal guess of the Hessian."""
        guess_KE = spread_K[:, None] * self._variance_E
        guess_KE[:, :-1] += l2
        guess_KE.clamp_(min=1e-12)
        left_KE, shares = slope_KE.clone(), []
        for pair in reversed(self._pairs):
            shares.append(_dot(pair.step_KE, left_KE) / pair.curvature)
            left_KE.addcmul_(pair.change_KE, shares[-1], value=-1)
        left_KE /= guess_KE
        if self._pairs:
            last = self._pairs[-1]
            left_KE *= last.curvature / _dot(last.change_KE, last.change_KE / guess_KE)
        for pair, share in zip(self._pairs, reversed(shares), strict=True):
            left_KE.addcmul_(pair.step_KE, share - _dot(pair.change_KE, left_KE) / pair.curvature)
        return left_KE.neg_()


@dataclass(frozen=True)
class _Pair:
    """A step, the change of the gradient by it, and their inner product."""

    step_KE: Tensor
    change_KE: Tensor
    curvature: Tensor

    @classmethod
    def of(cls, step_KE: Tensor, change_KE: Tensor) -> "_Pair":
        return cls(step_KE, change_KE, _dot(step_KE, change_KE))

    @property
    def tells(self) -> bool:
        """Whether the curvature is more than rounding; a convex objective has no negative one."""
        return float(self.curvature) > 1e-10 * float(self.change_KE.square().sum())


def _dot(a_KE: Tensor, b_KE: Tensor) -> Tensor:
    return torch.dot(a_KE.flatten(), b_KE.flatten())
