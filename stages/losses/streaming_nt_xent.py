"""NT-Xent with memory linear in the batch: the value and gradient of `nt_xent`, no matrix kept.

Exponentiated logits are computed a tile at a time, summed, and computed again in the backward
pass. Where all views are both anchors and candidates, the logits of (i, j) and (j, i) are one
number, so half of the tiles do for all.

Shapes: B images, A anchors (both views: 2B), R anchors asked for, P width of z, Q queue,
C candidates, T rows or columns of a tile.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from stages.losses.nt_xent import check_shapes, image_range, unit_or_as_is

# Logits of unit vectors lie within 1 / temperature. Up to 60, neither exp(logit) nor its sum over
# a million candidates leaves float32, and no maximum has to be looked for first.
SAFE_TEMPERATURE = 1 / 60

# A tile's rows and columns at most: few tiles for their memory (16 MiB with their weights),
# since threads wait for each other several times a tile. No more rows than columns (mirror images).
CPU_TILE = (1024, 2048)
GPU_TILE = (4096, 4096)

SMALLEST_MAXIMUM = -1e30  # stands for "no candidate yet"; -inf would give inf - inf


def streaming_nt_xent(
    z0_BP: Tensor,
    z1_BP: Tensor,
    temperature: float,
    *,
    current_keys_AP: Tensor | None = None,
    queue_QP: Tensor | None = None,
    rows: slice | None = None,
    normalize: bool = True,
) -> Tensor:
    """`nt_xent` for large batches, with the same arguments, value and gradient.

    Extra memory is a few copies of z and two tiles. Equal to float32 rounding; can't be
    differentiated twice. Half of the work is saved where all images are anchors, z is normalised
    and the temperature is at least 1/60.
    """
    check_shapes(z0_BP, z1_BP, current_keys_AP, queue_QP)
    n_images = len(z0_BP)
    start, stop = image_range(rows, n_images)
    with torch.autocast(z0_BP.device.type, enabled=False):
        # Both factors of every product carry half of the temperature.
        z_AP = unit_or_as_is(torch.cat([z0_BP, z1_BP]), normalize) * temperature**-0.5
        view0_BP, view1_BP = z_AP[start:stop], z_AP[n_images + start : n_images + stop]
        # An anchor's own image stands on these two diagonals, whichever its view.
        own_image = (start, start + n_images)
        is_symmetric = stop - start == n_images and normalize and temperature >= SAFE_TEMPERATURE
        negatives_R = (
            _AmongThemselves.apply(z_AP)
            if is_symmetric
            else _against(view0_BP, view1_BP, z_AP, own_image)
        )
        for candidates_CP, excluded in [(current_keys_AP, own_image), (queue_QP, ())]:
            if candidates_CP is not None and len(candidates_CP):
                scaled_CP = candidates_CP.detach().to(z_AP) * temperature**-0.5
                further_R = _against(view0_BP, view1_BP, scaled_CP, excluded)
                negatives_R = torch.logaddexp(negatives_R, further_R)
        positive_R = (view0_BP * view1_BP).sum(dim=1).repeat(2)
        # -log(e^p / (e^p + sum of e^n)), accurate where the loss is nearly 0, too
        return -F.logsigmoid(positive_R - negatives_R).mean()


class _AmongThemselves(torch.autograd.Function):
    """Log-sum-exp of each view's products with the views of all other images; small logits only."""

    @staticmethod
    def forward(ctx: Any, z_AP: Tensor) -> Tensor:
        sums_A = z_AP.new_zeros(len(z_AP))
        for rows, columns, tile_TT in _tiles(z_AP, z_AP, upper=True):
            tile_TT.exp_()
            _fill_diagonals(tile_TT, rows, columns, _own_image(z_AP), 0.0)
            sums_A[rows] += tile_TT.sum(dim=1)
            mirrored = slice(max(rows.stop, columns.start), columns.stop)
            sums_A[mirrored] += tile_TT[:, mirrored.start - columns.start :].sum(dim=0)
        ctx.save_for_backward(z_AP, sums_A)
        return sums_A.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_A: Tensor) -> Tensor:
        z_AP, sums_A = ctx.saved_tensors
        weight_A = grad_A / sums_A
        grad_AP = torch.zeros_like(z_AP)
        for rows, columns, tile_TT in _tiles(z_AP, z_AP, upper=True):
            # Logit (i, j) is in the sums of i and of j.
            tile_TT.exp_().mul_(weight_A[rows, None] + weight_A[columns])
            _fill_diagonals(tile_TT, rows, columns, _own_image(z_AP), 0.0)
            grad_AP[rows].addmm_(tile_TT, z_AP[columns])
            mirrored = slice(max(rows.stop, columns.start), columns.stop)
            mirror_TT = tile_TT[:, mirrored.start - columns.start :].T
            grad_AP[mirrored].addmm_(mirror_TT, z_AP[rows])
        return grad_AP


