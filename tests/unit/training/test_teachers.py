"""What a teacher answers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.data.store import ImageStore
from stages.data.views import ViewRecipe, make_views
from stages.models.simclr import Classifier, build_classifier, build_encoder, build_simclr
from stages.training import teachers
from stages.training.batches import Batch
from stages.training.runtime import Runtime
from stages.training.teachers import answers_over_views, answers_to_the_same_view

CPU = Runtime(torch.device("cpu"))
RECIPE = ViewRecipe.crop_and_flip(16, crop_area=(0.3, 1.0))
TEMPERATURE = 0.5


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory, make_noise_shards: Callable[..., Path]
) -> ImageStore:
    shards = make_noise_shards(tmp_path_factory.mktemp("data"), per_class=12, side=16)
    return ImageStore.open(shards, "train", with_labels=False, channels=1, max_pixels=999)


@pytest.fixture(scope="module")
def teacher() -> Classifier:
    torch.manual_seed(1)
    encoder = build_encoder(10, 0.0625, stem="small_stride2", in_channels=1)
    return build_classifier(build_simclr(encoder, out_dim=8), from_layer=0, n_classes=4)


def batch_of(*positions: int) -> Batch:
    return Batch(torch.rand(1, len(positions), 1, 16, 16), np.array(positions))


def probabilities(logits: Tensor) -> Tensor:
    return (logits / TEMPERATURE).softmax(dim=1)


def test_the_paper_s_teacher_sees_the_image_at_hand(store: ImageStore, teacher: Classifier):
    batch = batch_of(3, 1)
    answers_BK = answers_to_the_same_view(teacher, CPU)(batch, batch.views_VBCHW[0])
    with torch.no_grad():
        torch.testing.assert_close(answers_BK, teacher.eval()(batch.views_VBCHW[0]))
    assert not answers_BK.requires_grad


@pytest.mark.parametrize("n_views", [1, 3])
@pytest.mark.parametrize("at_once", [256, 5])
def test_answers_over_views_are_the_mean_of_probabilities_by_position(
    store: ImageStore,
    teacher: Classifier,
    n_views: int,
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(teachers, "AT_ONCE", at_once)
    answers = answers_over_views(teacher, store, RECIPE, n_views, TEMPERATURE, 7, CPU)
    positions = np.array([6, 0, 2])
    views_VBCHW = make_views(
        store.images(positions),
        RECIPE,
        seed=7,
        epoch=teachers.BEFORE_ALL_EPOCHS,
        key_hashes=store.key_hashes[positions],
        n_views=n_views,
    )
    with torch.no_grad():
        each = [probabilities(teacher.eval()(views_BCHW)) for views_BCHW in views_VBCHW]
    batch = batch_of(*positions)
    found_BK = probabilities(answers(batch, batch.views_VBCHW[0]))
    torch.testing.assert_close(found_BK, torch.stack(each).mean(dim=0), rtol=1e-4, atol=1e-6)


def test_answers_over_views_can_teach(store: ImageStore, teacher: Classifier):
    answers = answers_over_views(teacher, store, RECIPE, 2, TEMPERATURE, 7, CPU)
    batch = batch_of(0, 1)
    logits_BK = torch.zeros(2, 4, requires_grad=True)
    (logits_BK * answers(batch, batch.views_VBCHW[0])).sum().backward()  # saves the answers
    assert logits_BK.grad is not None
