import copy
import math

import pytest
import torch
from torch import nn

from stages.optim.lars import LARS

VARIANTS = [
    {"classic_momentum": classic, "nesterov": nesterov}
    for classic in (True, False)
    for nesterov in (False, True)
]


def with_gradient(values: list[float], grads: list[float]) -> nn.Parameter:
    weight = nn.Parameter(torch.tensor(values))
    weight.grad = torch.tensor(grads)
    return weight


def test_two_steps_are_those_worked_out_by_hand():
    # |w| = 5; g + 0.5 w = (3, 4) so |g| = 5 and trust = 0.1; lr 2: v = (0.6, 0.8)
    weight = with_gradient([3.0, 4.0], [1.5, 2.0])
    optimizer = LARS([weight], 2.0, momentum=0.5, weight_decay=0.5, trust_coefficient=0.1)
    optimizer.step()
    assert weight.tolist() == pytest.approx([2.4, 3.2])
    # |w| = 4; g = (-1.2, -1.6) + (1.2, 1.6) = 0: trust = 1, v = (0.3, 0.4)
    weight.grad = torch.tensor([-1.2, -1.6])
    optimizer.step()
    assert weight.tolist() == pytest.approx([2.1, 2.8])
    assert optimizer.state[weight]["momentum_buffer"].tolist() == pytest.approx([0.3, 0.4])


def test_learning_rate_of_a_past_step_stays_in_the_buffer():
    weight = with_gradient([3.0, 4.0], [3.0, 4.0])
    optimizer = LARS([weight], 2.0, momentum=0.5, trust_coefficient=0.1)
    optimizer.step()  # v = 2 * 0.1 * g = (0.6, 0.8)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()  # v = (0.3, 0.4), moved though lr is 0
    assert weight.tolist() == pytest.approx([3.0 - 0.9, 4.0 - 1.2])


def test_popular_momentum_scales_by_the_norm_of_the_momentum():
    weight = with_gradient([3.0, 4.0], [0.0, 2.0])
    optimizer = LARS([weight], 2.0, trust_coefficient=0.1, classic_momentum=False)
    optimizer.step()  # v = g, |v| = 2, trust = 0.25
    assert weight.tolist() == pytest.approx([3.0, 3.0])
    assert optimizer.state[weight]["momentum_buffer"].tolist() == [0.0, 2.0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_trust_is_1_for_a_zero_weight_a_zero_gradient_and_an_exempt_group(variant):
    zero = with_gradient([0.0, 0.0], [3.0, 4.0])
    still = with_gradient([3.0, 4.0], [0.0, 0.0])
    exempt = with_gradient([30.0, 40.0], [3.0, 4.0])
    groups = [{"params": [zero, still]}, {"params": [exempt], "adapt": False}]
    LARS(groups, 0.5, momentum=0.0, **variant).step()
    assert zero.tolist() == [-1.5, -2.0]
    assert still.tolist() == [3.0, 4.0]
    assert exempt.tolist() == [28.5, 38.0]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_first_step_is_lr_times_trust_coefficient_of_the_weight_at_any_gradient_scale(scale):
    weight = with_gradient([3.0, 4.0], [0.0, scale])
    LARS([weight], 2.0, trust_coefficient=0.001).step()
    moved = math.hypot(weight[0].item() - 3, weight[1].item() - 4)
    assert moved == pytest.approx(2.0 * 0.001 * 5, rel=1e-4)


def test_trust_of_a_weight_of_millions_is_exact_to_float32():
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(2048, 2048, generator=generator))
    weight.grad = torch.randn(2048, 2048, generator=generator) ** 3  # heavy tails
    before = weight.detach().clone()
    trust = 0.5 * before.double().norm() / weight.grad.double().norm()
    LARS([weight], 1.0, trust_coefficient=0.5).step()
    largest = weight.grad.abs().argmax()
    moved = (before - weight.detach()).flatten()[largest].item()
    assert moved == pytest.approx((trust * weight.grad.flatten()[largest]).item(), rel=2e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_unadapted_lars_at_a_constant_lr_is_torchs_sgd(nesterov):
    torch.manual_seed(0)
    mine = nn.Linear(6, 4)
    theirs = copy.deepcopy(mine)
    optimizers = [
        LARS(
            [{"params": list(mine.parameters()), "adapt": False}],
            0.1,
            weight_decay=0.01,
            nesterov=nesterov,
        ),
        torch.optim.SGD(
            theirs.parameters(), 0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov
        ),
    ]
    for _ in range(5):
        x = torch.randn(8, 6)
        for net, optimizer in zip((mine, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    for weight, expected in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_optimizer_goes_on_bit_for_bit(variant, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))

    def build(module: nn.Module) -> LARS:
        kernels = [p for p in module.parameters() if p.ndim > 1]
        rest = [p for p in module.parameters() if p.ndim <= 1]
        groups = [{"params": kernels, "weight_decay": 0.1}, {"params": rest, "adapt": False}]
        return LARS(groups, 0.3, **variant)

    def train(module: nn.Module, optimizer: LARS, seeds: range) -> None:
        for seed in seeds:
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
            optimizer.param_groups[0]["lr"] = 0.1 * (seed + 1)
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()

    optimizer = build(net)
    train(net, optimizer, range(3))
    torch.save(
        {"net": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt"
    )
    train(net, optimizer, range(3, 6))

    torch.manual_seed(1)
    again = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    resumed = build(again)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["optimizer"])
    train(again, resumed, range(3, 6))
    for weight, expected in zip(again.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_left_as_they_were_and_those_without_one_stay(variant):
    weight, idle = with_gradient([3.0, 4.0], [1.0, 2.0]), nn.Parameter(torch.ones(2))
    optimizer = LARS([weight, idle], 0.5, weight_decay=0.1, **variant)
    optimizer.step()
    assert weight.grad.tolist() == [1.0, 2.0]
    assert idle.tolist() == [1.0, 1.0]
    assert idle not in optimizer.state


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"momentum": 1.0}, {"weight_decay": -0.1}, {"trust_coefficient": 0.0}]
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LARS([nn.Parameter(torch.ones(2))], **{"lr": 0.1, **wrong})
