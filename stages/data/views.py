"""Random views of images: crop, flip, colour, blur (SimCLR, section 3 and appendix A).

`ViewRecipe` says what is drawn, `make_views` draws it for a whole batch. A view's random numbers
depend on (seed, epoch, key, view) alone, so a sample gets the same views whatever batch, worker or
process it falls into (to float32 rounding, should another batch size choose other matrix kernels).

What is written here in torch operations is the reference, and runs on every device. On a CPU,
views large enough to be worth it are made by `fused_views.py`, which equals it to 1e-5.

Shapes: B images, V views, N = V * B, C channels (1 or 3), H W.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.data import blur, colour, on_device, resize
from stages.data.view_plan import ViewPlan, draw_plan
from stages.data.view_recipe import ViewRecipe

# Values of a view from which on the compiled program pays for the second that it takes to load.
_WORTH_FUSING = 2048
# Above this side, cutting the crop out first beats one matrix product over whole images on a CPU.
_LARGE_IMAGE = 128


def make_views(
    images: Tensor | Sequence[Tensor],
    recipe: ViewRecipe,
    *,
    seed: int,
    epoch: int,
    key_hashes: NDArray[np.uint64],
    n_views: int = 2,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    program: Literal["auto", "eager", "fused"] = "auto",
) -> Tensor:
    """Random views of a batch, (V, B, C, size, size) float32 in [0, 1], on the images' device.

    Args:
        images: uint8, (B, C, H, W), or one (C, H_i, W_i) tensor per image; on a CPU quickest where
            the memory behind them is (H, W, C), as a decoder leaves it.
        recipe: what to draw.
        seed: of the run.
        epoch: counted from 0; each epoch draws anew.
        key_hashes: (B,) uint64, the samples' `random_numbers.key_hashes`.
        n_views: views of each image, drawn independently.
        mean: subtracted per channel at the end; the official code normalises nothing.
        std: divided by per channel at the end.
        program: "eager", in torch operations; "fused", compiled, on a CPU; "auto": what suits.

    Raises:
        ValueError: no image, not a key for each, or not uint8 with 1 or 3 channels.
    """
    if len(images) != len(key_hashes):
        raise ValueError(f"{len(images)} images but {len(key_hashes)} keys")
    if not len(images):
        raise ValueError("no images: a batch of views needs at least one")
    if images[0].dtype != torch.uint8 or images[0].shape[0] not in {1, 3}:
        found = f"{images[0].dtype} of shape {tuple(images[0].shape)}"
        raise ValueError(f"an image must be uint8 (1 or 3, H, W), found {found}")
    plan = draw_plan(
        recipe, _sizes(images), key_hashes, seed=seed, epoch=epoch, views=range(n_views)
    )
    if program == "fused" or (program == "auto" and _is_fused(images[0], recipe.size)):
        from stages.data import fused_views  # a second to import, so only where it is used

        views = fused_views.carry_out(plan, images, recipe, mean, std)
    else:
        views = _carry_out(plan, images, recipe, mean, std)
    return views.view(n_views, len(images), *views.shape[1:])


def _is_fused(image: Tensor, size: int) -> bool:
    """Whether compiled views are worth it, as a rule of sizes alone: it must not change mid-run."""
    large = image.shape[0] * size * size >= _WORTH_FUSING
    return large and image.device.type == "cpu" and find_spec("numba") is not None


def _sizes(images: Tensor | Sequence[Tensor]) -> NDArray[np.int64]:
    if isinstance(images, Tensor):
        return np.tile(np.array(images.shape[-2:], dtype=np.int64), (len(images), 1))
    return np.array([image.shape[-2:] for image in images], dtype=np.int64)


def _carry_out(
    plan: ViewPlan,
    images: Tensor | Sequence[Tensor],
    recipe: ViewRecipe,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Tensor:
    """The reference: every operation on all views that it falls to, (N, C, size, size)."""
    views = _crop(images, plan, recipe)
    rows = np.flatnonzero(plan.jittered_N)
    colour.jitter_(
        views,
        rows,
        plan.factors_N4[rows],
        plan.orders_N4[rows],
        convention=recipe.colour_convention,
        brightness_kind=recipe.brightness_kind,
        operations=plan.operations,
    )
    if views.shape[1] == 3:
        _grayscale_(views, plan)
    views.clamp_(0, 1)
    _blur_(views, plan, recipe)
    if mean is not None:
        views.sub_(torch.tensor(mean, device=views.device)[:, None, None])
    if std is not None:
        views.div_(torch.tensor(std, device=views.device)[:, None, None])
    return views


def _crop(images: Tensor | Sequence[Tensor], plan: ViewPlan, recipe: ViewRecipe) -> Tensor:
    """Every view cropped, resized and flipped, (N, C, size, size) about [0, 1]."""
    size, kernel = recipe.size, recipe.resize_kernel
    n_images, device = len(images), images[0].device
    if not isinstance(images, Tensor) and device.type != "cpu":
        boxes_VB4 = torch.from_numpy(plan.boxes_N4).unflatten(0, (-1, n_images))
        flips_VB = torch.from_numpy(plan.flips_N).unflatten(0, (-1, n_images))
        return on_device.crops_of_any_size(images, boxes_VB4, flips_VB, size, kernel).flatten(0, 1)
    if not isinstance(images, Tensor) or (
        device.type == "cpu" and max(images.shape[-2:]) > _LARGE_IMAGE
    ):
        crops_N = [
            resize.resized_crop(images[view % n_images], tuple(box), size, kernel, flip)
            for view, (box, flip) in enumerate(
                zip(plan.boxes_N4.tolist(), plan.flips_N.tolist(), strict=True)
            )
        ]
        return torch.stack(crops_N).div_(255)
    images_BCHW = images.float().div_(255)
    boxes = torch.from_numpy(plan.boxes_N4).to(device).split(n_images)
    flips = torch.from_numpy(plan.flips_N).to(device).split(n_images)
    return torch.cat(
        [
            resize.resized_crops(images_BCHW, boxes_B4, size, kernel, flip_B)
            for boxes_B4, flip_B in zip(boxes, flips, strict=True)
        ]
    )


def _grayscale_(views_NCHW: Tensor, plan: ViewPlan) -> None:
    chosen = np.flatnonzero(plan.grey_N)
    if len(chosen):
        rows = torch.from_numpy(chosen).to(views_NCHW.device)
        views_NCHW[rows] = colour.to_grayscale_(views_NCHW[rows])


def _blur_(views_NCHW: Tensor, plan: ViewPlan, recipe: ViewRecipe) -> None:
    chosen = np.flatnonzero(plan.sigma_N)
    radius = blur.kernel_radius(recipe.size)
    if not len(chosen) or not radius:
        return
    sigma = torch.from_numpy(plan.sigma_N[chosen]).to(views_NCHW.device)
    rows = torch.from_numpy(chosen).to(views_NCHW.device)
    blurred = blur.gaussian_blur(views_NCHW[rows], sigma, radius, recipe.blur_border)
    views_NCHW[rows] = blurred.clamp_(0, 1)
