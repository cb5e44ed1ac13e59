"""Pseudo-labels from the net itself: FixMatch (Sohn et al. 2020) and Pseudo-Label (Lee 2013).

Where we differ from FixMatch: strong views are crops with colour jitter as params.yaml says (no
RandAugment, no cutout), and the learning rate falls to 0 (7/16 of a cosine there), which makes up
for the average of the weights that they evaluate.

Shapes: B labelled images, U unlabelled ones (a multiple of B), C H W, K classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.data.store import ImageStore
from stages.data.views import ViewRecipe, make_views
from stages.training.batches import Batch, ViewLoader, ahead
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
        loader = ViewLoader(unlabelled, weak, size, n_views=1, seed=seed)

        def batch(step: int) -> MixedBatch:
            known, seen = labelled.batch(step), loader.batch(step)
            strong_UCHW = None
            if strong is not None:
                epoch, positions_U = loader.order.global_batch(step, size)
                strong_UCHW = make_views(
                    unlabelled.images(positions_U),
                    strong,
                    seed=seed + OTHER_VIEWS,
                    epoch=epoch,
                    key_hashes=unlabelled.key_hashes[positions_U],
                    n_views=1,
                )[0]
            return MixedBatch(
                known.views_VBCHW,
                known.positions_B,
                known.classes_B,
                seen.views_VBCHW[0],
                strong_UCHW,
            )

        return lambda start, stop: ahead(batch, range(start, stop), labelled.waited)

    return batches_of


def fixmatch_step(runtime: Runtime, threshold: float, weight: float) -> Step:
    """Cross entropy on labels, and on strong views by sure answers to the weak ones (eq. 3-4).

    Args:
        runtime: device.
        threshold: tau; less sure answers count as 0 in the mean over all U.
        weight: lambda_u.
    """

    def step(state: TrainState, batch: Batch) -> Watched:
        images_BCHW, weak_UCHW, strong_UCHW = _images(batch, runtime)
        assert strong_UCHW is not None
        # One pass: one batch norm over all that is seen, as the authors' interleaved batches.
        logits = state.model(torch.cat([images_BCHW, weak_UCHW, strong_UCHW])).float()
        logits_BK, weak_UK, strong_UK = logits.split(
            [len(images_BCHW), len(weak_UCHW), len(strong_UCHW)]
        )
        on_labels = F.cross_entropy(logits_BK, _classes(batch, runtime))
        on_unlabelled = pseudo_label_loss(weak_UK, strong_UK, threshold)
        _update(state, on_labels + weight * on_unlabelled, runtime)
        return {"loss": on_labels.detach()}

    return step


def pseudo_label_step(
    runtime: Runtime, weight: float, ramp: tuple[float, float], total_steps: int
) -> Step:
    """Cross entropy on labels, and on the class that is likeliest now for each unlabelled image.

    Its weight is 0 up to the first of `ramp`, `weight` from the second on, and rises between
    (shares of the run; Lee 2013, eq. 15-16).
    """

    def step(state: TrainState, batch: Batch) -> Watched:
        images_BCHW, weak_UCHW, _ = _images(batch, runtime)
        logits = state.model(torch.cat([images_BCHW, weak_UCHW])).float()
        logits_BK, weak_UK = logits.split([len(images_BCHW), len(weak_UCHW)])
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


def _images(batch: Batch, runtime: Runtime) -> tuple[Tensor, Tensor, Tensor | None]:
    assert isinstance(batch, MixedBatch)
    assert batch.weak_UCHW is not None
    known, weak = batch.views_VBCHW[0], batch.weak_UCHW
    strong = None if batch.strong_UCHW is None else batch.strong_UCHW.to(runtime.device)
    return known.to(runtime.device), weak.to(runtime.device), strong


def _classes(batch: Batch, runtime: Runtime) -> Tensor:
    assert batch.classes_B is not None
    return batch.classes_B.to(runtime.device)


def _update(state: TrainState, loss: Tensor, runtime: Runtime) -> None:
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients(state.model, runtime)
    state.optimizer.step()
