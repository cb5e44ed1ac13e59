"""Random views of images: crop, flip, colour, blur (SimCLR, section 3 and appendix A).

`ViewRecipe` says what is drawn, `make_views` draws it for a whole batch. A view's random numbers
depend on (seed, epoch, key, view) alone, so a sample gets the same views whatever batch, worker or
process it falls into (to float32 rounding, should another batch size choose other matrix kernels).

Shapes: B images, V views, N = V * B, C channels (1 or 3), H W.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.data import blur, colour, crops, resize
from stages.data.random_numbers import Streams, join

# A view's draws, by number. Crops draw from 16 on, as often as they have to.
_FLIP, _JITTER, _FACTORS, _ORDER, _GRAYSCALE, _BLUR, _SIGMA = 0, 1, 2, 6, 10, 11, 12
_FIRST_CROP_DRAW = 16

# Above this side, cutting the crop out first beats one matrix product over whole images on a CPU.
_LARGE_IMAGE = 128


@dataclass(frozen=True)
class ViewRecipe:
    """What a random view is. Strengths are already multiplied by the paper's s.

    Brightness, contrast and saturation factors are uniform in [max(0, 1 - strength),
    1 + strength] (brightness "v1": an addend in [-strength, strength]), hue in turns in
    [-strength, strength]. A strength of 0 leaves its operation out.
    """

    size: int
    crop_sampler: Literal["official", "torchvision"] = "official"
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    resize_kernel: resize.Kernel = "bicubic_tf2"
    flip_probability: float = 0.5
    jitter_probability: float = 0.8
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    brightness_kind: colour.BrightnessKind = "v2"
    colour_convention: colour.Convention = "official"
    random_order: bool = True
    grayscale_probability: float = 0.2
    blur_probability: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_border: blur.Border = "zero"

    @classmethod
    def official(
        cls,
        size: int,
        strength: float = 1.0,
        blur: bool | None = None,
        brightness_kind: colour.BrightnessKind = "v2",
        crop_area: tuple[float, float] = (0.08, 1.0),
    ) -> "ViewRecipe":
        """SimCLRv2's own views. Strength is 1 on ImageNet and 0.5 on CIFAR-10.

        Blur is for images larger than 32 pixels unless it is given.
        """
        return cls(
            size,
            crop_area=crop_area,
            brightness=0.8 * strength,
            contrast=0.8 * strength,
            saturation=0.8 * strength,
            hue=0.2 * strength,
            brightness_kind=brightness_kind,
            blur_probability=0.5 if _has_blur(size, blur) else 0.0,
        )

    @classmethod
    def torchvision(
        cls,
        size: int,
        strength: float = 1.0,
        blur: bool | None = None,
        resize_kernel: resize.Kernel = "bilinear_antialias",
        crop_area: tuple[float, float] = (0.08, 1.0),
    ) -> "ViewRecipe":
        """The same recipe as PyTorch projects write it, in torchvision's float arithmetic."""
        return cls(
            size,
            crop_sampler="torchvision",
            crop_area=crop_area,
            resize_kernel=resize_kernel,
            brightness=0.8 * strength,
            contrast=0.8 * strength,
            saturation=0.8 * strength,
            hue=0.2 * strength,
            colour_convention="torchvision",
            blur_probability=0.5 if _has_blur(size, blur) else 0.0,
            blur_border="reflect",
        )

    @classmethod
    def crop_and_flip(
        cls,
        size: int,
        convention: Literal["official", "torchvision"] = "official",
        crop_area: tuple[float, float] = (0.08, 1.0),
        flip_probability: float = 0.5,
    ) -> "ViewRecipe":
        """What fine-tuning and linear evaluation train on (SimCLR, appendix B.5)."""
        return cls(
            size,
            crop_sampler=convention,
            crop_area=crop_area,
            resize_kernel="bicubic_tf2" if convention == "official" else "bilinear_antialias",
            flip_probability=flip_probability,
            jitter_probability=0.0,
            grayscale_probability=0.0,
            blur_probability=0.0,
        )


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
) -> Tensor:
    """Random views of a batch, (V, B, C, size, size) float32 in [0, 1], on the images' device.

    Args:
        images: uint8, (B, C, H, W), or one (C, H_i, W_i) tensor per image.
        recipe: what to draw.
        seed: of the run.
        epoch: counted from 0; each epoch draws anew.
        key_hashes: (B,) uint64, the samples' `random_numbers.key_hashes`.
        n_views: views of each image, drawn independently.
        mean: subtracted per channel at the end; the official code normalises nothing.
        std: divided by per channel at the end.

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
    streams = join(Streams.of(seed, epoch, key_hashes, view) for view in range(n_views))
    draws = streams.uniform(0, _FIRST_CROP_DRAW)
    boxes = _draw_boxes(streams, np.tile(_sizes(images), (n_views, 1)), recipe)
    flips = draws[:, _FLIP] < recipe.flip_probability
    views = _crop(images, boxes, flips, recipe)
    _jitter_(views, draws, recipe)
    if views.shape[1] == 3:
        _grayscale_(views, draws, recipe)
    views.clamp_(0, 1)
    _blur_(views, draws, recipe)
    if mean is not None:
        views.sub_(torch.tensor(mean, device=views.device)[:, None, None])
    if std is not None:
        views.div_(torch.tensor(std, device=views.device)[:, None, None])
    return views.view(n_views, len(images), *views.shape[1:])


def _has_blur(size: int, asked: bool | None) -> bool:
    return size > 32 if asked is None else asked


def _sizes(images: Tensor | Sequence[Tensor]) -> NDArray[np.int64]:
    if isinstance(images, Tensor):
        return np.tile(np.array(images.shape[-2:], dtype=np.int64), (len(images), 1))
    return np.array([image.shape[-2:] for image in images], dtype=np.int64)


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


def _crop(
    images: Tensor | Sequence[Tensor],
    boxes_N4: NDArray[np.int64],
    flips_N: NDArray[np.bool_],
    recipe: ViewRecipe,
) -> Tensor:
    """Every view cropped, resized and flipped, (N, C, size, size) about [0, 1]."""
    size, kernel = recipe.size, recipe.resize_kernel
    if not isinstance(images, Tensor) or (
        images.device.type == "cpu" and max(images.shape[-2:]) > _LARGE_IMAGE
    ):
        crops_N = [
            resize.resized_crop(images[view % len(images)], tuple(box), size, kernel, flip)
            for view, (box, flip) in enumerate(
                zip(boxes_N4.tolist(), flips_N.tolist(), strict=True)
            )
        ]
        return torch.stack(crops_N).div_(255)
    device = images.device
    images_BCHW = images.float().div_(255)
    boxes = torch.from_numpy(boxes_N4).to(device).split(len(images))
    flips = torch.from_numpy(flips_N).to(device).split(len(images))
    return torch.cat(
        [
            resize.resized_crops(images_BCHW, boxes_B4, size, kernel, flip_B)
            for boxes_B4, flip_B in zip(boxes, flips, strict=True)
        ]
    )


def _jitter_(views_NCHW: Tensor, draws: NDArray[np.float64], recipe: ViewRecipe) -> None:
    rows = np.flatnonzero(draws[:, _JITTER] < recipe.jitter_probability)
    strengths = np.array([recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue])
    low = np.maximum(1 - strengths, 0)
    high = 1 + strengths
    if recipe.brightness_kind == "v1":
        low[colour.BRIGHTNESS], high[colour.BRIGHTNESS] = -recipe.brightness, recipe.brightness
    low[colour.HUE], high[colour.HUE] = -recipe.hue, recipe.hue
    orders = np.broadcast_to(np.arange(4), (len(rows), 4))
    if recipe.random_order:
        orders = np.argsort(draws[rows, _ORDER : _ORDER + 4], axis=1)
    colour.jitter_(
        views_NCHW,
        rows,
        low + draws[rows, _FACTORS : _FACTORS + 4] * (high - low),
        orders,
        convention=recipe.colour_convention,
        brightness_kind=recipe.brightness_kind,
        operations=tuple(np.flatnonzero(strengths).tolist()),
    )


def _grayscale_(views_NCHW: Tensor, draws: NDArray[np.float64], recipe: ViewRecipe) -> None:
    chosen = np.flatnonzero(draws[:, _GRAYSCALE] < recipe.grayscale_probability)
    if len(chosen):
        rows = torch.from_numpy(chosen).to(views_NCHW.device)
        views_NCHW[rows] = colour.to_grayscale_(views_NCHW[rows])


def _blur_(views_NCHW: Tensor, draws: NDArray[np.float64], recipe: ViewRecipe) -> None:
    chosen = np.flatnonzero(draws[:, _BLUR] < recipe.blur_probability)
    radius = blur.kernel_radius(recipe.size)
    if not len(chosen) or not radius:
        return
    low, high = recipe.blur_sigma
    sigma = torch.from_numpy(low + draws[chosen, _SIGMA] * (high - low)).to(views_NCHW.device)
    rows = torch.from_numpy(chosen).to(views_NCHW.device)
    blurred = blur.gaussian_blur(views_NCHW[rows], sigma, radius, recipe.blur_border)
    views_NCHW[rows] = blurred.clamp_(0, 1)
