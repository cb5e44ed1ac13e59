"""LARS, with the arithmetic of the official SimCLR code.

It differs from others that carry the name in its trust ratio (no epsilon, no second decay term
in the denominator) and in that the learning rate is inside the momentum buffer, so a change of
lr reaches only gradients still to come.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

BUFFER = "momentum_buffer"


class LARS(Optimizer):
    """Momentum SGD whose steps are scaled to each weight's own norm (You et al. 2017).

    For a weight w with gradient g, momentum m and buffer v:

        g <- g + weight_decay w
        trust = trust_coefficient |w| / |g|,  1 if either norm is 0 or the group's adapt is False
        v <- m v + lr trust g
        w <- w - v                           (nesterov: w - m v - lr trust g)

    and without classic_momentum ("popular" momentum in the official code):

        v <- m v + g,  u = v                 (nesterov: u = m v + g)
        trust = trust_coefficient |w| / |u|,  1 as above
        w <- w - lr trust u

    A group of parameters may have its own value of each argument, and `adapt` (default True).
    With adapt False and nesterov this is the official code's `momentum` optimizer (Keras SGD);
    torch.optim.SGD keeps lr outside the buffer.

    On a GPU it works on lists of tensors, without waiting for the device. One device per group.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        nesterov: bool = False,
        classic_momentum: bool = True,
    ) -> None:
        """Make a LARS.

        Args:
            params: parameters, or groups of them; see `param_groups`.
            lr: learning rate; a schedule writes `group["lr"]`.
            momentum: m, in [0, 1).
            weight_decay: in the optimizer, so that the trust ratio sees it.
            trust_coefficient: officially EETA.
            nesterov: look ahead by one step of momentum; officially off for LARS.
            classic_momentum: lr and trust inside the buffer; officially on.

        Raises:
            ValueError: a value is out of its range.
        """
        if lr < 0 or weight_decay < 0 or trust_coefficient <= 0 or not 0 <= momentum < 1:
            raise ValueError(
                f"lr ({lr}) and weight_decay ({weight_decay}) must be at least 0, "
                f"trust_coefficient ({trust_coefficient}) above 0, momentum ({momentum}) in [0, 1)"
            )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "nesterov": nesterov,
            "classic_momentum": classic_momentum,
            "adapt": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update every parameter that has a gradient; gradients are left as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            # On a CPU all that is done to a weight is done while the cache holds it; on a GPU each
            # operation is one launch for all weights.
            on_cpu = all(weight.device.type == "cpu" for weight in weights)
            for part in [[weight] for weight in weights] if on_cpu else [weights]:
                self._update(part, group)
        return loss

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        for weight in weights:
            if BUFFER not in self.state[weight]:
                self.state[weight][BUFFER] = torch.zeros_like(weight)
        buffers = [self.state[weight][BUFFER] for weight in weights]
        grads = [weight.grad for weight in weights if weight.grad is not None]
        if group["weight_decay"]:
            grads = list(torch._foreach_add(grads, weights, alpha=group["weight_decay"]))
        update = _classic_update if group["classic_momentum"] else _popular_update
        update(weights, grads, buffers, group)


def _classic_update(
    weights: list[Tensor], grads: list[Tensor], buffers: list[Tensor], group: dict[str, Any]
) -> None:
    lr, momentum = group["lr"], group["momentum"]
    torch._foreach_mul_(buffers, momentum)
    if group["adapt"]:
        grads = list(torch._foreach_mul(grads, _step_sizes(weights, grads, group)))
        lr = 1.0  # it is in the step sizes
    torch._foreach_add_(buffers, grads, alpha=lr)
    if group["nesterov"]:
        torch._foreach_sub_(weights, grads, alpha=lr)
        torch._foreach_sub_(weights, buffers, alpha=momentum)
    else:
        torch._foreach_sub_(weights, buffers)


def _popular_update(
    weights: list[Tensor], grads: list[Tensor], buffers: list[Tensor], group: dict[str, Any]
) -> None:
    lr, momentum = group["lr"], group["momentum"]
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, grads)
    updates = buffers
    if group["nesterov"]:
        updates = list(torch._foreach_add(grads, buffers, alpha=momentum))
    if group["adapt"]:
        updates = list(torch._foreach_mul(updates, _step_sizes(weights, updates, group)))
        lr = 1.0  # it is in the step sizes
    torch._foreach_sub_(weights, updates, alpha=lr)


def _step_sizes(
    weights: list[Tensor], directions: list[Tensor], group: dict[str, Any]
) -> list[Tensor]:
    """Lr times trust of each weight, as tensors without dimensions: no wait for the device."""
    weight_norms, direction_norms = _norms(weights), _norms(directions)
    trusts = torch.where(
        (weight_norms > 0) & (direction_norms > 0),
        group["trust_coefficient"] * weight_norms / direction_norms,
        1.0,
    )
    return list((group["lr"] * trusts).unbind())


def _norms(tensors: list[Tensor]) -> Tensor:
    if tensors[0].device.type != "cpu":
        return torch.stack(torch._foreach_norm(tensors))
    # Row by row first: torch's CPU norm of some million values at once is off by up to 1e-4.
    rows = (
        torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)))
        if tensor.ndim > 1
        else tensor
        for tensor in tensors
    )
    return torch.stack([torch.linalg.vector_norm(norms) for norms in rows])
