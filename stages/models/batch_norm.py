"""Batch normalisation as the official code has it, over one process or over all of them.

It differs from torch's in one number: the moving variance follows the BIASED batch variance
(torch's follows the unbiased one), which matters where a batch is small.

Shapes: B images, C channels, H W pixels, N values per channel (B, or B times H times W).
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-5
MOMENTUM = 0.1  # torch's meaning: the share of the new batch; batch_norm_decay 0.9 officially


class BatchNorm(nn.Module):
    """Batch norm of (B, C) or (B, C, H, W); eps 1e-5, moving statistics with momentum 0.1.

    Attributes:
        process_group: the processes whose batches are normalised as one; None: this one alone.
            Set it with `use_global_batch_norm`.
        rows_together: rows of a batch that are normalised as one, in their order; None: all of
            them. Set it with `normalise_rows_together`.
        n_passes: training passes that make up a step; see `moved_once_in_passes`.
        updates_statistics: whether training moves the moving statistics; see
            `frozen_moving_statistics`.
        momentum: share of the new batch in the moving statistics; 0.1, unless a short training
            sets it (`use_momentum`).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, n_channels: int, *, center: bool = True, zero_gamma: bool = False) -> None:
        """Make a batch norm.

        Args:
            n_channels: C.
            center: whether it has a beta (`bias`); the last layer of g has none.
            zero_gamma: start gamma (`weight`) at 0, so that a residual branch starts as nothing.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.full((n_channels,), 0.0 if zero_gamma else 1.0))
        self.bias = nn.Parameter(torch.zeros(n_channels)) if center else None
        self.register_buffer("running_mean", torch.zeros(n_channels))
        self.register_buffer("running_var", torch.ones(n_channels))
        self.process_group: dist.ProcessGroup | None = None
        self.rows_together: int | None = None
        self.n_passes = 1
        self.updates_statistics = True
        self.momentum = MOMENTUM

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by the batch in training, by the moving statistics otherwise.

        A channel with a single value (N = 1) is allowed in training, as it is officially: its
        variance is 0 and its output beta.
        """
        if not self.training:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=EPSILON
            )
        rows = self.rows_together
        if rows is None or rows == len(x):
            y, mean_C, variance_C = self._normalise(x)
        else:
            parts = [self._normalise(part) for part in x.split(rows)]
            y = torch.cat([part_y for part_y, _, _ in parts])
            mean_C = torch.stack([mean_C for _, mean_C, _ in parts]).mean(dim=0)
            variance_C = torch.stack([variance_C for _, _, variance_C in parts]).mean(dim=0)
        if self.updates_statistics:
            self._move(mean_C, variance_C)
        return y

    @torch.no_grad()
    def _move(self, mean_C: Tensor, variance_C: Tensor) -> None:
        if self.n_passes == 1:
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_(variance_C, self.momentum)
        else:
            self.running_mean.add_(mean_C, alpha=self.momentum / self.n_passes)
            self.running_var.add_(variance_C, alpha=self.momentum / self.n_passes)

    def _normalise(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All rows as one, and the mean and biased variance that they had."""
        group = self.process_group
        if group is not None and dist.get_world_size(group) > 1:
            return _GlobalNorm.apply(x, self.weight, self.bias, group)
        if x.numel() == len(self.weight):
            y = F.batch_norm(x - x, *self._mean_0_variance_1(), self.weight, self.bias, eps=EPSILON)
            mean_C = x.detach().flatten().float()
            return y, mean_C, torch.zeros_like(mean_C)
        return self._normalise_by_batch(x)

    def _normalise_by_batch(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # With momentum 1 the fused kernel leaves the batch's own statistics in the buffers that
        # it is given, so they are not computed twice. Its variance is the unbiased one.
        mean_C, variance_C = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        y = F.batch_norm(
            x,
            mean_C,
            variance_C,
            self.weight,
            self.bias,
            training=True,
            momentum=1.0,
            eps=EPSILON,
        )
        n = x.numel() // len(self.weight)
        return y, mean_C, variance_C * ((n - 1) / n)

    def _mean_0_variance_1(self) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, center={self.bias is not None}"


def use_global_batch_norm(module: nn.Module, process_group: dist.ProcessGroup | None) -> None:
    """Let every batch norm in `module` take its statistics over all processes of a group.

    Values and gradients are those of one process with the whole batch, whatever each process's
    share of it, where the loss is the sum over processes. Runs on any backend, gloo included.

    Args:
        module: changed in place.
        process_group: `torch.distributed.group.WORLD` for all; None: each process alone again.
    """
    for norm in _batch_norms(module):
        norm.process_group = process_group


def normalise_rows_together(module: nn.Module, rows: int | None) -> None:
    """Let every batch norm in `module` take its statistics over so many rows at a time.

    A batch must hold a multiple of them. The moving statistics follow the mean over these parts,
    so a batch counts the same in however many parts it is normalised.

    Args:
        module: changed in place.
        rows: that are normalised as one, those after them as the next; None: the whole batch.
    """
    for norm in _batch_norms(module):
        norm.rows_together = rows


def use_momentum(module: nn.Module, momentum: float) -> None:
    """Let the moving statistics of `module` take this share of every new batch."""
    for norm in _batch_norms(module):
        norm.momentum = momentum


@contextmanager
def moved_once_in_passes(module: nn.Module, n_passes: int) -> Generator[None, None, None]:
    """Within it, `n_passes` equal training passes move the moving statistics as one would.

    They end where a single pass over all rows would have left them: (1 - momentum) of where they
    stood, and momentum of the mean over the passes.
    """
    norms = [norm for norm in _batch_norms(module) if norm.training and norm.updates_statistics]
    if n_passes == 1 or not norms:
        yield
        return
    moving = [part for norm in norms for part in (norm.running_mean, norm.running_var)]
    with torch.no_grad():
        kept = [1 - norm.momentum for norm in norms for _ in range(2)]
        torch._foreach_mul_(moving, kept)
    for norm in norms:
        norm.n_passes = n_passes
    try:
        yield
    finally:
        for norm in norms:
            norm.n_passes = 1


@contextmanager
def frozen_moving_statistics(module: nn.Module) -> Generator[None, None, None]:
    """Within it, training passes leave the moving statistics of `module` where they are."""
    before = [(norm, norm.updates_statistics) for norm in _batch_norms(module)]
    for norm, _ in before:
        norm.updates_statistics = False
    try:
        yield
    finally:
        for norm, updates in before:
            norm.updates_statistics = updates


def _batch_norms(module: nn.Module) -> list[BatchNorm]:
    return [part for part in module.modules() if isinstance(part, BatchNorm)]


class _GlobalNorm(torch.autograd.Function):
    """Normalise by the statistics of all processes; two small messages, one each way."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_C: Tensor, bias_C: Tensor | None, group: dist.ProcessGroup
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean_C, variance_C, n_global = _global_statistics(x, weight_C, group)
        y = F.batch_norm(x, mean_C, variance_C, weight_C, bias_C, eps=EPSILON)
        ctx.save_for_backward(x, weight_C, mean_C, variance_C)
        ctx.group, ctx.n_global, ctx.has_bias = group, n_global, bias_C is not None
        ctx.mark_non_differentiable(mean_C, variance_C)
        return y, mean_C, variance_C

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor | None, None]:
        grad_y = grads[0]
        x, weight_C, mean_C, variance_C = ctx.saved_tensors
        n_channels = len(weight_C)
        shape = (1, n_channels) + (1,) * (x.ndim - 2)
        # As if mean and variance were constants; that part is local, and fused.
        grad_x, grad_weight_C, grad_bias_C = torch.ops.aten.native_batch_norm_backward(
            grad_y, x, weight_C, mean_C, variance_C, None, None, False, EPSILON, [True] * 3
        )
        # They are not: every value of the global batch moves them.
        sums_2C = torch.cat([grad_weight_C, grad_bias_C]).to(mean_C.dtype)
        dist.all_reduce(sums_2C, group=ctx.group)
        along_x_C, along_1_C = (sums_2C / ctx.n_global).chunk(2)
        inverse_C = torch.rsqrt(variance_C + EPSILON)
        slope_C = weight_C * inverse_C * inverse_C * along_x_C
        offset_C = weight_C * inverse_C * along_1_C - slope_C * mean_C
        grad_x = grad_x - (x * slope_C.view(shape) + offset_C.view(shape)).to(grad_x.dtype)
        return grad_x, grad_weight_C, grad_bias_C if ctx.has_bias else None, None


def _global_statistics(
    x: Tensor, weight_C: Tensor, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance per channel over all processes, and N over all of them.

    Each process sends its own mean and variance rather than sums of squares, which would lose
    the variance of a channel far from zero.
    """
    n_channels = x.shape[1]
    unused_mean_C, unused_variance_C = torch.zeros_like(weight_C), torch.zeros_like(weight_C)
    mean_C, variance_C = torch.batch_norm_update_stats(x, unused_mean_C, unused_variance_C, 1.0)
    n = torch.full((1,), x.numel() // n_channels, device=x.device, dtype=mean_C.dtype)
    mine = torch.cat([n, mean_C, variance_C])
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, mine, group=group)
    n_W1, means_WC, variances_WC = torch.stack(parts).split([1, n_channels, n_channels], dim=1)
    n_global = n_W1.sum()
    mean_C = (n_W1 * means_WC).sum(dim=0) / n_global
    variance_C = (n_W1 * (variances_WC + (means_WC - mean_C).square())).sum(dim=0) / n_global
    return mean_C, variance_C, n_global
