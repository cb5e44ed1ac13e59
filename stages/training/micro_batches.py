"""A batch that the device can't hold at once, and the exact gradient of a loss over all of it.

A contrastive loss needs the z of every view together, but not every activation. So the network
runs over a few images at a time without keeping any, the loss of all z gives its gradient by each
of them, and the network runs again over the same images, each pass taking its rows of that gradient
back to the weights: the chain rule in another order, for a forward pass more (the gradient cache
of Gao et al. 2021).

What an activation depends on must lie in its own pass, and batch norm is what does not: over the
whole batch its statistics are of all passes at once. They are taken over a fixed number of images
instead, which any number of passes may hold, so that memory decides nothing. See
pipeline/docs/training.md.

Shapes: V views, B images (this process's), M images of a pass, P width of z, A = V * B.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.models.batch_norm import frozen_moving_statistics, moved_once_in_passes
from stages.training.gather import average_moving_statistics
from stages.training.runtime import Runtime


@dataclass(frozen=True)
class Passes:
    """How many images go through the network at once.

    Attributes:
        images: M, of this process's share of the batch; None: all.
        statistics_over: images that batch norm normalises as one, a divisor of M; None: all of
            them. The network's batch norms must have been told: `normalise_rows_together`.
    """

    images: int | None = None
    statistics_over: int | None = None

    def sizes(self, n_images: int) -> list[int]:
        """M, as often as it takes.

        Raises:
            ValueError: the passes would be of different sizes, or split what is normalised as one.
        """
        size = min(self.images or n_images, n_images)
        together = self.statistics_over or size
        if n_images % size or size % together:
            raise ValueError(
                f"{n_images} images can't go through in passes of {size}, normalised {together} by "
                f"{together}"
            )
        return [size] * (n_images // size)


@dataclass(frozen=True)
class Embedded:
    """Projections z_VBP, float32, and how a loss of them reaches the weights."""

    z_VBP: Tensor
    backward: Callable[[Tensor], None]


def embed(
    network: nn.Module, views_VBCHW: Tensor, passes: Passes, runtime: Runtime, precision: str
) -> Embedded:
    """Projections of a batch of views that lies on the device, to be trained through.

    `backward` adds to the gradients of the weights. With several passes it keeps one pass's
    activations at a time.
    """
    sizes = passes.sizes(views_VBCHW.shape[1])
    if len(sizes) == 1:
        z_VBP = _one_pass(network, views_VBCHW, passes, runtime, precision)
        _agree(network, passes, runtime)
        return Embedded(z_VBP, lambda loss: loss.backward())
    z_VBP = project(network, views_VBCHW, passes, runtime, precision).requires_grad_()

    def backward(loss: Tensor) -> None:
        loss.backward()
        assert z_VBP.grad is not None
        with frozen_moving_statistics(network):  # they have moved in the passes before
            for part_VMCHW, grad_VMP in zip(
                views_VBCHW.split(sizes, dim=1), z_VBP.grad.split(sizes, dim=1), strict=True
            ):
                _one_pass(network, part_VMCHW, passes, runtime, precision).backward(grad_VMP)

    return Embedded(z_VBP, backward)


@torch.no_grad()
def project(
    network: nn.Module, views_VBCHW: Tensor, passes: Passes, runtime: Runtime, precision: str
) -> Tensor:
    """Projections z_VBP without a gradient; moving statistics move as by one pass over all."""
    sizes = passes.sizes(views_VBCHW.shape[1])
    with moved_once_in_passes(network, len(sizes)):
        parts = [
            # a copy, since a compiled network may write its next answer over this one
            _one_pass(network, part_VMCHW, passes, runtime, precision).clone()
            for part_VMCHW in views_VBCHW.split(sizes, dim=1)
        ]
    _agree(network, passes, runtime)
    return torch.cat(parts, dim=1)


def _one_pass(
    network: nn.Module, views_VMCHW: Tensor, passes: Passes, runtime: Runtime, precision: str
) -> Tensor:
    """All views of some images at once; those that are normalised as one stand together."""
    n_views, n_images = views_VMCHW.shape[:2]
    together = passes.statistics_over or n_images
    in_parts = views_VMCHW.unflatten(1, (-1, together)).transpose(0, 1)
    flat_ACHW = runtime.arrange(in_parts.flatten(0, 2))
    with runtime.autocast(precision):
        z_AP = network(flat_ACHW).float()
    return z_AP.unflatten(0, (-1, n_views, together)).transpose(0, 1).flatten(1, 2)


def _agree(network: nn.Module, passes: Passes, runtime: Runtime) -> None:
    """Moving statistics are those of all processes, also where each normalises for itself."""
    if passes.statistics_over is not None:
        average_moving_statistics(network, runtime)
