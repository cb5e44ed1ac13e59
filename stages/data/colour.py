"""Colour jitter and grayscale on a whole batch, each sample with factors and an order of its own.

Two conventions. "official" (SimCLR, appendix A, and its code): contrast about the mean of each
channel, saturation in HSV. "torchvision": contrast about the mean grey, saturation by mixing with
the grey image. Brightness, hue and the clip to [0, 1] after each operation are common to both.

Each operation takes (N, C, H, W) float32 with one factor per sample, and changes the batch in
place. Saturation, hue and grayscale need three channels; `jitter_` leaves them out for grey
images, on which they do nothing.

Shapes: N images, J of them jittered, C channels (1 or 3), H W.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Convention = Literal["official", "torchvision"]
BrightnessKind = Literal["v1", "v2"]

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

_GREY = (0.2989, 0.5870, 0.1140)


def jitter_(
    images_NCHW: Tensor,
    rows_J: NDArray[np.int64],
    factors_J4: NDArray[np.float64],
    orders_J4: NDArray[np.int64],
    *,
    convention: Convention,
    brightness_kind: BrightnessKind = "v2",
    operations: tuple[int, ...] = (BRIGHTNESS, CONTRAST, SATURATION, HUE),
) -> Tensor:
    """The four operations on the chosen images, each in its own order, in place.

    Args:
        images_NCHW: float32; may leave [0, 1] before the first operation, never after it.
        rows_J: positions of the J images to change, each at most once.
        factors_J4: for each of them, columns BRIGHTNESS .. HUE.
        orders_J4: for each of them, a permutation of 0 .. 3: the operation that comes first, ...
        convention: see the module's docstring.
        brightness_kind: "v2" multiplies by the factor, "v1" adds it (SimCLR's first code).
        operations: those to run; the others are skipped wherever they stand in an order.

    Returns:
        `images_NCHW` itself.
    """
    if not operations or not len(rows_J):
        return images_NCHW
    orders = _without_others(orders_J4, operations)
    clips_first_J = np.zeros(len(rows_J), dtype=np.bool_)
    if images_NCHW.shape[1] == 1:
        # Saturation and hue would only clip a grey image, which matters where one comes first.
        operations = tuple(kind for kind in operations if kind in {BRIGHTNESS, CONTRAST})
        clips_first_J = ~np.isin(orders[:, 0], operations)
        orders = _without_others(orders, operations)
    # Images with the same order are made neighbours, and each run of them is worked on as one.
    code_J = orders @ (4 ** np.arange(len(operations))) + clips_first_J * 4 ** len(operations)
    by_order = np.argsort(code_J, kind="stable")
    run_starts = np.unique(code_J[by_order], return_index=True)[1].tolist()
    device = images_NCHW.device
    rows = torch.from_numpy(rows_J[by_order]).to(device)
    factors = torch.from_numpy(factors_J4[by_order]).float().to(device)
    sorted_JCHW = images_NCHW[rows]
    for start, stop in zip(run_starts, [*run_starts[1:], len(by_order)], strict=True):
        run_NCHW = sorted_JCHW[start:stop]
        if clips_first_J[by_order[start]]:
            run_NCHW.clamp_(0, 1)
        for operation in orders[by_order[start]].tolist():
            factor_N = factors[start:stop, operation]
            if operation == BRIGHTNESS:
                adjust_brightness_(run_NCHW, factor_N, brightness_kind)
            elif operation == CONTRAST:
                adjust_contrast_(run_NCHW, factor_N, convention)
            elif operation == SATURATION:
                adjust_saturation_(run_NCHW, factor_N, convention)
            else:
                adjust_hue_(run_NCHW, factor_N)
    images_NCHW[rows] = sorted_JCHW
    return images_NCHW


def adjust_brightness_(images_NCHW: Tensor, factor_N: Tensor, kind: BrightnessKind) -> Tensor:
    """Times the factor ("v2") or plus it ("v1"), clipped."""
    factor = factor_N[:, None, None, None]
    images_NCHW.mul_(factor) if kind == "v2" else images_NCHW.add_(factor)
    return images_NCHW.clamp_(0, 1)


def adjust_contrast_(images_NCHW: Tensor, factor_N: Tensor, convention: Convention) -> Tensor:
    """Distance from the mean times the factor, clipped."""
    if convention == "official" or images_NCHW.shape[1] == 1:
        mean = images_NCHW.mean(dim=(2, 3), keepdim=True)
    else:
        mean = _grey(images_NCHW).mean(dim=(2, 3), keepdim=True)
    factor = factor_N[:, None, None, None]
    return images_NCHW.sub_(mean).mul_(factor).add_(mean).clamp_(0, 1)


def adjust_saturation_(images_NCHW: Tensor, factor_N: Tensor, convention: Convention) -> Tensor:
    """Saturation times the factor (at least 0), clipped."""
    factor = factor_N[:, None, None, None]
    if convention == "torchvision":
        grey_N1HW = _grey(images_NCHW)
        return images_NCHW.sub_(grey_N1HW).mul_(factor).add_(grey_N1HW).clamp_(0, 1)
    # With hue and value kept, every channel's distance from the value is proportional to the
    # saturation S, so no trip through HSV is needed. S stops at 1: the factor stops at 1 / S.
    value_N1HW, chroma_N1HW = _value_and_chroma(images_NCHW)
    most_N1HW = value_N1HW.clamp(min=0).div_(chroma_N1HW.clamp_(min=1e-12))
    ratio_N1HW = torch.minimum(most_N1HW, factor)
    return images_NCHW.sub_(value_N1HW).mul_(ratio_N1HW).add_(value_N1HW).clamp_(0, 1)


def adjust_hue_(images_NCHW: Tensor, turns_N: Tensor) -> Tensor:
    """Hue moved round the colour circle by so many turns, value and saturation kept, clipped."""
    value_N1HW, chroma_N1HW = _value_and_chroma(images_NCHW)
    red, green, blue = images_NCHW.split(1, dim=1)
    divisor = chroma_N1HW.clamp(min=1e-12)
    sixths = torch.where(
        value_N1HW == red,
        (green - blue) / divisor,
        torch.where(value_N1HW == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths.add_(6 * turns_N[:, None, None, None])
    sixths.sub_((sixths / 6).floor_(), alpha=6)  # into [0, 6]; remainder_ is many times slower
    shares = (
        (sixths - 3).abs_().neg_().add_(2),
        (sixths - 2).abs_().sub_(1),
        (sixths - 4).abs_().sub_(1),
    )
    for channel_N1HW, share in zip(images_NCHW.split(1, dim=1), shares, strict=True):
        share.clamp_(0, 1)
        torch.addcmul(value_N1HW, chroma_N1HW, share, value=-1, out=channel_N1HW)
    return images_NCHW.clamp_(0, 1)


def to_grayscale_(images_NCHW: Tensor) -> Tensor:
    """Three equal channels, weighted as both code bases do; not clipped."""
    return images_NCHW.copy_(_grey(images_NCHW).expand_as(images_NCHW))


def _without_others(orders: NDArray[np.int64], operations: tuple[int, ...]) -> NDArray[np.int64]:
    """Each row's order of these operations alone."""
    return orders[np.isin(orders, operations)].reshape(len(orders), len(operations))


def _grey(images_NCHW: Tensor) -> Tensor:
    red, green, blue = images_NCHW.split(1, dim=1)
    return (red * _GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2])


def _value_and_chroma(images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Largest channel, and its distance from the smallest; each (N, 1, H, W)."""
    red, green, blue = images_NCHW.split(1, dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    return value, value - torch.minimum(torch.minimum(red, green), blue)
