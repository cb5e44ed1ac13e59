"""The one loop that trains everything here."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

from torch import Tensor

from stages.training.state import TrainState

Watched = Mapping[str, Tensor]
Batch = TypeVar("Batch")  # PEP 695 syntax needs Python 3.12; 3.11 is supported


def fit(
    state: TrainState,
    batches: Iterator[Batch],
    train_step: Callable[[TrainState, Batch], Watched],
    *,
    lr_at: Callable[[int], float],
    total_steps: int,
    after_step: Callable[[TrainState, Watched], Any],
) -> None:
    """Train until `state.step` reaches `total_steps`. Logging and saving live in `after_step`.

    Args:
        state: changed in place.
        batches: starts at the batch of `state.step`.
        train_step: one optimizer step; returns what to watch, still on the device.
        lr_at: the learning rate of a step, a pure function.
        total_steps: steps of the whole run, counted from its very start.
        after_step: called with the step count already raised.
    """
    for batch in islice(batches, total_steps - state.step):
        for group in state.optimizer.param_groups:
            group["lr"] = lr_at(state.step)
        watched = train_step(state, batch)
        state.step += 1
        after_step(state, watched)
