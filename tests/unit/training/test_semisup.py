"""Pseudo-labels: their loss against loops, their weight, and the batches they are made on."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from stages.data.store import ImageStore
from stages.data.views import ViewRecipe
from stages.models.heads import LinearClassifier
from stages.training.batches import Batch, ViewLoader
from stages.training.runtime import Runtime
from stages.training.semisup import (
    MixedBatch,
    beside,
    fixmatch_step,
    pseudo_label_loss,
    pseudo_label_step,
    ramped,
)
from stages.training.state import TrainState

CPU = Runtime(torch.device("cpu"))


def test_pseudo_label_loss_is_the_mean_over_all_with_unsure_ones_as_0():
    generator = torch.Generator().manual_seed(0)
    told_by_UK = 3 * torch.randn(40, 5, generator=generator)
    learnt_by_UK = torch.randn(40, 5, generator=generator)
    expected = 0.0
    sure = 0
    for told, learnt in zip(told_by_UK.tolist(), learnt_by_UK.tolist(), strict=True):
        shares = [math.exp(value) / sum(math.exp(v) for v in told) for value in told]
        if max(shares) >= 0.8:
            sure += 1
            chosen = shares.index(max(shares))
            expected -= math.log(math.exp(learnt[chosen]) / sum(math.exp(v) for v in learnt))
    assert 0 < sure < 40
    loss = pseudo_label_loss(told_by_UK, learnt_by_UK, 0.8)
    assert loss.item() == pytest.approx(expected / 40, rel=1e-5)


def test_no_gradient_reaches_what_the_pseudo_labels_were_told_by():
    told_by_UK = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    learnt_by_UK = told_by_UK.detach().clone().requires_grad_()
    pseudo_label_loss(told_by_UK, learnt_by_UK, 0.0).backward()
    assert told_by_UK.grad is None
    assert learnt_by_UK.grad is not None


@pytest.mark.parametrize(
    ("done", "weight"), [(0.0, 0.0), (0.1, 0.0), (0.35, 1.5), (0.6, 3.0), (1.0, 3.0)]
)
def test_weight_of_pseudo_labels_rises_between_two_shares_of_the_run(done: float, weight: float):
    assert ramped(3.0, (0.1, 0.6), done) == pytest.approx(weight)


def test_a_ramp_of_no_length_is_a_step():
    assert [ramped(1.0, (0.5, 0.5), done) for done in (0.49, 0.5)] == [0.0, 1.0]


@pytest.fixture
def shards(make_noise_shards: Callable[..., Path], tmp_path: Path) -> Path:
    return make_noise_shards(tmp_path, per_class=20, side=16)


def open_train(shards: Path, *, with_labels: bool) -> ImageStore:
    return ImageStore.open(shards, "train", with_labels=with_labels, channels=1, max_pixels=10_000)


def test_unlabelled_images_are_a_function_of_seed_and_step_and_come_in_two_kinds(shards: Path):
    weak, strong = ViewRecipe.official(16), ViewRecipe.official(16)
    unlabelled = open_train(shards, with_labels=False)
    labelled = ViewLoader(open_train(shards, with_labels=True), weak, 4, n_views=1, seed=0)
    made = beside(unlabelled, 3, weak, strong, 0)(labelled)
    batches = list(made(0, 5))
    assert all(isinstance(batch, MixedBatch) for batch in batches)
    third, again = batches[3], next(iter(made(3, 5)))
    assert isinstance(third, MixedBatch)
    assert isinstance(again, MixedBatch)
    assert third.weak_UCHW is not None
    assert third.strong_UCHW is not None
    assert third.weak_UCHW.shape == third.strong_UCHW.shape == (12, 1, 16, 16)
    torch.testing.assert_close(third.weak_UCHW, again.weak_UCHW, rtol=0, atol=0)
    torch.testing.assert_close(third.strong_UCHW, again.strong_UCHW, rtol=0, atol=0)
    # The same recipe for both, and still other views: their random numbers are their own.
    assert not torch.equal(third.weak_UCHW, third.strong_UCHW)
    with pytest.raises(ValueError, match="without labels"):
        _ = unlabelled.classes


def one_step(
    step: Callable[[TrainState, Batch], object],
    weak: float,
    strong: float | None = None,
    at: int = 0,
) -> torch.Tensor:
    """The classifier's weights after one step in which all unlabelled pixels have a value."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), LinearClassifier(16, 2))
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=1.0), step=at)
    images = torch.rand(1, 4, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    weak_UCHW = torch.full((8, 1, 4, 4), weak)
    strong_UCHW = None if strong is None else torch.full((8, 1, 4, 4), strong)
    batch = MixedBatch(
        images, torch.arange(4).numpy(), torch.tensor([0, 1, 0, 1]), weak_UCHW, strong_UCHW
    )
    step(state, batch)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_unsure_images_teach_fixmatch_nothing_and_sure_ones_do():
    unsure = fixmatch_step(CPU, threshold=1.0, weight=1.0)
    torch.testing.assert_close(
        one_step(unsure, 0.1, 0.2), one_step(unsure, 0.9, 0.8), rtol=0, atol=0
    )
    sure = fixmatch_step(CPU, threshold=0.0, weight=1.0)
    assert not torch.equal(one_step(sure, 0.1, 0.2), one_step(sure, 0.1, 0.8))


def test_plain_pseudo_labels_teach_nothing_before_their_ramp():
    step = pseudo_label_step(CPU, 1.0, (0.5, 0.6), total_steps=10)
    torch.testing.assert_close(one_step(step, 0.1), one_step(step, 0.9), rtol=0, atol=0)
    assert not torch.equal(one_step(step, 0.1, at=8), one_step(step, 0.9, at=8))
