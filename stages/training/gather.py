"""Rows of all processes, with gradient: a loss that forgets other ranks learns something else.

`torch.nn.parallel.DistributedDataParallel` averages gradients over processes. Each process
takes the mean over its own anchors, so the average of the W means is the mean over all.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stages.models.batch_norm import BatchNorm
from stages.training.runtime import Runtime


def gather_rows(rows: Tensor, runtime: Runtime) -> Tensor:
    """Rows of every process, in rank order; gradients flow back to the process they came from."""
    if runtime.world_size == 1:
        return rows
    return _GatherRows.apply(rows)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        share = len(grad) // dist.get_world_size()
        return grad[dist.get_rank() * share : (dist.get_rank() + 1) * share]


def mean_over_processes(value: Tensor, runtime: Runtime) -> Tensor:
    """The mean of a scalar that each process has its own of; for the log."""
    if runtime.world_size > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= runtime.world_size
    return value


def average_gradients(module: torch.nn.Module, runtime: Runtime) -> None:
    """Replace each gradient by its mean over all processes, in one message."""
    if runtime.world_size == 1:
        return
    _average([parameter.grad for parameter in module.parameters() if parameter.grad is not None])


def average_moving_statistics(module: torch.nn.Module, runtime: Runtime) -> None:
    """Replace batch norm's moving statistics by their mean over all processes, in one message.

    For batch norms that each process computes on its own images: moved alike from a common place,
    their mean is where one process with all of the images would have moved them.
    """
    if runtime.world_size == 1:
        return
    norms = [part for part in module.modules() if isinstance(part, BatchNorm)]
    _average([moving for norm in norms for moving in (norm.running_mean, norm.running_var)])


@torch.no_grad()
def _average(values: Sequence[Tensor]) -> None:
    flat = torch.cat([value.flatten() for value in values])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for value, mean in zip(values, flat.split([value.numel() for value in values]), strict=True):
        value.copy_(mean.view_as(value))
