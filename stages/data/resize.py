"""Crop, resize and flip as one pair of matrices per image.

A crop box and an output size give two small matrices, one per axis; a resized crop is
`weights_y @ image @ weights_x.T`. So a whole batch of equal-sized images, each with a box of its
own, is two batched matrix products, and a flip is the same weights in reverse. Kernels:

    bicubic_tf2           tf.image.resize: half-pixel centres, a = -0.5, no antialias; taps
                          outside the crop are dropped and the rest renormalised
    bicubic_tf1           tf.compat.v1 resize_bicubic: corner origin, a = -0.75, border clamped;
                          the released SimCLRv2 weights were trained with it
    bilinear_antialias,   torchvision and PIL: the kernel widens when it shrinks the image;
    bicubic_antialias     a = -0.5

TensorFlow reads its bicubic weights from a table of 1024 steps per pixel, and so do we.

Shapes: B images, C channels, H W input, O output (square), T taps.
"""

from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["bicubic_tf2", "bicubic_tf1", "bilinear_antialias", "bicubic_antialias"]

_TABLE_STEPS = 1024


def resize_weights(
    starts_B: Tensor, lengths_B: Tensor, in_size: int, out_size: int, kernel: Kernel
) -> Tensor:
    """Weights (B, O, in_size) that resize [start, start + length) of one axis to O pixels.

    Args:
        starts_B: first pixel of each crop, int64.
        lengths_B: pixels in each crop, int64, at least 1.
        in_size: pixels of the whole axis, at least start + length.
        out_size: pixels wanted.
        kernel: see the module's docstring.
    """
    if kernel in {"bicubic_tf1", "bicubic_tf2"}:
        return _tensorflow_weights(starts_B, lengths_B, in_size, out_size, kernel)
    return _antialias_weights(starts_B, lengths_B, in_size, out_size, kernel)


def resized_crops(
    images_BCHW: Tensor,
    boxes_B4: Tensor,
    out_size: int,
    kernel: Kernel,
    flip_B: Tensor | None = None,
) -> Tensor:
    """Each image's box, resized to (O, O) and flipped left to right where `flip_B`: (B, C, O, O).

    float32 in and out. Boxes are (y, x, height, width) in pixels, int64. Values may leave the
    input's range with the bicubic kernels.
    """
    y_B, x_B, h_B, w_B = boxes_B4.unbind(1)
    height, width = images_BCHW.shape[-2:]
    weights_y = resize_weights(y_B, h_B, height, out_size, kernel)
    weights_x = resize_weights(x_B, w_B, width, out_size, kernel)
    if flip_B is not None:
        weights_x = torch.where(flip_B[:, None, None], weights_x.flip(1), weights_x)
    return apply_weights(images_BCHW, weights_y, weights_x)


def resized_crop(
    image_CHW: Tensor, box: tuple[int, int, int, int], out_size: int, kernel: Kernel, flip: bool
) -> Tensor:
    """`resized_crops` for one image; cutting the crop out first makes a large image cheap."""
    y, x, height, width = box
    crop_1CHW = image_CHW[None, :, y : y + height, x : x + width].float()
    box_14 = torch.tensor([[0, 0, height, width]], device=image_CHW.device)
    flip_1 = torch.tensor([flip], device=image_CHW.device)
    return resized_crops(crop_1CHW, box_14, out_size, kernel, flip_1)[0]


def apply_weights(images_BCHW: Tensor, weights_y: Tensor, weights_x: Tensor) -> Tensor:
    """`weights_y @ image @ weights_x.T` for every channel, (B, C, O, O).

    Weights are (B, O, H) and (B, O, W), or (1, ...) for the same on all images. Exact to float32
    rounding; where a GPU is allowed to multiply in TF32, to 1e-3.
    """
    n, channels, height, width = images_BCHW.shape
    rows = images_BCHW.reshape(n, channels * height, width) @ weights_x.transpose(1, 2)
    columns = rows.view(n, channels, height, -1)
    return weights_y[:, None] @ columns


def tensorflow_taps(lengths_B: Tensor, out_size: int, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """The four pixels of a crop that each output pixel reads, (B, O, T), and their weights.

    Pixels are counted from the start of the crop. One that lies outside is clamped to its border;
    `bicubic_tf2` then gives it no weight.
    """
    half_pixel = kernel == "bicubic_tf2"
    device = lengths_B.device
    offset = 0.5 if half_pixel else 0.0
    # float32 on purpose: it decides, as in TensorFlow, which table entry a position falls on. The
    # divisor is a tensor of the device, since a GPU would multiply by the inverse of a number.
    size = torch.full((), out_size, dtype=torch.float32, device=device)
    scale_B1 = (lengths_B.float() / size)[:, None]
    position_BO = (torch.arange(out_size, device=device) + offset) * scale_B1 - offset
    floor_BO = position_BO.floor()
    step_BO = ((position_BO - floor_BO) * _TABLE_STEPS).round() / _TABLE_STEPS
    taps_T = torch.arange(-1, 3, device=device)
    distance_BOT = (taps_T - step_BO[..., None]).abs()
    weight_BOT = _cubic(distance_BOT, -0.5 if half_pixel else -0.75)
    tap_BOT = floor_BO.long()[..., None] + taps_T
    last_B11 = (lengths_B - 1)[:, None, None]
    inside_BOT = tap_BOT.clamp(min=0).minimum(last_B11)
    if half_pixel:
        weight_BOT = weight_BOT * (inside_BOT == tap_BOT)
        weight_BOT = weight_BOT / weight_BOT.sum(2, keepdim=True)
    return inside_BOT, weight_BOT


def _tensorflow_weights(
    starts_B: Tensor, lengths_B: Tensor, in_size: int, out_size: int, kernel: Kernel
) -> Tensor:
    """Four taps around each position, scattered into a dense row."""
    pixel_BOT, weight_BOT = tensorflow_taps(lengths_B, out_size, kernel)
    weights = torch.zeros(len(starts_B), out_size, in_size, device=starts_B.device)
    return weights.scatter_add_(2, pixel_BOT + starts_B[:, None, None], weight_BOT)


def _antialias_weights(
    starts_B: Tensor, lengths_B: Tensor, in_size: int, out_size: int, kernel: Kernel
) -> Tensor:
    """The kernel evaluated at every input pixel, cut to the crop and renormalised."""
    device = starts_B.device
    scale_B1 = (lengths_B.double() / out_size)[:, None]
    centre_BO = (torch.arange(out_size, device=device) + 0.5) * scale_B1 - 0.5
    # Whole and fractional part apart: float32 then loses nothing on a wide image.
    whole_BO = centre_BO.floor()
    fraction_BO = (centre_BO - whole_BO).float()
    pixel_BI = torch.arange(in_size, device=device) - starts_B[:, None]
    distance_BOI = (pixel_BI[:, None, :] - whole_BO.long()[..., None]).float()
    distance_BOI = (distance_BOI - fraction_BO[..., None]).abs_()
    distance_BOI = distance_BOI / scale_B1.float().clamp(min=1.0)[..., None]
    if kernel == "bilinear_antialias":
        weights = (1 - distance_BOI).clamp_(min=0)
    else:
        weights = _cubic(distance_BOI, -0.5)
    weights *= ((pixel_BI >= 0) & (pixel_BI < lengths_B[:, None]))[:, None, :]
    return weights / weights.sum(2, keepdim=True)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel; distance is at least 0, zero from 2 on."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return torch.where(distance < 1, near, far * (distance < 2))
