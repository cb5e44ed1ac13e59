"""Images as an evaluation sees them: a fixed crop, a resize, nothing random.

Two conventions. `official_evaluation_views`: the middle 0.875 of the shorter side, then bicubic
without antialias (SimCLR, appendix B.5, and its code); sizes up to 32 are not cropped.
`torchvision_evaluation_views`: shorter side resized to 8/7 of the target with antialias, then the
middle cut out. Both take equal-sized images as one batch, or a list of images of any sizes.

Shapes: B images, C channels, H W.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stages.data import resize

_LARGEST_UNCROPPED = 32
_PROPORTION = 0.875


@dataclass(frozen=True)
class EvaluationRecipe:
    """What an image is scored and embedded as.

    Attributes:
        size: side in pixels.
        convention: whose order of crop and resize; see the module's docstring.
        kernel: of the resize; None: the convention's own.
        keep: share of the shorter side that is seen; None: 0.875 above 32 pixels, 1 up to there.
    """

    size: int
    convention: Literal["official", "torchvision"] = "official"
    kernel: resize.Kernel | None = None
    keep: float | None = None

    def __call__(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Images of any sizes, uint8, as (B, C, size, size) float32 in [0, 1]."""
        if self.convention == "official":
            kernel = self.kernel or "bicubic_tf2"
            return official_evaluation_views(images, self.size, kernel, self.keep)
        resize_to = round(self.size / self.keep) if self.keep else None
        kernel = self.kernel or "bilinear_antialias"
        return torchvision_evaluation_views(images, self.size, kernel, resize_to)


def official_evaluation_views(
    images: Tensor | Sequence[Tensor],
    size: int,
    kernel: resize.Kernel = "bicubic_tf2",
    proportion: float | None = None,
) -> Tensor:
    """The official code's test images, (B, C, size, size) float32 in [0, 1].

    Args:
        images: uint8, (B, C, H, W), or one (C, H_i, W_i) tensor per image.
        size: side of the output in pixels.
        kernel: "bicubic_tf1" for the released weights, which were trained with TensorFlow 1.
        proportion: of the shorter side to keep; None is the official rule, 0.875 above 32 pixels
            and 1 up to there. (The official code expects an image of the very size in that case;
            another size is resized here, from the largest middle square.)
    """
    if proportion is None:
        proportion = _PROPORTION if size > _LARGEST_UNCROPPED else 1.0

    def prepare(images_BCHW: Tensor) -> Tensor:
        y, x, height, width = central_box(*images_BCHW.shape[-2:], proportion)
        cut = images_BCHW[..., y : y + height, x : x + width].float()
        if (height, width) == (size, size):
            return cut
        return resize.apply_weights(
            cut, _weights(height, size, kernel, cut), _weights(width, size, kernel, cut)
        )

    return _each_size(images, prepare).div_(255).clamp_(0, 1)


def torchvision_evaluation_views(
    images: Tensor | Sequence[Tensor],
    size: int,
    kernel: resize.Kernel = "bilinear_antialias",
    resize_to: int | None = None,
) -> Tensor:
    """Resize and CenterCrop of torchvision, in float arithmetic, (B, C, size, size) in [0, 1].

    Args:
        images: uint8, (B, C, H, W), or one (C, H_i, W_i) tensor per image.
        size: side of the output in pixels.
        kernel: how to resize.
        resize_to: the shorter side before the crop, at least `size`; None is 8/7 of `size`
            (256 for 224) above 32 pixels and `size` itself up to there.
    """
    if resize_to is None:
        resize_to = round(size / _PROPORTION) if size > _LARGEST_UNCROPPED else size
    if resize_to < size:
        raise ValueError(f"resize_to ({resize_to}) is below the size to cut out ({size})")

    def prepare(images_BCHW: Tensor) -> Tensor:
        height, width = images_BCHW.shape[-2:]
        shorter = min(height, width)
        pixels = images_BCHW.float()
        weights = []
        for length in (height, width):
            resized = int(resize_to * length / shorter)
            first = round((resized - size) / 2)
            weights.append(_weights(length, resized, kernel, pixels)[:, first : first + size])
        return resize.apply_weights(pixels, *weights)

    return _each_size(images, prepare).div_(255).clamp_(0, 1)


def central_box(height: int, width: int, proportion: float) -> tuple[int, int, int, int]:
    """The middle square (y, x, h, w) with this share of the shorter side, as the official code."""
    side = max(round(proportion * min(height, width)), 1)
    return (height - side + 1) // 2, (width - side + 1) // 2, side, side


def _weights(in_size: int, out_size: int, kernel: resize.Kernel, like: Tensor) -> Tensor:
    start = torch.zeros(1, dtype=torch.int64, device=like.device)
    return resize.resize_weights(start, start + in_size, in_size, out_size, kernel)


def _each_size(images: Tensor | Sequence[Tensor], prepare: Callable[[Tensor], Tensor]) -> Tensor:
    """One batch as it is; a list image by image."""
    if isinstance(images, Tensor):
        return prepare(images)
    return torch.cat([prepare(image[None]) for image in images])
