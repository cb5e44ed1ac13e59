import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.losses.nt_xent import contrastive_accuracy_and_entropy, moco_loss, nt_xent
from stages.losses.streaming_nt_xent import streaming_nt_xent

both_forms = pytest.mark.parametrize("loss_function", [nt_xent, streaming_nt_xent])


def cosine(a: Tensor, b: Tensor) -> float:
    return (a @ b / (a.norm() * b.norm())).item()


def by_loops(
    z0: Tensor,
    z1: Tensor,
    temperature: float,
    keys: Tensor | None = None,
    queue: Tensor | None = None,
) -> float:
    """Algorithm 1 of SimCLR, with the memory of SimCLRv2, one pair at a time."""
    views, n = [*z0, *z1], len(z0)
    total = 0.0
    for i, anchor in enumerate(views):
        partner = (i + n) % (2 * n)
        similarities = [cosine(anchor, view) for j, view in enumerate(views) if j != i]
        if keys is not None:
            similarities += [cosine(anchor, k) for j, k in enumerate(keys) if j % n != i % n]
        if queue is not None:
            similarities += [cosine(anchor, k) for k in queue]
        denominator = sum(math.exp(s / temperature) for s in similarities)
        total -= cosine(anchor, views[partner]) / temperature - math.log(denominator)
    return total / len(views)


def draw_keys(n_keys: int, width: int, seed: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n_keys, width, generator=generator, dtype=dtype), dim=1)


@both_forms
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_loss_is_algorithm_1_written_as_loops(draw_views, loss_function, temperature):
    z0_BP, z1_BP = draw_views(5, 4)
    expected = by_loops(z0_BP, z1_BP, temperature)
    assert loss_function(z0_BP, z1_BP, temperature).item() == pytest.approx(expected, rel=1e-10)


@both_forms
@pytest.mark.parametrize("n_in_queue", [0, 7])
def test_memory_adds_all_keys_but_those_of_the_anchors_own_image(
    draw_views, loss_function, n_in_queue
):
    z0_BP, z1_BP = draw_views(5, 4)
    keys_AP, queue_QP = draw_keys(10, 4), draw_keys(n_in_queue, 4, seed=6)
    loss = loss_function(z0_BP, z1_BP, 0.2, current_keys_AP=keys_AP, queue_QP=queue_QP)
    assert loss.item() == pytest.approx(by_loops(z0_BP, z1_BP, 0.2, keys_AP, queue_QP), rel=1e-10)


@both_forms
def test_own_images_keys_change_nothing_for_its_anchors(draw_views, loss_function):
    z0_BP, z1_BP = draw_views(4, 6)
    keys_AP = draw_keys(8, 6)
    others = keys_AP.clone()
    others[[1, 5]] = draw_keys(2, 6, seed=9)
    losses = [
        loss_function(z0_BP, z1_BP, 0.1, current_keys_AP=keys, rows=slice(1, 2)).item()
        for keys in (keys_AP, others)
    ]
    assert losses[0] == losses[1]


@both_forms
def test_no_gradient_flows_into_the_memory(draw_views, loss_function):
    z0_BP, z1_BP = draw_views(4, 6)
    keys_AP, queue_QP = draw_keys(8, 6).requires_grad_(), draw_keys(3, 6).requires_grad_()
    loss_function(z0_BP, z1_BP, 0.1, current_keys_AP=keys_AP, queue_QP=queue_QP).backward()
    assert keys_AP.grad is None
    assert queue_QP.grad is None
    assert z0_BP.grad.abs().sum() > 0


@both_forms
@pytest.mark.parametrize("with_memory", [False, True])
def test_mean_over_processes_of_their_rows_is_the_whole_loss(
    draw_views, loss_function, with_memory
):
    z0_BP, z1_BP = draw_views(12, 6)
    memory = {"current_keys_AP": draw_keys(24, 6), "queue_QP": draw_keys(5, 6, seed=6)}
    arguments = (z0_BP, z1_BP, 0.1)
    whole = loss_function(*arguments, **(memory if with_memory else {}))
    parts = [
        loss_function(*arguments, rows=slice(start, start + 3), **(memory if with_memory else {}))
        for start in (0, 3, 6, 9)
    ]
    mean = torch.stack(parts).mean()
    torch.testing.assert_close(mean, whole, rtol=1e-12, atol=0)
    assert parts[0].item() != pytest.approx(parts[1].item(), rel=1e-3)
    for of_mean, of_whole in zip(
        torch.autograd.grad(mean, [z0_BP, z1_BP]),
        torch.autograd.grad(whole, [z0_BP, z1_BP]),
        strict=True,
    ):
        torch.testing.assert_close(of_mean, of_whole, rtol=1e-10, atol=1e-14)


