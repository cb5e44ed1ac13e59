"""Operations, weights and memory by arithmetic, against what is known or really allocated."""

import pytest
import torch
from torch import Tensor

from stages.models.simclr import build_encoder, build_simclr
from stages.planning.costs import BATCHES_AHEAD, cost_of, step_flops, training_bytes
from stages.planning.trainings import Network, Training
from stages.sections.networks import EncoderParams, HeadParams
from stages.sections.optimizer import OptimizerParams
from stages.sections.views import LabelledViewParams

RESNET_50 = EncoderParams(depth=50, width_multiplier=1.0, stem="imagenet")
TINY = EncoderParams(depth=10, width_multiplier=0.125, stem="small_stride2")
HEAD = HeadParams(depth=3, hidden_width=2.0, out_dim=32)
ADAMW = OptimizerParams(name="adamw", base_lr=0.001)


def test_a_resnet_50_costs_what_is_published():
    cost = cost_of(Network(RESNET_50), 224, 3, 1000)
    assert cost.parameters == 25_557_032  # torchvision's
    assert cost.forward_flops == pytest.approx(
        2 * 4.09e9, rel=0.01
    )  # torchvision's GFLOPS are MACs
    assert cost.training_flops == pytest.approx(3 * cost.forward_flops, rel=0.02)
    assert cost.width == 2048


def test_activations_are_those_that_a_real_pass_keeps():
    network = Network(TINY, HEAD)
    model = build_simclr(
        build_encoder(**TINY.model_dump(), in_channels=1), **HEAD.model_dump()
    ).train()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        answer = model(torch.rand(64, 1, 28, 28))
    held = sum(kept.values())
    assert answer.requires_grad
    assert 64 * cost_of(network, 28, 1, 10).activation_bytes == pytest.approx(held, rel=0.02)


def test_recomputation_keeps_less_and_computes_more():
    plain = cost_of(Network(RESNET_50), 64, 3, 10)
    blocks = cost_of(Network(RESNET_50), 64, 3, 10, "blocks")
    groups = cost_of(Network(RESNET_50), 64, 3, 10, "groups")
    # Measured on a CPU, pipeline/docs/training.md: 87, 39 and 27 MB.
    assert groups.activation_bytes / plain.activation_bytes == pytest.approx(39 / 87, rel=0.15)
    assert blocks.activation_bytes / plain.activation_bytes == pytest.approx(27 / 87, rel=0.15)
    assert plain.training_flops < blocks.training_flops < 1.4 * plain.training_flops


def a_training(**changes: object) -> Training:
    settings = {
        "network": Network(TINY, HEAD),
        "steps": 10,
        "batch_size": 64,
        "views": LabelledViewParams(),
        "optimizer": ADAMW,
    }
    return Training(**{**settings, **changes})  # ty: ignore[invalid-argument-type]


def test_a_step_counts_passes_the_momentum_encoder_and_every_pair():
    training = a_training()
    cost = cost_of(training.network, 28, 1, 10)
    plain = step_flops(training, cost, memory_keys=0, passes=1)
    assert plain == 128 * cost.training_flops + 6 * 128 * 128 * 32
    in_passes = step_flops(training, cost, memory_keys=0, passes=4)
    assert in_passes - plain == pytest.approx(128 * cost.forward_flops)
    with_memory = step_flops(training, cost, memory_keys=1000, passes=1)
    keys = 6 * 128 * (128 + 1000) * 32
    assert with_memory - plain == pytest.approx(128 * cost.forward_flops + keys)


def test_memory_counts_copies_of_the_weights_and_the_images_at_once():
    training = a_training()
    cost = cost_of(training.network, 28, 1, 10)
    where = {"image_size": 28, "channels": 1, "images": 64}
    whole = training_bytes(training, cost, **where, memory_keys=0, images_at_once=64)
    half = training_bytes(training, cost, **where, memory_keys=0, images_at_once=32)
    assert whole - half == pytest.approx(64 * cost.activation_bytes, abs=1)
    with_memory = training_bytes(training, cost, **where, memory_keys=1000, images_at_once=64)
    assert with_memory - whole == 4 * (cost.parameters + 1000 * 32)
    of_two_processes = where | {"images": 32}
    shared = training_bytes(training, cost, **of_two_processes, memory_keys=0, images_at_once=32)
    assert half - shared == BATCHES_AHEAD * 32 * 2 * 28 * 28 * 4
