"""The contrastive step with each of its losses."""

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from stages.losses import build
from stages.losses.build import build_loss
from stages.losses.nt_xent import nt_xent
from stages.losses.streaming_nt_xent import streaming_nt_xent
from stages.models.momentum import MomentumEncoder, NegativeQueue
from stages.models.simclr import SimCLR, build_encoder, build_simclr
from stages.optim.build import build_optimizer
from stages.training.batches import Batch
from stages.training.runtime import Runtime
from stages.training.state import TrainState
from stages.training.steps import contrastive_step

CPU = Runtime(torch.device("cpu"))
N_IMAGES = 24


def a_network() -> SimCLR:
    torch.manual_seed(0)
    encoder = build_encoder(10, 0.0625, stem="small_stride2", in_channels=1)
    return build_simclr(encoder, out_dim=8).train()


def a_batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.rand(2, N_IMAGES, 1, 16, 16, generator=generator), np.arange(N_IMAGES))


def one_step(
    network: SimCLR, loss_function: Any = None, memory: str = "none", loss_scale: float = 1.0
) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a step, and the change that it makes to every weight."""
    model = copy.deepcopy(network)
    beside: dict[str, Any] = {}
    if memory != "none":
        beside = {"momentum_encoder": MomentumEncoder(model, 0.9), "queue": NegativeQueue(40, 8)}
    state = TrainState(model, build_optimizer("sgd", model, 0.1, 0.0), beside=beside)
    step = contrastive_step(CPU, 0.2, "float32", memory, loss_function, loss_scale=loss_scale)
    for _ in range(2 if memory != "none" else 1):  # the second has a queue that is not empty
        loss = float(step(state, a_batch())["loss"])
    before = dict(network.named_parameters())
    return loss, {name: w.detach() - before[name] for name, w in model.named_parameters()}


def assert_same_step(actual: tuple[float, Any], expected: tuple[float, Any]) -> None:
    assert actual[0] == pytest.approx(expected[0], rel=1e-6)
    for name, change in expected[1].items():
        limit = 1e-4 * change.abs().max().item() + 1e-9
        torch.testing.assert_close(actual[1][name], change, rtol=0, atol=limit, msg=name)


def test_streaming_makes_the_step_that_the_whole_matrix_makes():
    network = a_network()
    streamed = one_step(network, partial(streaming_nt_xent, temperature=0.2))
    assert_same_step(streamed, one_step(network, partial(nt_xent, temperature=0.2)))


@pytest.mark.parametrize("memory", ["none", "simclr"])
def test_a_step_is_the_same_on_either_side_of_the_size_from_which_it_streams(
    monkeypatch: pytest.MonkeyPatch, memory: str
):
    network, steps = a_network(), []
    for limit in (0, 2**62):
        monkeypatch.setattr(build, "STREAMS_FROM", limit)
        monkeypatch.setattr(build, "STREAMS_FROM_WITHOUT_SYMMETRY", limit)
        steps.append(one_step(network, memory=memory))
    assert_same_step(*steps)


@pytest.mark.parametrize(
    "loss_function", [build_loss("nt_logistic", 0.2), build_loss("margin_triplet", 0.2, 0.8)]
)
def test_another_loss_is_what_the_step_minimises(loss_function: Any):
    network = a_network()
    loss, changes = one_step(network, loss_function)
    other, _ = one_step(network)
    assert loss != pytest.approx(other)
    moved = copy.deepcopy(network)
    with torch.no_grad():
        for name, weight in moved.named_parameters():
            weight += 1e-3 * changes[name]  # a small part of the way: downhill for sure
    again, _ = one_step(moved, loss_function)
    assert again < loss


def test_the_scale_is_of_what_is_minimised_and_not_of_what_is_watched():
    network = a_network()
    loss, changes = one_step(network)
    scaled_loss, scaled = one_step(network, loss_scale=2.0)
    assert_same_step((scaled_loss, scaled), (loss, {name: 2 * c for name, c in changes.items()}))
