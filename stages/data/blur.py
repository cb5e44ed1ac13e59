"""Gaussian blur of a batch, each image with a width of its own (SimCLR, appendix A).

A separable blur is one banded matrix per axis, so it runs as two batched matrix products.

The official code draws ONE sigma per view for the whole batch of a device. Here each image has its
own: the distribution of a single view is the same, and a view stays independent of its batch.

Shapes: B images, C channels, H W.
"""

from typing import Literal

import torch
from torch import Tensor

from stages.data.resize import apply_weights

Border = Literal["zero", "reflect"]


def kernel_radius(image_size: int) -> int:
    """Taps on each side of the middle: a tenth of the height, halved (224: 11, so 23 taps)."""
    return image_size // 10 // 2


def gaussian_blur(
    images_BCHW: Tensor, sigma_B: Tensor, radius: int, border: Border = "zero"
) -> Tensor:
    """Blurred copies, (B, C, H, W) float32.

    Args:
        images_BCHW: float32.
        sigma_B: standard deviation in pixels, above 0.
        radius: taps on each side of the middle; the kernel is cut there and normalised.
        border: "zero" pads with black, so edges darken (official); "reflect" as torchvision.
    """
    height, width = images_BCHW.shape[-2:]
    weights_y = _blur_weights(sigma_B, radius, height, border)
    weights_x = weights_y if width == height else _blur_weights(sigma_B, radius, width, border)
    return apply_weights(images_BCHW, weights_y, weights_x)


def _blur_weights(sigma_B: Tensor, radius: int, size: int, border: Border) -> Tensor:
    """(B, size, size): row i holds the kernel centred on pixel i."""
    if border == "reflect" and radius >= size:
        raise ValueError(f"a blur of radius {radius} can't reflect at the edge of {size} pixels")
    device = sigma_B.device
    offset = torch.arange(-radius, radius + 1, device=device).float()
    kernel = torch.exp(-(offset**2) / (2 * sigma_B[:, None].float() ** 2))
    kernel = kernel / kernel.sum(1, keepdim=True)
    pixel = torch.arange(size, device=device)
    # Weights over the padded axis; what falls outside is then dropped or folded back.
    padded = torch.arange(size + 2 * radius, device=device) - radius
    tap = padded[None, :] - pixel[:, None] + radius
    inside = (tap >= 0) & (tap <= 2 * radius)
    weights = kernel[:, tap.clamp(0, 2 * radius)] * inside
    middle = weights[:, :, radius : radius + size].clone()
    if border == "reflect" and radius:
        middle[:, :, 1 : radius + 1] += weights[:, :, :radius].flip(2)
        middle[:, :, size - 1 - radius : size - 1] += weights[:, :, radius + size :].flip(2)
    return middle
