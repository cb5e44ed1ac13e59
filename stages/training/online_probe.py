"""How good the representation is so far: kNN and a linear classifier on h, while it is learnt.

A look from outside. The labels are read by stores of its own, the encoder is used in inference
mode and comes out bit for bit as it went in, and no random number is drawn: the run learns the
same with and without it. Validation images score; test images are never opened.

The labelled images are the first ones of the training shards and not a label subset, which would
make pretraining depend on the choice of labels. Shards are in the order of a hash of the keys, so
the first images are a sample of all, and of remote shards only the first are fetched. They are
seen as the official evaluation does, whatever `evaluation` says: the curve is for comparing a run
with itself, and a change there shall not ask for pretraining again.

Shapes: N labelled images, M validation images, D width of h, K classes.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from stages.data.evaluation_views import EvaluationRecipe
from stages.data.store import ImageStore
from stages.errors import UserError
from stages.evaluation.features import outputs
from stages.evaluation.knn import knn_logits
from stages.evaluation.linear_probe import regularisation_path
from stages.models.simclr import SimCLR
from stages.params import Params
from stages.sections.kinds import duration_in_steps
from stages.sections.pretraining import OnlineProbeParams
from stages.training.images import open_images
from stages.training.runtime import Runtime
from stages.training.state import TrainState

LINEAR_ITERATIONS = 50
KNN_TEMPERATURE = 0.07


@dataclass(frozen=True)
class OnlineProbe:
    """Scores an encoder on validation images at intervals.

    Attributes:
        every_steps: between two looks; the last step always has one.
        labelled: N training images with their classes.
        validation: M images that score.
        seen_as: evaluation views.
        k: nearest neighbours that vote.
        l2: of the linear classifier.
        device: of the encoder.
    """

    every_steps: int
    labelled: ImageStore
    validation: ImageStore
    seen_as: EvaluationRecipe
    k: int
    l2: float
    device: torch.device
    names = ("online_knn", "online_linear")

    def is_due(self, step: int, total_steps: int) -> bool:
        return step % self.every_steps == 0 or step == total_steps

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Shares of validation images classified right; the state stays what it is."""
        assert isinstance(state.model, SimCLR)
        with in_passing(state.model):
            encoder = state.model.encoder
            labelled_ND, validation_MD = (
                outputs(encoder, store, self.seen_as, self.device)
                for store in (self.labelled, self.validation)
            )
        classes_N, classes_M = (
            torch.from_numpy(store.classes) for store in (self.labelled, self.validation)
        )
        n_classes = len(self.labelled.class_names)
        votes_MK = knn_logits(
            validation_MD, labelled_ND, classes_N, n_classes, self.k, KNN_TEMPERATURE
        )
        linear = next(
            regularisation_path(labelled_ND, classes_N, n_classes, [self.l2], LINEAR_ITERATIONS)
        )
        shares = right(votes_MK, classes_M), right(linear(validation_MD), classes_M)
        return dict(zip(self.names, shares, strict=True))


def open_online_probe(
    params: Params, n_images: int, batch_size: int, runtime: Runtime
) -> OnlineProbe | None:
    """The probe that params ask for; None where they don't.

    Every process opens it, so that all know when it is due; the main one looks.

    Args:
        params: all of them.
        n_images: that an epoch of pretraining goes through.
        batch_size: images per step.
        runtime: device.

    Raises:
        UserError: there are no labels to look with.
    """
    asked = params.pretrain.online_probe
    if asked.every is None:
        return None
    return OnlineProbe(
        duration_in_steps(asked.every, n_images, batch_size),
        _first_labelled("train", params, asked),
        _first_labelled("validation", params, asked),
        EvaluationRecipe(params.data.image_size),
        asked.k,
        asked.l2,
        runtime.device,
    )


def _first_labelled(split: str, params: Params, asked: OnlineProbeParams) -> ImageStore:
    store = open_images(params, split, with_labels=True)
    positions = np.flatnonzero(store.classes >= 0)[: asked.images]
    if not len(positions):
        raise UserError(
            f"pretrain.online_probe needs labelled images, and the {split} split has none.\n"
            "  Write pretrain.online_probe.every: null."
        )
    return store.at(positions)


@contextmanager
def in_passing(model: nn.Module) -> Generator[None, None, None]:
    """Inference mode within it; afterwards every module is in the mode that it was in."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def right(logits_MK: Tensor, classes_M: Tensor) -> float:
    return float((logits_MK.argmax(dim=1) == classes_M).float().mean())