class _Against(torch.autograd.Function):
    """Log-sum-exp of each anchor's products with candidates, any logits.

    The candidates that don't count are those c of anchor r with c - r in `excluded`.
    """

    @staticmethod
    def forward(
        ctx: Any, anchors_RP: Tensor, candidates_CP: Tensor, excluded: tuple[int, ...]
    ) -> Tensor:
        maximum_R = anchors_RP.new_full((len(anchors_RP),), SMALLEST_MAXIMUM)
        sums_R = torch.zeros_like(maximum_R)
        for rows, columns, tile_TT in _tiles(anchors_RP, candidates_CP):
            _fill_diagonals(tile_TT, rows, columns, excluded, -torch.inf)
            maximum_T = torch.maximum(maximum_R[rows], tile_TT.amax(dim=1))
            sums_R[rows] *= (maximum_R[rows] - maximum_T).exp_()
            sums_R[rows] += tile_TT.sub_(maximum_T[:, None]).exp_().sum(dim=1)
            maximum_R[rows] = maximum_T
        logsumexp_R = sums_R.log_().add_(maximum_R)
        ctx.save_for_backward(anchors_RP, candidates_CP, logsumexp_R)
        ctx.excluded = excluded
        return logsumexp_R

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_R: Tensor) -> tuple[Tensor, Tensor | None, None]:
        anchors_RP, candidates_CP, logsumexp_R = ctx.saved_tensors
        grad_RP = torch.zeros_like(anchors_RP)
        grad_CP = torch.zeros_like(candidates_CP) if ctx.needs_input_grad[1] else None
        for rows, columns, tile_TT in _tiles(anchors_RP, candidates_CP):
            tile_TT.sub_(logsumexp_R[rows, None]).exp_().mul_(grad_R[rows, None])
            _fill_diagonals(tile_TT, rows, columns, ctx.excluded, 0.0)
            grad_RP[rows].addmm_(tile_TT, candidates_CP[columns])
            if grad_CP is not None:
                grad_CP[columns].addmm_(tile_TT.T, anchors_RP[rows])
        return grad_RP, grad_CP, None


def _against(
    view0_BP: Tensor, view1_BP: Tensor, candidates_CP: Tensor, excluded: tuple[int, ...]
) -> Tensor:
    return torch.cat(
        [_Against.apply(view_BP, candidates_CP, excluded) for view_BP in (view0_BP, view1_BP)]
    )


def _own_image(z_AP: Tensor) -> tuple[int, ...]:
    n_images = len(z_AP) // 2
    return (-n_images, 0, n_images)


def _tiles(
    rows_RP: Tensor, columns_CP: Tensor, *, upper: bool = False
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Products of rows and columns, tile by tile, in one buffer that the caller may write to."""
    n_rows, n_columns = CPU_TILE if rows_RP.device.type == "cpu" else GPU_TILE
    if upper:  # of small batches, too, little shall be computed twice along the diagonal
        n_rows = min(n_rows, max(len(rows_RP) // 8, 256))
    buffer = rows_RP.new_empty(min(n_rows, len(rows_RP)) * min(n_columns, len(columns_CP)))
    for row in range(0, len(rows_RP), n_rows):
        rows = slice(row, min(row + n_rows, len(rows_RP)))
        for column in range(row if upper else 0, len(columns_CP), n_columns):
            columns = slice(column, min(column + n_columns, len(columns_CP)))
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            tile_TT = buffer[: shape[0] * shape[1]].view(shape)
            yield rows, columns, torch.mm(rows_RP[rows], columns_CP[columns].T, out=tile_TT)


def _fill_diagonals(
    tile_TT: Tensor, rows: slice, columns: slice, diagonals: tuple[int, ...], value: float
) -> None:
    """Write where column minus row, counted over all tiles, is one of `diagonals`."""
    n_rows, n_columns = tile_TT.shape
    for diagonal in diagonals:
        offset = diagonal + rows.start - columns.start
        if -n_rows < offset < n_columns:
            tile_TT.diagonal(offset).fill_(value)
