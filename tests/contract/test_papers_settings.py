"""The settings of the papers, in the profiles that promise them."""

from typing import Any

import pytest
import yaml

from pipeline import profiles
from stages.params import Params, check_params

# SimCLR (v1), 2.2, B.5, B.6; SimCLRv2, 3.1, and the README of its code.
PRETRAINING = {
    "imagenet_v1": {
        "head.depth": 2,
        "duration": "1000 epochs",
        "warmup": "10 epochs",
        "batch_size": 4096,
        "temperature": 0.1,
        "loss.kind": "nt_xent",
        "memory.kind": "none",
        "optimizer.name": "lars",
        "optimizer.base_lr": 0.3,
        "optimizer.lr_scaling": "linear",
        "optimizer.weight_decay": 1e-6,
        "views.brightness_kind": "v1",
        "views.resize": "bicubic_tf1",
    },
    "imagenet": {
        "head.depth": 3,
        "duration": "800 epochs",
        "warmup": "40 epochs",
        "batch_size": 4096,
        "temperature": 0.1,
        "loss.kind": "nt_xent",
        "memory.kind": "simclr",
        "memory.size": 65536,
        "memory.decay": 0.999,
        "optimizer.name": "lars",
        "optimizer.base_lr": 0.1,
        "optimizer.lr_scaling": "sqrt",
        "optimizer.weight_decay": 1e-4,
        "views.brightness_kind": "v2",
    },
}
VIEWS = {
    "convention": "official",
    "crop_area": (0.08, 1.0),
    "flip_probability": 0.5,
    "jitter_probability": 0.8,
    "brightness": 0.8,
    "contrast": 0.8,
    "saturation": 0.8,
    "hue": 0.2,
    "random_order": True,
    "grayscale_probability": 0.2,
    "blur_probability": 0.5,
    "blur_sigma": (0.1, 2.0),
}


def params_of(profile: str) -> Params:
    return check_params(yaml.safe_load(profiles.text_of(profile)))


def value(section: Any, name: str) -> Any:
    for key in name.split("."):
        section = getattr(section, key)
    return section


@pytest.mark.parametrize("profile", PRETRAINING)
def test_pretraining_is_the_papers(profile: str):
    pretrain = params_of(profile).pretrain
    wanted = PRETRAINING[profile] | {f"views.{name}": setting for name, setting in VIEWS.items()}
    assert {name: value(pretrain, name) for name in wanted} == wanted


@pytest.mark.parametrize(("profile", "weight_decay"), [("imagenet_v1", 0.0), ("imagenet", 1e-6)])
def test_linear_evaluation_is_the_papers(profile: str, weight_decay: float):
    probe = params_of(profile).probe
    assert probe.method == "sgd"
    assert probe.sgd is not None
    optimizer = probe.sgd.optimizer
    assert (probe.sgd.duration, probe.sgd.warmup, probe.sgd.batch_size) == ("90 epochs", None, 4096)
    assert (optimizer.name, optimizer.base_lr, optimizer.lr_scaling) == ("sgd", 0.1, "linear")
    assert optimizer.weight_decay == weight_decay


@pytest.mark.parametrize(
    ("profile", "layers", "teacher_layer"), [("imagenet_v1", [0], 0), ("imagenet", [0, 1], 1)]
)
def test_fine_tuning_starts_where_the_papers_do(
    profile: str, layers: list[int], teacher_layer: int
):
    params = params_of(profile)
    assert params.finetune.layers == layers
    assert params.distill.teacher_layer == teacher_layer
    assert params.finetune.optimizer.weight_decay == 0
    assert params.finetune.zero_init


@pytest.mark.parametrize("profile", PRETRAINING)
def test_distillation_is_simclrv2s(profile: str):
    distill = params_of(profile).distill
    assert distill.label_share == 0
    assert (distill.same.temperature, distill.same.duration) == (0.1, "400 epochs")
    assert (distill.small.temperature, distill.small.duration) == (1.0, "400 epochs")
