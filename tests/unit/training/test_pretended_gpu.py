"""A step, and views, on a GPU that is not there: tensors with shapes and devices but no values.

Where the host would have to know a value, or tensors of two devices meet, torch refuses. What a GPU
computes is not seen here, nor the backward pass, for which torch wants the real one.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from stages.data.views import ViewRecipe, make_views
from stages.models.batch_norm import normalise_rows_together
from stages.models.heads import LinearClassifier
from stages.models.momentum import MomentumEncoder, NegativeQueue
from stages.models.simclr import Classifier, SimCLR, build_encoder, build_simclr
from stages.optim.build import build_optimizer
from stages.training.micro_batches import Passes
from stages.training.runtime import Runtime
from stages.training.semisup import MixedBatch, fixmatch_step, pseudo_label_step
from stages.training.state import TrainState
from stages.training.steps import (
    classify_step,
    contrastive_step,
    distill_step,
    several_classes_step,
)
from stages.training.teachers import answers_to_the_same_view

GPU = torch.device("cuda", 0)
RUNTIME = Runtime(GPU, fused_optimizer=True)
N_IMAGES = 8

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")


@pytest.fixture(autouse=True)
def pretended() -> Iterator[None]:
    with (
        mock.patch.object(torch.nn.init, "trunc_normal_"),  # looks at values, but not in a step
        mock.patch.object(Tensor, "backward", give_gradients),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        yield


def give_gradients(loss: Tensor, _gradient: Tensor | None = None) -> None:
    """Every leaf that a backward pass would reach has a gradient afterwards."""
    seen, nodes = set(), [loss.grad_fn]
    while nodes:
        node: Any = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [further for further, _ in node.next_functions]
        if hasattr(node, "variable"):
            node.variable.grad = torch.empty_like(node.variable)


class NoWaitingCopies(TorchDispatchMode):
    """Refuses copies to the GPU that the host would wait for."""

    def __torch_dispatch__(self, operation: Any, _types: Any, given: Any = (), named: Any = None):
        named = named or {}
        to_gpu = torch.device(named.get("device") or "cpu").type == "cuda"
        if operation is torch.ops.aten._to_copy.default and to_gpu:
            assert given[0].device == GPU or named.get("non_blocking"), "a copy that waits"
        return operation(*given, **named)


def network() -> SimCLR:
    return build_simclr(build_encoder(10, 0.25, stem="small"), out_dim=8).train()


def classifier() -> Classifier:
    encoder = build_encoder(10, 0.25, stem="small")
    return Classifier(encoder, nn.Sequential(), LinearClassifier(encoder.feature_dim, 3)).train()


def a_batch() -> MixedBatch:
    classes_B = torch.zeros(N_IMAGES, dtype=torch.int64)
    views_VBCHW = torch.zeros(2, N_IMAGES, 3, 32, 32)
    unlabelled = (torch.zeros(2 * N_IMAGES, 3, 32, 32) for _ in range(2))
    return MixedBatch(views_VBCHW, np.arange(N_IMAGES), classes_B, *unlabelled)


@pytest.mark.parametrize(
    ("optimizer", "memory", "passes"),
    [
        ("lars", "none", None),
        ("sgd", "moco", None),
        ("adamw", "simclr", None),
        ("lars", "simclr", Passes(4, 4)),
    ],
)
def test_pretraining_waits_for_no_value(optimizer: Any, memory: str, passes: Passes | None):
    beside: dict[str, Any] = {}
    with GPU:
        model = network()
        if passes:
            normalise_rows_together(model, 2 * 4)
        if memory != "none":
            queue = NegativeQueue(40, 8, random_start=memory == "moco")
            beside = {"momentum_encoder": MomentumEncoder(model, 0.9), "queue": queue}
    state = TrainState(
        model, build_optimizer(optimizer, model, 1e-3, 1e-4, fused=True), beside=beside
    )
    step = contrastive_step(RUNTIME, 0.2, "float32", memory, passes=passes)
    for _ in range(2):  # a queue that is empty, and one that is not
        with NoWaitingCopies():
            watched = step(state, a_batch())
    assert {value.device for value in watched.values()} == {GPU}


@pytest.mark.parametrize("kind", ["classify", "several", "distill", "fixmatch", "pseudo_label"])
def test_classifiers_wait_for_no_value(kind: str):
    with GPU:
        model, teacher = (classifier() for _ in range(2))
    state = TrainState(model, build_optimizer("adamw", model, 1e-3, 1e-4, fused=True))
    step = {
        "classify": classify_step(RUNTIME, head_decay=1e-4),
        "several": several_classes_step(RUNTIME, torch.zeros(N_IMAGES, 3)),
        "distill": distill_step(RUNTIME, answers_to_the_same_view(teacher, RUNTIME), 1.0, 0.5),
        "fixmatch": fixmatch_step(RUNTIME, 0.95, 1.0),
        "pseudo_label": pseudo_label_step(RUNTIME, 1.0, (0.1, 0.6), total_steps=2),
    }[kind]
    batch = replace(a_batch(), strong_UCHW=None) if kind == "pseudo_label" else a_batch()
    for _ in range(2):
        with NoWaitingCopies():
            assert step(state, batch)["loss"].device == GPU


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("convention", ["official", "torchvision"])
def test_views_are_made_where_the_images_are(alike: bool, convention: str):
    images: Any = torch.zeros(6, 3, 64, 64, dtype=torch.uint8, device=GPU)
    if not alike:
        images = [image[:, : 40 + i, : 64 - i] for i, image in enumerate(images)]
    recipe = getattr(ViewRecipe, convention)(224)
    hashes = np.arange(6, dtype=np.uint64)
    views_VBCHW = make_views(images, recipe, seed=0, epoch=0, key_hashes=hashes)
    assert views_VBCHW.shape == (2, 6, 3, 224, 224)
    assert views_VBCHW.device == GPU


def test_what_waits_or_mixes_devices_is_seen():
    x = torch.ones(3, device=GPU)
    refusals = (RuntimeError, DataDependentOutputException, DynamicOutputShapeException)
    for wrong in (lambda: x.sum().item(), lambda: x + torch.ones(3), lambda: x[x > 0]):
        with pytest.raises(refusals):
            wrong()
