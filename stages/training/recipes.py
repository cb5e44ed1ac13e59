"""Params as the plain values that inner code takes."""

from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from stages.data.evaluation_views import EvaluationRecipe
from stages.data.views import ViewRecipe
from stages.optim.build import build_optimizer
from stages.optim.schedules import scaled_lr
from stages.params import Params
from stages.sections.optimizer import OptimizerParams
from stages.sections.views import ViewParams
from stages.training.runtime import Runtime


def start_runtime(params: Params) -> Runtime:
    """Device, threads and speed as params.yaml has them; processes as torchrun does.

    Raises:
        UserError: a GPU is asked for and none can be used.
    """
    runtime = params.runtime
    return Runtime.start(
        runtime.device,
        runtime.threads,
        channels_last=runtime.channels_last,
        compile_mode=runtime.compile,
        fused_optimizer=runtime.fused_optimizer,
    )


def view_recipe(views: ViewParams, image_size: int) -> ViewRecipe:
    """The random views of params.yaml."""
    preset = ViewRecipe.official if views.convention == "official" else ViewRecipe.torchvision
    recipe = preset(views.size or image_size)
    return replace(
        recipe,
        resize_kernel=views.resize or recipe.resize_kernel,
        crop_area=views.crop_area,
        flip_probability=views.flip_probability,
        jitter_probability=views.jitter_probability,
        brightness=views.brightness,
        contrast=views.contrast,
        saturation=views.saturation,
        hue=views.hue,
        brightness_kind=views.brightness_kind,
        random_order=views.random_order,
        grayscale_probability=views.grayscale_probability,
        blur_probability=views.blur_probability,
        blur_sigma=views.blur_sigma,
    )


def evaluation_recipe(params: Params) -> EvaluationRecipe:
    """What an image is scored and embedded as."""
    evaluation = params.evaluation
    return EvaluationRecipe(
        params.data.image_size, evaluation.convention, evaluation.resize, evaluation.keep
    )


def optimizer_for(
    model: nn.Module, optimizer: OptimizerParams, batch_size: int, *, fused: bool = False
) -> Optimizer:
    """The optimizer of params.yaml at its peak learning rate for a batch of so many images."""
    return build_optimizer(
        optimizer.name,
        model,
        lr=scaled_lr(optimizer.base_lr, batch_size, optimizer.lr_scaling),
        weight_decay=optimizer.weight_decay,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        classic_momentum=optimizer.classic_momentum,
        trust_coefficient=optimizer.trust_coefficient,
        fused=fused,
    )


def architecture_of(params: Params) -> dict[str, Any]:
    """Plain arguments that rebuild f and g; see `products.build_from`."""
    return {
        "encoder": params.pretrain.encoder.model_dump(),
        "channels": params.data.channels,
        "head": params.pretrain.head.model_dump(),
    }
