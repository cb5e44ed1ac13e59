import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from stages.models.batch_norm import (
    BatchNorm,
    frozen_moving_statistics,
    use_global_batch_norm,
)
from stages.models.momentum import MomentumEncoder


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3 + 5


def shaken(norm: BatchNorm) -> BatchNorm:
    """With parameters and statistics that aren't 0 or 1."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in norm.state_dict().values():
            value.copy_(torch.rand(value.shape, generator=random) + 0.5)
    return norm


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5, 2)])
def test_output_is_torchs_in_both_modes(shape: tuple[int, ...]):
    norm = shaken(BatchNorm(4))
    torchs = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(4)
    torchs.load_state_dict(norm.state_dict(), strict=False)
    x = images(*shape)
    torch.testing.assert_close(norm.eval()(x), torchs.eval()(x), rtol=0, atol=0)
    torch.testing.assert_close(norm.train()(x), torchs.train()(x), rtol=0, atol=0)


def test_moving_variance_follows_the_biased_batch_variance():
    norm = shaken(BatchNorm(2)).double()
    before = copy.deepcopy(norm.state_dict())
    x = torch.tensor([[1.0, 10.0], [3.0, 40.0]], dtype=torch.float64)  # variances 1 and 225
    norm(x)
    mean, variance = torch.tensor([2.0, 25.0]).double(), torch.tensor([1.0, 225.0]).double()
    expected_mean = 0.9 * before["running_mean"] + 0.1 * mean
    expected_variance = 0.9 * before["running_var"] + 0.1 * variance
    torch.testing.assert_close(norm.running_mean, expected_mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(norm.running_var, expected_variance, rtol=1e-14, atol=0)


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_a_single_value_per_channel_gives_beta_and_no_gradient_to_the_input(shape):
    norm = shaken(BatchNorm(3))
    beta, variance = norm.bias.detach().clone(), norm.running_var.clone()
    x = images(*shape).requires_grad_()
    y = norm(x)
    torch.testing.assert_close(y.flatten(), beta, rtol=0, atol=0)
    torch.testing.assert_close(norm.running_var, 0.9 * variance)
    y.sum().backward()
    assert x.grad.abs().max() == 0
    assert norm.weight.grad.tolist() == [0, 0, 0]
    assert norm.bias.grad.tolist() == [1, 1, 1]


def test_two_passes_before_backward_are_allowed():
    norm = BatchNorm(4)
    loss = norm(images(3, 4)).square().sum() + norm(images(5, 4, seed=1)).square().sum()
    loss.backward()
    assert torch.isfinite(norm.weight.grad).all()


def test_without_beta_there_is_one_parameter():
    norm = BatchNorm(4, center=False)
    assert list(norm.state_dict()) == ["weight", "running_mean", "running_var"]
    torch.testing.assert_close(norm(images(64, 4)).mean(dim=0), torch.zeros(4), rtol=0, atol=1e-6)


def test_zero_gamma_starts_a_branch_as_nothing():
    assert BatchNorm(4, zero_gamma=True)(images(8, 4)).abs().max() == 0


def test_frozen_moving_statistics_stay_and_thaw_again():
    norm = BatchNorm(4)
    with frozen_moving_statistics(norm):
        norm(images(8, 4))
        assert norm.running_mean.abs().max() == 0
    norm(images(8, 4))
    assert norm.running_mean.abs().max() > 0


def test_channels_last_stays_channels_last():
    x = images(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    assert BatchNorm(8)(x).is_contiguous(memory_format=torch.channels_last)


def test_bfloat16_images_keep_float32_statistics():
    norm = BatchNorm(4)
    y = norm(images(16, 4, 3, 3).bfloat16())
    assert (y.dtype, norm.running_mean.dtype) == (torch.bfloat16, torch.float32)


BATCH_OF_RANK = (slice(0, 5), slice(5, 7))  # not the same share
N_IMAGES = 7


def network(with_images: bool) -> nn.Module:
    torch.manual_seed(3)
    first = nn.Conv2d(3, 4, 3) if with_images else nn.Linear(3, 4)
    norms = shaken(BatchNorm(4)), shaken(BatchNorm(4, center=False))
    return nn.Sequential(first, norms[0], nn.Tanh(), norms[1]).double()


def batch(with_images: bool) -> tuple[Tensor, Tensor]:
    x = images(N_IMAGES, 3)
    if with_images:
        x = images(N_IMAGES, 3, 6, 5).contiguous(memory_format=torch.channels_last)
    y_shape = (N_IMAGES, 4, 4, 3) if with_images else (N_IMAGES, 4)
    return x.double(), images(*y_shape, seed=2).double()


def one_pass(model: nn.Module, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Output, gradients and statistics after a pass whose loss is a sum over images."""
    x = x.clone().requires_grad_()
    y = model(x)
    (y * target).square().sum().backward()
    gradients = {f"grad {name}": p.grad for name, p in model.named_parameters()}
    return {"y": y.detach(), "grad x": x.grad, **gradients, **dict(model.named_buffers())}


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for with_images in (False, True):
        model = network(with_images)
        use_global_batch_norm(model, dist.group.WORLD)
        x, target = batch(with_images)
        rows = BATCH_OF_RANK[rank]
        torch.save(one_pass(model, x[rows], target[rows]), f"{folder}/{with_images}_{rank}.pt")
    momentum = MomentumEncoder(model)
    torch.testing.assert_close(momentum(x[rows]), model(x[rows]), rtol=0, atol=0)
    in_bfloat16 = model[1].float()(torch.ones(2, 4, 3, 3, dtype=torch.bfloat16) + rank)
    in_bfloat16.sum().backward()
    assert in_bfloat16.dtype == torch.bfloat16
    use_global_batch_norm(model, None)
    assert model[1].process_group is None
    dist.destroy_process_group()


@pytest.mark.equality
def test_two_processes_with_unequal_batches_equal_one(tmp_path: Path):
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    for with_images in (False, True):
        alone = one_pass(network(with_images), *batch(with_images))
        ranks = [torch.load(tmp_path / f"{with_images}_{rank}.pt") for rank in (0, 1)]
        for name, expected in alone.items():
            parts = [rank[name] for rank in ranks]
            if name in ("y", "grad x"):
                together = torch.cat(parts)
            elif name.startswith("grad"):
                together = parts[0] + parts[1]
            else:
                assert torch.equal(parts[0], parts[1])
                together = parts[0]
            torch.testing.assert_close(
                together, expected, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}"
            )
