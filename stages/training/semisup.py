"""Pseudo-labels from the net itself: FixMatch (Sohn et al. 2020) and Pseudo-Label (Lee 2013).

Where we differ from FixMatch: strong views are crops with colour jitter as params.yaml says (no
RandAugment, no cutout), and the learning rate falls to 0 (7/16 of a cosine there), which makes up
for the average of the weights that they evaluate.

Shapes: B labelled images, U unlabelled ones (a multiple of B), C H W, K classes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stages.data.order import Order
from stages.data.store import ImageStore
from stages.data.views import ViewRecipe
from stages.training.batches import Batch, ViewLoader, Waited, ahead
from stages.training.gather import average_gradients
from stages.training.loop import Watched
from stages.training.runtime import Runtime
from stages.training.state import TrainState
from stages.training.steps import Step

OTHER_VIEWS = 1_000_003  # added to the seed: strong views are not the weak ones, jittered


@dataclass(frozen=True)
class MixedBatch(Batch):
    """A labelled batch, and views of unlabelled images beside it."""

    weak_UCHW: Tensor | None = None
    strong_UCHW: Tensor | None = None


@dataclass(frozen=True)
class InOrder:
    """A store whose order is given, so that two loaders of other seeds show the same images."""

    store: ImageStore
    given: Order

    @property
    def key_hashes(self) -> NDArray[np.uint64]:
        return self.store.key_hashes

    @property
    def n_images(self) -> int:
        return self.store.n_images

    def images(self, positions_B: NDArray[np.int64]) -> Tensor | list[Tensor]:
        return self.store.images(positions_B)

    def class_tensor(self, positions_B: NDArray[np.int64]) -> Tensor | None:
        return self.store.class_tensor(positions_B)

    def order(self, _seed: int) -> Order:
        return self.given

    def read_ahead(self, shards: Iterable[int]) -> None:
        self.store.read_ahead(shards)


def beside(
    unlabelled: ImageStore, ratio: int, weak: ViewRecipe, strong: ViewRecipe | None, seed: int
) -> Callable[[ViewLoader], Callable[[int, int], Iterator[Batch]]]:
    """Puts `ratio` unlabelled images beside each labelled one, a pure function of seed and step.

    Args:
        unlabelled: opened without labels, so that none can be used.
        ratio: U / B.
        weak: views that are given a pseudo-label.
        strong: views of the same images that must get it too; None: none are made.
        seed: of order and views.
    """

    def batches_of(labelled: ViewLoader) -> Callable[[int, int], Iterator[Batch]]:
        size = min(ratio * labelled.batch_size, unlabelled.n_images)
        weak_loader = replace(
            labelled, store=unlabelled, recipe=weak, batch_size=size, seed=seed, waited=Waited()
        )
        strong_loader = None
        if strong is not None:
            same_images = InOrder(unlabelled, weak_loader.order)
            strong_loader = replace(
                weak_loader, store=same_images, recipe=strong, seed=seed + OTHER_VIEWS
            )

        def batch(step: int) -> MixedBatch:
            known, seen = labelled.batch(step), weak_loader.batch(step)
            strong_UCHW = strong_loader.batch(step).views_VBCHW[0] if strong_loader else None
            return MixedBatch(
                known.views_VBCHW,
                known.positions_B,
                known.classes_B,
                seen.views_VBCHW[0],
                strong_UCHW,
            )

        return lambda start, stop: ahead(
            batch, range(start, stop), labelled.waited, n_threads=labelled.n_threads
        )

    return batches_of


def fixmatch_step(
    runtime: Runtime, threshold: float, weight: float, precision: str = "float32"
) -> Step:
    """Cross entropy on labels, and on strong views by sure answers to the weak ones (eq. 3-4).

    Args:
        runtime: device.
        threshold: tau; less sure answers count as 0 in the mean over all U.
        weight: lambda_u.
        precision: of the network; the losses are float32 always.
    """

    def step(state: TrainState, batch: Batch) -> Watched:
        logits_BK, weak_UK, strong_UK = _logits(state, batch, runtime, precision)
        on_labels = F.cross_entropy(logits_BK, _classes(batch, runtime))
        on_unlabelled = pseudo_label_loss(weak_UK, strong_UK, threshold)
        _update(state, on_labels + weight * on_unlabelled, runtime)
        return {"loss": on_labels.detach()}

    return step


def pseudo_label_step(
    runtime: Runtime,
    weight: float,
    ramp: tuple[float, float],
    total_steps: int,
    precision: str = "float32",
) -> Step:
    """Cross entropy on labels, and on the class that is likeliest now for each unlabelled image.

    Its weight is 0 up to the first of `ramp`, `weight` from the second on, and rises between
    (shares of the run; Lee 2013, eq. 15-16).
    """

    def step(state: TrainState, batch: Batch) -> Watched:
        logits_BK, weak_UK = _logits(state, batch, runtime, precision)
        on_labels = F.cross_entropy(logits_BK, _classes(batch, runtime))
        on_unlabelled = pseudo_label_loss(weak_UK, weak_UK, 0.0)
        counts = ramped(weight, ramp, state.step / total_steps)
        _update(state, on_labels + counts * on_unlabelled, runtime)
        return {"loss": on_labels.detach()}

    return step


def pseudo_label_loss(told_by_UK: Tensor, learnt_by_UK: Tensor, threshold: float) -> Tensor:
    """Cross entropy against the likeliest class of other logits, where they are sure of it.

    The mean over all U, unsure ones as 0. No gradient reaches `told_by_UK`.
    """
    confidence_U, class_U = told_by_UK.detach().softmax(dim=1).max(dim=1)
    loss_U = F.cross_entropy(learnt_by_UK, class_U, reduction="none")
    return (loss_U * (confidence_U >= threshold)).mean()


def ramped(weight: float, ramp: tuple[float, float], done: float) -> float:
    """The weight when a share `done` of the run lies behind."""
    start, end = ramp
    if done >= end:
        return weight
    return 0.0 if done < start else weight * (done - start) / (end - start)


def _logits(state: TrainState, batch: Batch, runtime: Runtime, precision: str) -> list[Tensor]:
    """Of labelled images, weak and, where there are any, strong views.

    In one pass: one batch norm over all that is seen, as in the authors' interleaved batches.
    """
    assert isinstance(batch, MixedBatch)
    parts = [
        part.to(runtime.device, non_blocking=True)
        for part in (batch.views_VBCHW[0], batch.weak_UCHW, batch.strong_UCHW)
        if part is not None
    ]
    with runtime.autocast(precision):
        logits = state.model(runtime.arrange(torch.cat(parts)))
    return list(logits.float().split([len(part) for part in parts]))


def _classes(batch: Batch, runtime: Runtime) -> Tensor:
    assert batch.classes_B is not None
    return batch.classes_B.to(runtime.device, non_blocking=True)


def _update(state: TrainState, loss: Tensor, runtime: Runtime) -> None:
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients(state.model, runtime)
    state.optimizer.step()
