import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.batch_norm import BatchNorm
from stages.models.momentum import MomentumEncoder, NegativeQueue


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), BatchNorm(3))


def keys(start: int, count: int) -> Tensor:
    """Key i is (cos i, sin i)."""
    angles = torch.arange(start, start + count).float()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def numbers(queue: NegativeQueue, total: int) -> set[int]:
    """Which of the first `total` keys the queue holds."""
    likeness = queue.negatives() @ keys(0, total).T
    assert (likeness.max(dim=1).values > 1 - 1e-5).all()
    return set(likeness.argmax(dim=1).tolist())


def test_momentum_parameters_follow_the_closed_form():
    """With the network held still, n updates leave decay**n of the first distance."""
    model = network()
    momentum = MomentumEncoder(model, decay=0.9)
    start = [parameter.clone() for parameter in momentum.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    for _ in range(20):
        momentum.update(model)
    for mine, theirs, first in zip(momentum.parameters(), model.parameters(), start, strict=True):
        torch.testing.assert_close(mine, theirs + (first - theirs) * 0.9**20)


def test_momentum_copy_has_no_gradients_and_does_not_share_weights():
    model = network()
    momentum = MomentumEncoder(model)
    assert not momentum(torch.randn(5, 4)).requires_grad
    assert not any(parameter.requires_grad for parameter in momentum.parameters())
    with torch.no_grad():
        model[0].weight.add_(1)
    assert not torch.equal(momentum.network[0].weight, model[0].weight)


def test_momentum_statistics_come_from_its_own_batches():
    model = network().eval()
    momentum = MomentumEncoder(model)
    model[1].running_mean.fill_(7)
    momentum.update(model)
    assert momentum.network[1].running_mean.tolist() == [0, 0, 0]
    momentum(torch.randn(5, 4) + 3)
    assert momentum.network[1].running_mean.abs().min() > 0


def test_another_networks_parameters_are_refused():
    with pytest.raises(ValueError, match="has 2 parameters, its momentum copy 4"):
        MomentumEncoder(network()).update(nn.Linear(4, 3))


def test_queue_starts_empty_and_fills():
    queue = NegativeQueue(10, 2)
    assert (queue.filled, queue.negatives().shape, queue.mean_age()) == (0, (0, 2), 0)
    queue.enqueue(keys(0, 4))
    assert queue.filled == 4
    assert numbers(queue, 4) == {0, 1, 2, 3}


def test_queue_wraps_when_its_size_is_no_multiple_of_the_batch():
    queue = NegativeQueue(10, 2)
    for start in range(0, 20, 4):
        queue.enqueue(keys(start, 4))
        last = start + 4
        assert numbers(queue, last) == set(range(max(last - 10, 0), last))


def test_a_batch_larger_than_the_queue_leaves_its_end():
    queue = NegativeQueue(3, 2)
    queue.enqueue(keys(0, 2))
    queue.enqueue(keys(2, 8))
    assert numbers(queue, 10) == {7, 8, 9}


def test_queue_normalises_keys():
    queue = NegativeQueue(4, 2)
    queue.enqueue(3 * keys(0, 4))
    torch.testing.assert_close(queue.negatives().norm(dim=1), torch.ones(4))


def test_mean_age_counts_steps():
    queue = NegativeQueue(4, 2)
    queue.enqueue(keys(0, 2))
    assert queue.mean_age() == 0
    queue.enqueue(keys(2, 1))
    queue.enqueue(keys(3, 1))
    assert queue.mean_age() == (2 + 2 + 1 + 0) / 4
    queue.enqueue(keys(4, 1))
    assert queue.mean_age() == (3 + 2 + 1 + 0) / 4


def test_mocos_queue_starts_full_of_random_unit_vectors():
    torch.manual_seed(0)
    queue = NegativeQueue(50, 8, random_start=True)
    assert queue.filled == 50
    torch.testing.assert_close(queue.negatives().norm(dim=1), torch.ones(50))
    assert queue.negatives().mean(dim=0).norm() < 0.3
    queue.enqueue(F.normalize(torch.ones(3, 8), dim=1))
    assert (queue.negatives() @ torch.ones(8) > 8**0.5 - 1e-4).sum() == 3


def test_a_restored_queue_goes_on_bit_for_bit():
    queue, restored = NegativeQueue(10, 2), NegativeQueue(10, 2)
    for start in range(0, 12, 3):
        queue.enqueue(keys(start, 3))
    restored.load_state_dict(copy.deepcopy(queue.state_dict()))
    assert restored.filled == 10
    for one in (queue, restored):
        one.enqueue(keys(12, 3))
    for name, value in queue.state_dict().items():
        torch.testing.assert_close(restored.state_dict()[name], value, rtol=0, atol=0)
    assert restored.mean_age() == queue.mean_age()


def test_enqueueing_before_backward_is_safe():
    queue = NegativeQueue(4, 2)
    queue.enqueue(keys(0, 4))
    z_AP = keys(7, 3).requires_grad_()
    loss = (z_AP @ queue.negatives().T).exp().sum()
    expected = (z_AP @ keys(0, 4).T).exp() @ keys(0, 4)
    queue.enqueue(keys(4, 4))
    loss.backward()
    torch.testing.assert_close(z_AP.grad, expected.detach())
