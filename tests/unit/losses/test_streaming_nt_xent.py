import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from stages.losses.nt_xent import nt_xent
from stages.losses.streaming_nt_xent import streaming_nt_xent


@pytest.mark.parametrize("n_images", [3, 256, 700, 2100])  # one tile, a tile's edge, many
@pytest.mark.parametrize("temperature", [0.01, 0.0167, 0.1, 1.0])
def test_value_and_gradient_are_those_of_the_whole_matrix(draw_views, n_images, temperature):
    views = draw_views(n_images, 8)
    losses = [loss_function(*views, temperature) for loss_function in (nt_xent, streaming_nt_xent)]
    torch.testing.assert_close(*losses, rtol=1e-11, atol=0)
    for expected, actual in zip(
        *(torch.autograd.grad(loss, views) for loss in losses), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10 * expected.abs().max())


@pytest.mark.parametrize("normalize", [True, False])
def test_memory_and_rows_are_those_of_the_whole_matrix_across_tiles(draw_views, normalize):
    views = draw_views(600, 8)
    keys_AP = F.normalize(torch.cat(draw_views(600, 8, seed=1)).detach(), dim=1)
    queue_QP = F.normalize(torch.cat(draw_views(400, 8, seed=2)).detach(), dim=1)
    losses = [
        loss_function(
            *views,
            0.1,
            current_keys_AP=keys_AP,
            queue_QP=queue_QP,
            rows=slice(30, 590),
            normalize=normalize,
        )
        for loss_function in (nt_xent, streaming_nt_xent)
    ]
    torch.testing.assert_close(*losses, rtol=1e-11, atol=0)
    for expected, actual in zip(
        *(torch.autograd.grad(loss, views) for loss in losses), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10 * expected.abs().max())


@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.5])
def test_float32_is_within_rounding_of_float64(draw_views, temperature):
    precise = draw_views(300, 64)
    rounded = [z_BP.detach().float().requires_grad_() for z_BP in precise]
    expected, loss = nt_xent(*precise, temperature), streaming_nt_xent(*rounded, temperature)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for of_precise, of_rounded in zip(
        torch.autograd.grad(expected, precise), torch.autograd.grad(loss, rounded), strict=True
    ):
        limit = 2e-5 * of_precise.abs().max().item()
        torch.testing.assert_close(of_rounded.double(), of_precise, rtol=0, atol=limit)


@pytest.mark.parametrize("temperature", [0.01, 1 / 60])
def test_far_apart_views_at_a_low_temperature_neither_overflow_nor_vanish(temperature):
    z0_BP = torch.cat([torch.eye(4), -torch.eye(4)]).requires_grad_()
    z1_BP = -z0_BP.detach()  # partners are opposite: the largest possible loss
    loss = streaming_nt_xent(z0_BP, z1_BP, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(2 / temperature, rel=1e-5)
    assert z0_BP.grad.isfinite().all()


def test_one_image_has_no_negatives_and_no_loss():
    z_BP = torch.ones(1, 4, requires_grad=True)
    for temperature in (0.01, 0.1):
        loss = streaming_nt_xent(z_BP, torch.ones(1, 4), temperature)
        loss.backward()
        assert loss.item() == 0
        assert not z_BP.grad.any()


class LargestResult(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation makes."""

    n_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.n_elements = max(self.n_elements, tensor.numel())
        return result


def test_no_tensor_grows_with_the_square_of_the_batch(draw_views):
    views = draw_views(2048, 4, dtype=torch.float32)
    with LargestResult() as streaming:
        streaming_nt_xent(*views, 0.1).backward()
    with LargestResult() as plain:
        nt_xent(*views, 0.1).backward()
    assert streaming.n_elements <= 1024 * 4096
    assert plain.n_elements >= 4096 * 4096