@both_forms
def test_gradient_is_that_of_finite_differences(draw_views, loss_function):
    z0_BP, z1_BP = draw_views(4, 3)
    keys_AP, queue_QP = draw_keys(8, 3), draw_keys(5, 3)

    def loss(z0: Tensor, z1: Tensor) -> Tensor:
        return loss_function(
            z0, z1, 0.3, current_keys_AP=keys_AP, queue_QP=queue_QP, rows=slice(1, 3)
        )

    assert torch.autograd.gradcheck(loss, (z0_BP, z1_BP))
    assert torch.autograd.gradcheck(lambda a, b: loss_function(a, b, 0.3), (z0_BP, z1_BP))


@both_forms
@pytest.mark.parametrize("n_images", [2, 64])
def test_loss_of_a_collapsed_encoder_is_chance(loss_function, n_images):
    same_BP = torch.ones(n_images, 8)
    loss = loss_function(same_BP, same_BP, 0.5).item()
    assert loss == pytest.approx(math.log(2 * n_images - 1), rel=1e-6)


@both_forms
def test_loss_of_perfect_views_is_near_0_at_a_low_temperature(loss_function):
    z_BP = torch.eye(8)
    loss = loss_function(z_BP, z_BP, 0.1).item()
    assert loss == pytest.approx(math.log1p(14 * math.exp(-10)), rel=1e-3)


@both_forms
def test_scale_of_z_does_not_matter_when_normalised_and_does_otherwise(draw_views, loss_function):
    z0_BP, z1_BP = draw_views(6, 4)
    arguments = (z0_BP * 3, z1_BP * 0.5, 0.5)
    unscaled = loss_function(z0_BP, z1_BP, 0.5).item()
    assert loss_function(*arguments).item() == pytest.approx(unscaled, rel=1e-10)
    assert loss_function(*arguments, normalize=False).item() != pytest.approx(unscaled, rel=0.01)


@both_forms
def test_half_precision_and_autocast_are_computed_in_float32(draw_views, loss_function):
    z0_BP, z1_BP = (z_BP.detach().bfloat16() for z_BP in draw_views(16, 8))
    expected = loss_function(z0_BP.float(), z1_BP.float(), 0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_function(z0_BP, z1_BP, 0.05)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)


@both_forms
def test_shapes_that_would_broadcast_are_refused(loss_function):
    z_BP = torch.ones(4, 8)
    with pytest.raises(ValueError, match="differ in shape"):
        loss_function(z_BP, z_BP[:1], 0.1)
    with pytest.raises(ValueError, match="current keys"):
        loss_function(z_BP, z_BP, 0.1, current_keys_AP=z_BP)
    with pytest.raises(ValueError, match="queue"):
        loss_function(z_BP, z_BP, 0.1, queue_QP=torch.ones(4, 7))
    with pytest.raises(ValueError, match="rows"):
        loss_function(z_BP, z_BP, 0.1, rows=slice(4, 4))


def test_moco_loss_is_one_direction_over_past_keys_written_as_loops(draw_views):
    q_BP, k_BP = draw_views(4, 6)
    k_BP, queue_QP = F.normalize(k_BP.detach(), dim=1).requires_grad_(), draw_keys(9, 6)
    expected = 0.0
    for query, key in zip(q_BP, k_BP, strict=True):
        logits = [cosine(query, other) / 0.07 for other in [key, *queue_QP]]
        expected += (math.log(sum(map(math.exp, logits))) - logits[0]) / 4
    loss = moco_loss(q_BP, k_BP, queue_QP, 0.07)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    loss.backward()
    assert k_BP.grad is None
    assert q_BP.grad.abs().sum() > 0


def test_moco_loss_is_0_while_the_queue_is_empty(draw_views):
    q_BP, k_BP = draw_views(4, 6)
    assert moco_loss(q_BP, k_BP, torch.zeros(0, 6, dtype=q_BP.dtype), 0.2).item() == 0


def test_contrastive_accuracy_counts_first_views_nearest_to_their_second():
    z0_BP = torch.eye(4)
    z1_BP = torch.eye(4)[[0, 1, 3, 2]]
    accuracy, entropy = contrastive_accuracy_and_entropy(z0_BP, z1_BP, 1.0)
    assert accuracy.item() == 0.5
    shares = [math.e / (math.e + 3), *[1 / (math.e + 3)] * 3]
    assert entropy.item() == pytest.approx(-sum(p * math.log(p) for p in shares), rel=1e-6)
