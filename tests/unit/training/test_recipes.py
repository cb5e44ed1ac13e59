"""Each value of params.yaml reaches the code that it is for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from stages.data.evaluation_views import EvaluationRecipe
from stages.data.store import ImageStore
from stages.data.views import ViewRecipe
from stages.errors import UserError
from stages.models.simclr import build_encoder
from stages.optim.lars import LARS
from stages.params import Params, check_params
from stages.sections.optimizer import OptimizerParams
from stages.sections.views import ViewParams
from stages.training.loading import loader_of
from stages.training.pretraining import images_of
from stages.training.recipes import evaluation_recipe, optimizer_for, view_recipe
from stages.training.runtime import Runtime

ROOT = Path(__file__).parents[3]


def params_with(**evaluation: Any) -> Params:
    written = yaml.safe_load((ROOT / "pipeline/profiles/smoke.yaml").read_text(encoding="utf-8"))
    written["evaluation"] |= evaluation
    return check_params(written)


def test_every_param_of_a_view_changes_its_recipe():
    plain = ViewParams(convention="official", crop_area=(0.08, 1.0), size=64)
    others = {
        "convention": "torchvision",
        "size": 32,
        "crop_area": (0.2, 1.0),
        "flip_probability": 0.1,
        "jitter_probability": 0.1,
        "brightness": 0.1,
        "contrast": 0.1,
        "saturation": 0.1,
        "hue": 0.1,
        "brightness_kind": "v1",
        "random_order": False,
        "grayscale_probability": 0.1,
        "blur_probability": 0.1,
        "blur_sigma": (0.5, 1.0),
        "resize": "bicubic_tf1",
    }
    assert set(others) == set(ViewParams.model_fields)
    recipes = [view_recipe(plain, 96)]
    recipes += [view_recipe(plain.model_copy(update={k: v}), 96) for k, v in others.items()]
    assert len(set(recipes)) == len(others) + 1


@pytest.mark.parametrize("convention", ["official", "torchvision"])
def test_without_a_kernel_crops_are_resized_as_the_convention_does(convention: Any):
    views = ViewParams(convention=convention, crop_area=(0.08, 1.0))
    preset = ViewRecipe.official if convention == "official" else ViewRecipe.torchvision
    assert view_recipe(views, 96) == preset(96)


def test_an_image_is_evaluated_as_the_params_say():
    assert evaluation_recipe(params_with()) == EvaluationRecipe(28, "official", None, None)
    changed = params_with(convention="torchvision", resize="bicubic_tf1", keep=0.5)
    assert evaluation_recipe(changed) == EvaluationRecipe(28, "torchvision", "bicubic_tf1", 0.5)


def test_an_optimizer_has_every_setting_and_the_scaled_lr():
    settings = OptimizerParams(
        name="lars",
        base_lr=0.3,
        lr_scaling="linear",
        weight_decay=1e-6,
        momentum=0.8,
        nesterov=True,
        classic_momentum=False,
        trust_coefficient=0.02,
    )
    optimizer = optimizer_for(build_encoder(10, 0.0625), settings, 512)
    assert isinstance(optimizer, LARS)
    group = optimizer.param_groups[0]
    expected = {
        "lr": 0.6,
        "weight_decay": 1e-6,
        "momentum": 0.8,
        "nesterov": True,
        "classic_momentum": False,
        "trust_coefficient": 0.02,
        "adapt": True,
    }
    assert {name: group[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(("name", "nesterov"), [("lars", False), ("sgd", True)])
def test_nesterov_left_open_is_the_official_choice(name: Any, nesterov: bool):
    settings = OptimizerParams(name=name, base_lr=0.1)
    optimizer = optimizer_for(build_encoder(10, 0.0625), settings, 8)
    assert {group["nesterov"] for group in optimizer.param_groups} == {nesterov}


def test_sgd_without_either_official_choice_is_torchs_own():
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    settings = OptimizerParams(name="sgd", base_lr=0.1, nesterov=False, classic_momentum=False)
    optimizers = [
        optimizer_for(ours, settings, 8),
        torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9),
    ]
    inputs = torch.randn(5, 4)
    for lr in (0.1, 0.05, 0.01):  # a changing lr tells inside the buffer from outside
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad()
            layer(inputs).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize(("asked", "threads"), [("auto", 1), (0, 0), (4, 4)])
def test_batches_are_made_as_the_params_say(asked: Any, threads: int):
    params = params_with()
    runtime = params.runtime.model_copy(update={"loader_threads": asked, "views_on": "cpu"})
    load = loader_of(params.model_copy(update={"runtime": runtime}), Runtime(torch.device("cpu")))
    assert load.keywords == {  # type: ignore[attr-defined]
        "device": torch.device("cpu"),
        "pinned": False,
        "n_threads": threads,
    }


def test_views_on_a_gpu_need_one():
    params = params_with()
    on_gpu = params.model_copy(
        update={"runtime": params.runtime.model_copy(update={"views_on": "gpu"})}
    )
    with pytest.raises(UserError, match=r"runtime.views_on: gpu, but training runs on cpu"):
        loader_of(on_gpu, Runtime(torch.device("cpu")))


def test_decoding_on_a_gpu_needs_one(tmp_path: Path, make_noise_shards: Callable[..., Path]):
    shards = make_noise_shards(tmp_path, per_class=8, side=8)
    store = ImageStore.open(shards, "train", with_labels=False, channels=1, max_pixels=100)
    params, cpu = params_with(), Runtime(torch.device("cpu"))
    assert images_of(params, store, cpu) is store
    on_gpu = params.model_copy(
        update={"pretrain": params.pretrain.model_copy(update={"decode_on": "gpu"})}
    )
    with pytest.raises(UserError, match=r"decode_on: gpu, but training runs on cpu.\n  Write cpu"):
        images_of(on_gpu, store, cpu)
