"""What a step adds to the plain loss."""

import copy

import numpy as np
import pytest
import torch

from stages.models.simclr import Classifier, build_classifier, build_encoder, build_simclr
from stages.optim.build import build_optimizer
from stages.sections.optimizer import OptimizerParams
from stages.sections.views import LabelledViewParams
from stages.training.batches import Batch
from stages.training.classifier import Schooling
from stages.training.runtime import Runtime
from stages.training.state import TrainState
from stages.training.steps import classify_step

CPU = Runtime(torch.device("cpu"))
LR, DECAY = 0.5, 0.01


def a_classifier() -> Classifier:
    torch.manual_seed(0)
    simclr = build_simclr(build_encoder(10, 0.0625, stem="small_stride2"), out_dim=8)
    return build_classifier(simclr, from_layer=1, n_classes=4)


def after_one_step(start: Classifier, head_decay: float) -> Classifier:
    classifier = copy.deepcopy(start).train()
    generator = torch.Generator().manual_seed(0)
    views_VBCHW = torch.rand(1, 6, 3, 16, 16, generator=generator)
    batch = Batch(views_VBCHW, np.arange(6), torch.arange(6) % 4)
    state = TrainState(classifier, build_optimizer("lars", classifier, LR, DECAY))
    classify_step(CPU, head_decay=head_decay)(state, batch)
    return classifier


def test_head_decay_pulls_the_kernel_of_the_classifier_and_nothing_else():
    start = a_classifier()
    plain, decayed = after_one_step(start, 0.0), after_one_step(start, DECAY)
    pulled_KD = plain.linear.weight - decayed.linear.weight
    torch.testing.assert_close(pulled_KD, LR * DECAY * start.linear.weight, rtol=1e-3, atol=1e-7)
    for name, value in decayed.state_dict().items():
        if name != "linear.weight":
            torch.testing.assert_close(value, plain.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize(("optimizer", "expected"), [("lars", DECAY), ("sgd", 0.0), ("adamw", 0.0)])
def test_only_lars_leaves_the_decay_of_the_classifier_to_the_loss(optimizer, expected):
    settings = OptimizerParams(name=optimizer, base_lr=LR, weight_decay=DECAY)
    schooling = Schooling("1 steps", None, 6, LabelledViewParams(), settings, seed=0)
    assert schooling.head_decay == expected
