"""Numbers that are not finite: seen without waiting for the device, and the first of them found.

A loss that is not finite says nothing of its cause, for by then every weight is NaN. So the steps
that led there are done again from the last good state, and every tensor is looked at in the order
in which it is computed.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stages.training.batches import Batch
from stages.training.loop import Watched
from stages.training.runtime import Runtime
from stages.training.state import TrainState

LOOKED_INTO = 2  # steps up to the broken loss: its own, and the one whose update may have broken it


class NonFinite(Exception):
    """The loss of a step, or the state after it, is not finite."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"{what} is not finite at step {step}")
        self.step, self.what = step, what


class FiniteWatch:
    """Remembers, on the device, the first step whose loss was not finite."""

    def __init__(self) -> None:
        self._first: Tensor | None = None  # 0: none

    def note(self, step: int, loss: Tensor) -> None:
        """Of every step; nothing waits for the device."""
        if self._first is None:
            self._first = torch.zeros((), dtype=torch.int64, device=loss.device)
        broken = (self._first == 0) & ~torch.isfinite(loss.detach())
        self._first += broken * step

    def check(self, state: TrainState, *, thoroughly: bool = True) -> None:
        """Raise NonFinite if a loss was not finite; thoroughly: or if anything in the state is."""
        first = 0 if self._first is None else int(self._first)
        if first:
            raise NonFinite(first, "the loss")
        broken = broken_tensor(state) if thoroughly else None
        if broken:
            raise NonFinite(state.step, broken)


def broken_tensor(state: TrainState) -> str | None:
    """A tensor of the state that holds a number which is not finite, by name; one transfer."""
    tensors = {
        **{f"weights of {name}": tensor for name, tensor in state.model.state_dict().items()},
        **{
            f"{name} {key}": tensor
            for name, module in state.beside.items()
            for key, tensor in module.state_dict().items()
        },
        **{
            f"the optimizer's {key} of {name}": tensor
            for name, weight in state.model.named_parameters()
            for key, tensor in state.optimizer.state.get(weight, {}).items()
        },
    }
    floats = {
        name: tensor
        for name, tensor in tensors.items()
        # Single numbers are counters of steps.
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dim() > 0
    }
    if not floats:
        return None
    largest = torch._foreach_norm(list(floats.values()), ord=torch.inf)
    finite = torch.isfinite(torch.stack([norm.float() for norm in largest])).tolist()
    return next((name for name, good in zip(floats, finite, strict=True) if not good), None)


@dataclass(frozen=True)
class Finding:
    """The first tensor that was not finite.

    Attributes:
        order: its place in the computation of a step; lower is earlier.
        step: counted as in the curve.
        what: its name.
        curable: whether another learning rate could have prevented it.
        facts: of the last step that was finite: learning rate, largest output and gradient.
    """

    order: int
    step: int
    what: str
    curable: bool
    facts: dict[str, float]

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {value:.3g}" for name, value in self.facts.items())
        until_then = f" (in the step before: {shown})" if shown else ""
        return f"first seen in {self.what}, step {self.step}{until_then}"


def find_first(
    state: TrainState,
    batches: Iterator[Batch],
    train_step: Callable[[TrainState, Batch], Watched],
    *,
    lr_at: Callable[[int], float],
    broken_step: int,
    runtime: Runtime,
    stop: Callable[[], Any],
) -> Finding | None:
    """Do the steps up to the broken one again and name the first tensor that is not finite.

    Args:
        state: a good one, from before the broken step; it is used up.
        batches: from the step of the state on.
        train_step: the same as in training.
        lr_at: likewise.
        broken_step: the step whose loss was not finite.
        runtime: all processes take part, and the earliest finding of any of them counts.
        stop: called before every step; may raise.

    Returns:
        None if all went well this time (a device that does not repeat itself).
    """
    facts: dict[str, float] = {}
    while state.step < broken_step:
        stop()
        batch = next(batches)
        for group in state.optimizer.param_groups:
            group["lr"] = lr_at(state.step)
        if state.step < broken_step - LOOKED_INTO:
            train_step(state, batch)
            state.step += 1
            continue
        seen = _Seen()
        seen.look("an image among the input views", batch.views_VBCHW, curable=False)
        seen.look_at_weights(state, "weights of {} before the step")
        with seen.looking(state):
            watched = train_step(state, batch)
        state.step += 1
        for name, tensor in watched.items():
            seen.look("the loss" if name == "loss" else f"the projections {name}", tensor)
        seen.look_at_gradients(state)
        seen.look_at_weights(state, "weights of {} after the update")
        found = seen.first()
        facts = {"learning rate": lr_at(state.step - 1), **seen.largest()} if not found else facts
        mine = Finding(found[0], state.step, found[1], found[2], facts) if found else None
        finding = _earliest(mine, runtime)
        if finding:
            return finding
    return None


class _Seen:
    """Whether each tensor of a step was finite, in the order of its computation."""

    def __init__(self) -> None:
        self._names: list[tuple[str, bool]] = []
        self._finite: list[Tensor] = []
        self._largest: dict[str, Tensor] = {}

    def look(self, name: str, tensor: object, *, curable: bool = True) -> None:
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel():
            self._names.append((name, curable))
            self._finite.append(torch.isfinite(tensor.detach()).all().cpu())

    def look_at_weights(self, state: TrainState, words: str) -> None:
        for name, tensor in state.model.state_dict().items():
            self.look(words.format(name), tensor)

    def look_at_gradients(self, state: TrainState) -> None:
        """Once more when they are averaged over processes; and how large they were."""
        gradients = {n: w.grad for n, w in state.model.named_parameters() if w.grad is not None}
        for name, gradient in gradients.items():
            self.look(f"the gradient of {name}", gradient)
        if gradients:
            largest = torch.stack([g.detach().abs().max().float() for g in gradients.values()])
            self._largest["largest gradient"] = largest.max()

    @contextmanager
    def looking(self, state: TrainState) -> Generator[None, None, None]:
        """Within it, what modules give and what parameters are given is looked at."""
        with ExitStack() as hooks:
            for name, module in state.model.named_modules():
                if not list(module.children()):
                    hook = module.register_forward_hook(partial(self._after_module, name))
                    hooks.callback(hook.remove)
            hook = state.model.register_forward_hook(self._after_model)
            hooks.callback(hook.remove)
            for name, weight in state.model.named_parameters():
                if weight.requires_grad:
                    look = partial(self._after_gradient, name)
                    hooks.callback(weight.register_post_accumulate_grad_hook(look).remove)
            yield

    def _after_module(self, name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        self.look(f"the output of {name}", output)

    def _after_model(self, _module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            self._largest["largest output"] = output.detach().abs().max().float()

    def _after_gradient(self, name: str, weight: Tensor) -> None:
        self.look(f"the gradient of {name}", weight.grad)

    def first(self) -> tuple[int, str, bool] | None:
        finite = torch.stack(self._finite).tolist()
        for order, ((name, curable), good) in enumerate(zip(self._names, finite, strict=True)):
            if not good:
                return order, name, curable
        return None

    def largest(self) -> dict[str, float]:
        """The largest output of the network, and the largest gradient."""
        return {name: float(value) for name, value in self._largest.items()}


def _earliest(mine: Finding | None, runtime: Runtime) -> Finding | None:
    if runtime.world_size == 1:
        return mine
    everyone: list[Finding | None] = [None] * runtime.world_size
    dist.all_gather_object(everyone, mine)
    found = [finding for finding in everyone if finding is not None]
    return min(found, key=lambda finding: finding.order, default=None)
