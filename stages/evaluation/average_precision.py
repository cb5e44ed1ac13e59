"""The measure of PASCAL VOC 2007: average precision of each class, read off at eleven recalls.

torchmetrics has no eleven-point form for images with several classes. Shapes: N images, K classes.
"""

import math
from typing import Any

import torch
from torch import Tensor

RECALLS = 11  # 0, 0.1, ..., 1


def eleven_point_average_precision(
    scores_N: Tensor, positive_N: Tensor, counted_N: Tensor | None = None
) -> float:
    """Mean over eleven recalls of the best precision at that recall or beyond it.

    Args:
        scores_N: the higher, the more surely of the class; equal ones keep their order.
        positive_N: whether an image is of the class.
        counted_N: False leaves an image out: VOC's "difficult" ones are neither right nor wrong.

    Returns:
        In [0, 1]; not a number where no image is of the class.
    """
    if counted_N is not None:
        scores_N, positive_N = scores_N[counted_N], positive_N[counted_N]
    order_N = scores_N.argsort(descending=True, stable=True)
    found_N = positive_N[order_N].long().cumsum(0)
    if not len(found_N) or not int(found_N[-1]):
        return float("nan")
    precision_N = found_N.double() / torch.arange(1, len(found_N) + 1)
    beyond_N = precision_N.flip(0).cummax(0).values.flip(0)  # the best from here on
    steps = RECALLS - 1
    first_at = [  # in whole numbers: a recall of 3 / 10 is no less than 0.3
        int(torch.searchsorted(found_N * steps, tenth * found_N[-1])) for tenth in range(RECALLS)
    ]
    return float(beyond_N[first_at].mean())


def eleven_point_map(
    logits_NK: Tensor, positive_NK: Tensor, counted_NK: Tensor | None = None
) -> dict[str, Any]:
    """`mean_average_precision`, and each class's; a class without images has None and no say."""
    per_class = [
        eleven_point_average_precision(
            logits_NK[:, k], positive_NK[:, k], None if counted_NK is None else counted_NK[:, k]
        )
        for k in range(logits_NK.shape[1])
    ]
    known = [value for value in per_class if not math.isnan(value)]
    return {
        "mean_average_precision": round(sum(known) / max(len(known), 1), 6),
        "per_class_average_precision": [
            None if math.isnan(value) else round(value, 6) for value in per_class
        ],
    }
