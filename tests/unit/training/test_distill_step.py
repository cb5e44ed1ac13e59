"""What a student learns in a step."""

import copy

import numpy as np
import pytest
import torch

from stages.models.simclr import Classifier, build_classifier, build_encoder, build_simclr
from stages.optim.build import build_optimizer
from stages.training.batches import Batch
from stages.training.runtime import Runtime
from stages.training.state import TrainState
from stages.training.steps import distill_step
from stages.training.teachers import answers_to_the_same_view

CPU = Runtime(torch.device("cpu"))


def a_classifier(seed: int) -> Classifier:
    torch.manual_seed(seed)
    simclr = build_simclr(build_encoder(10, 0.0625, stem="small_stride2"), out_dim=8)
    return build_classifier(simclr, from_layer=0, n_classes=4)


@pytest.mark.parametrize("label_share", [0.0, 0.5])
def test_the_square_of_the_temperature_scales_the_loss_and_the_step(label_share: float):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 6, 3, 16, 16, generator=generator)
    batch = Batch(images, np.arange(6), torch.tensor([0, 1, 2, 3, -1, -1]))
    start, seen = a_classifier(0), []
    for scales in (True, False):
        student = copy.deepcopy(start).train()
        state = TrainState(student, build_optimizer("sgd", student, 0.5, 0.0))
        step = distill_step(
            CPU,
            answers_to_the_same_view(a_classifier(1), CPU),
            0.5,
            label_share,
            scale_by_temperature_squared=scales,
        )
        loss = float(step(state, batch)["loss"])
        seen.append((loss, student.linear.weight.detach() - start.linear.weight.detach()))
    (scaled, scaled_move), (plain, plain_move) = seen
    assert scaled == pytest.approx(0.25 * plain, rel=1e-5)
    torch.testing.assert_close(scaled_move, 0.25 * plain_move, rtol=1e-4, atol=1e-7)
