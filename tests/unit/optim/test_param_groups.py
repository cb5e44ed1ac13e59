from collections import OrderedDict

import pytest
import torch
from torch import nn

from stages.models.simclr import build_classifier, build_encoder, build_simclr
from stages.optim.build import build_optimizer
from stages.optim.lars import LARS
from stages.optim.param_groups import param_groups, supervised_head_decay


@pytest.fixture
def classifier() -> nn.Module:
    """A convolution with bias, a batch norm, a dense layer without bias, and a classifier."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 4, 3),
            norm=nn.BatchNorm2d(4),
            dense=nn.Linear(4, 5, bias=False),
            linear=nn.Linear(5, 2),
        )
    )


def names(module: nn.Module, weight_decay: float, rule: str) -> dict[tuple[float, object], set]:
    """Names of the parameters by (weight_decay, adapt)."""
    by_id = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        (group["weight_decay"], group.get("adapt")): {by_id[id(p)] for p in group["params"]}
        for group in param_groups(module, weight_decay, rule)
    }


def test_lars_exempts_norms_biases_and_the_supervised_head_from_both(classifier):
    assert names(classifier, 1e-4, "lars") == {
        (1e-4, True): {"conv.weight", "dense.weight"},
        (0.0, False): {
            "conv.bias",
            "norm.weight",
            "norm.bias",
            "linear.weight",
            "linear.bias",
        },
    }


def test_sgd_exempts_norms_alone_and_adapts_nothing(classifier):
    assert names(classifier, 1e-4, "sgd") == {
        (1e-4, False): {"conv.weight", "conv.bias", "dense.weight", "linear.weight", "linear.bias"},
        (0.0, False): {"norm.weight", "norm.bias"},
    }


def test_adamw_decays_what_has_two_dimensions(classifier):
    assert names(classifier, 0.05, "adamw") == {
        (0.05, None): {"conv.weight", "dense.weight", "linear.weight"},
        (0.0, None): {"conv.bias", "norm.weight", "norm.bias", "linear.bias"},
    }


@pytest.mark.parametrize("rule", ["lars", "sgd", "adamw"])
def test_frozen_parameters_are_in_no_group_and_empty_groups_are_left_out(classifier, rule):
    classifier.requires_grad_(False)
    classifier.dense.requires_grad_(True)
    (group,) = param_groups(classifier, 0.1, rule)
    assert group["params"] == [classifier.dense.weight]


def test_a_lone_classifier_is_a_supervised_head():
    assert names(nn.Linear(3, 2), 0.1, "lars") == {(0.0, False): {"weight", "bias"}}


def test_norms_of_the_projects_networks_are_told_from_kernels():
    simclr = build_simclr(build_encoder(50, 1 / 16, sk_ratio=0.0625, stem="small"), out_dim=8)
    network = build_classifier(simclr, 1, 10)
    norms = {
        f"{name}.{part}"
        for name, module in network.named_modules()
        if type(module).__name__ == "BatchNorm"
        for part, _ in module.named_parameters(recurse=False)
    }
    everything = {name for name, _ in network.named_parameters()}
    head = {"linear.weight", "linear.bias"}
    assert len(norms) > 100
    assert names(network, 0.1, "lars") == {
        (0.1, True): everything - norms - head,
        (0.0, False): norms | head,
    }
    assert names(network, 0.1, "sgd") == {(0.1, False): everything - norms, (0.0, False): norms}


def test_supervised_head_decay_is_half_the_squared_kernel_alone(classifier):
    with torch.no_grad():
        classifier.linear.weight.fill_(2.0)
        classifier.linear.bias.fill_(7.0)
    term = supervised_head_decay(classifier, 0.1)
    assert term.item() == pytest.approx(0.1 * 0.5 * 10 * 4)
    term.backward()
    torch.testing.assert_close(classifier.linear.weight.grad, torch.full((2, 5), 0.1 * 2.0))
    assert classifier.linear.bias.grad is None
    del classifier.linear
    assert supervised_head_decay(classifier, 0.1) == 0


def test_built_optimizers_are_the_official_ones_and_adamw(classifier):
    lars = build_optimizer("lars", classifier, lr=4.8, weight_decay=1e-4)
    assert isinstance(lars, LARS)
    assert [group["adapt"] for group in lars.param_groups] == [True, False]
    sgd = build_optimizer("sgd", classifier, lr=0.1, weight_decay=1e-4, momentum=0.8)
    assert {group["adapt"] for group in sgd.param_groups} == {False}
    assert {group["nesterov"] for group in sgd.param_groups} == {True}
    assert {group["momentum"] for group in sgd.param_groups} == {0.8}
    adamw = build_optimizer("adamw", classifier, lr=1e-3, weight_decay=0.05)
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.05, 0.0]
    for optimizer, lr in ((lars, 4.8), (sgd, 0.1), (adamw, 1e-3)):
        assert {group["lr"] for group in optimizer.param_groups} == {lr}


def test_nothing_to_train_and_unknown_names_are_refused(classifier):
    with pytest.raises(ValueError, match="lamb"):
        build_optimizer("lamb", classifier, 0.1, 0.0)
    with pytest.raises(ValueError, match="frozen"):
        build_optimizer("lars", classifier.requires_grad_(False), 0.1, 0.0)
