"""Params as the plain values that inner code takes."""

from dataclasses import replace
from typing import Any

from stages.data.views import ViewRecipe
from stages.params import Params, ViewParams


def view_recipe(views: ViewParams, image_size: int) -> ViewRecipe:
    """The random views of params.yaml."""
    preset = ViewRecipe.official if views.convention == "official" else ViewRecipe.torchvision
    return replace(
        preset(views.size or image_size),
        crop_area=views.crop_area,
        flip_probability=views.flip_probability,
        jitter_probability=views.jitter_probability,
        brightness=views.brightness,
        contrast=views.contrast,
        saturation=views.saturation,
        hue=views.hue,
        grayscale_probability=views.grayscale_probability,
        blur_probability=views.blur_probability,
        blur_sigma=views.blur_sigma,
    )


def architecture_of(params: Params) -> dict[str, Any]:
    """Plain arguments that rebuild f and g; see `products.build_from`."""
    return {
        "encoder": params.pretrain.encoder.model_dump(),
        "channels": params.data.channels,
        "head": params.pretrain.head.model_dump(),
    }
