"""Every random choice of a batch of views, drawn before a pixel is touched.

A view's choices depend on (seed, epoch, key, view) and the size of its image alone. Two programs
carry a plan out: `views.py` with operations on the whole batch, `fused_views.py` view by view.

Shapes: B images, V views, N = V * B; view n is of image n % B.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.data import colour, crops
from stages.data.random_numbers import Streams, join
from stages.data.view_recipe import ViewRecipe

# A view's draws, by number. Crops draw from 16 on, as often as they have to.
_FLIP, _JITTER, _FACTORS, _ORDER, _GRAYSCALE, _BLUR, _SIGMA = 0, 1, 2, 6, 10, 11, 12
_FIRST_CROP_DRAW = 16


@dataclass(frozen=True)
class ViewPlan:
    """What is done to each of N views.

    Attributes:
        boxes_N4: int64 (y, x, height, width) of the crop, in pixels of its image.
        flips_N: left to right.
        jittered_N: whether colours change at all.
        factors_N4: of the four operations, columns `colour.BRIGHTNESS` .. `HUE`.
        orders_N4: the operation that comes first, second, ...
        grey_N: whether colour is taken away.
        sigma_N: of the blur, in pixels; 0: none.
        operations: of the four, those that the recipe has.
    """

    boxes_N4: NDArray[np.int64]
    flips_N: NDArray[np.bool_]
    jittered_N: NDArray[np.bool_]
    factors_N4: NDArray[np.float64]
    orders_N4: NDArray[np.int64]
    grey_N: NDArray[np.bool_]
    sigma_N: NDArray[np.float64]
    operations: tuple[int, ...]


def draw_plan(
    recipe: ViewRecipe,
    sizes_B2: NDArray[np.int64],
    key_hashes_B: NDArray[np.uint64],
    *,
    seed: int,
    epoch: int,
    views: Sequence[int],
) -> ViewPlan:
    """The plan of these views of B images of these (height, width)."""
    streams = join(Streams.of(seed, epoch, key_hashes_B, view) for view in views)
    draws = streams.uniform(0, _FIRST_CROP_DRAW)
    strengths, low, high = _factor_limits(recipe)
    orders = np.broadcast_to(np.arange(4), (len(draws), 4))
    if recipe.random_order:
        orders = np.argsort(draws[:, _ORDER : _ORDER + 4], axis=1)
    narrow, wide = recipe.blur_sigma
    blurred = draws[:, _BLUR] < recipe.blur_probability
    return ViewPlan(
        boxes_N4=_draw_boxes(streams, np.tile(sizes_B2, (len(views), 1)), recipe),
        flips_N=draws[:, _FLIP] < recipe.flip_probability,
        jittered_N=draws[:, _JITTER] < recipe.jitter_probability,
        factors_N4=low + draws[:, _FACTORS : _FACTORS + 4] * (high - low),
        orders_N4=orders,
        grey_N=draws[:, _GRAYSCALE] < recipe.grayscale_probability,
        sigma_N=np.where(blurred, narrow + draws[:, _SIGMA] * (wide - narrow), 0.0),
        operations=tuple(np.flatnonzero(strengths).tolist()),
    )


def _factor_limits(recipe: ViewRecipe) -> tuple[NDArray[np.float64], ...]:
    """Strength, least and greatest factor of each of the four operations."""
    strengths = np.array([recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue])
    low = np.maximum(1 - strengths, 0)
    high = 1 + strengths
    if recipe.brightness_kind == "v1":
        low[colour.BRIGHTNESS], high[colour.BRIGHTNESS] = -recipe.brightness, recipe.brightness
    low[colour.HUE], high[colour.HUE] = -recipe.hue, recipe.hue
    return strengths, low, high


def _draw_boxes(
    streams: Streams, sizes_N2: NDArray[np.int64], recipe: ViewRecipe
) -> NDArray[np.int64]:
    sample = crops.official_boxes
    if recipe.crop_sampler == "torchvision":
        sample = crops.torchvision_boxes
    return sample(
        streams,
        sizes_N2,
        area=recipe.crop_area,
        aspect=recipe.crop_aspect,
        first_draw=_FIRST_CROP_DRAW,
    )
