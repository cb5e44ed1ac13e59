"""Scores on another data set, by the measure that is usual for it, and tests between methods.

Shapes: N test images, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from stages.evaluation.average_precision import eleven_point_map
from stages.evaluation.classify import accuracy, scores
from stages.evaluation.other_datasets import LabelledImages
from stages.evaluation.permutation_test import LEVEL, per_image_scores, permutation_p


def score(images: LabelledImages, logits_NK: Tensor, positions_N: Tensor) -> float:
    """The measure of the data set, in [0, 1], on the images at these positions."""
    targets = images.targets[positions_N]
    if images.metric == "accuracy":
        return accuracy(logits_NK, targets)
    return examined(images, logits_NK, positions_N)["score"]


def examined(
    images: LabelledImages,
    logits_NK: Tensor,
    positions_N: Tensor,
    validation: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Any]:
    """Everything that is told of a method: `metric` and `score`, and the measures beside it.

    Args:
        images: the data set.
        logits_NK: of the images at these positions.
        positions_N: of the test images.
        validation: logits and classes for calibration; of images with one class each.
    """
    targets = images.targets[positions_N]
    if images.has_one_class_each:
        scored = scores(logits_NK, targets, validation)
        return {
            "metric": images.metric,
            "score": scored[images.metric],
            "test_accuracy": scored.pop("accuracy"),
            **scored,
            "test_images": len(targets),
        }
    counted_NK = None if images.counted_NK is None else images.counted_NK[positions_N]
    found = eleven_point_map(logits_NK, targets, counted_NK)
    right_N = _right_share(logits_NK, targets, counted_NK)  # what significance is tested on (B.8)
    return {
        "metric": images.metric,
        "score": found["mean_average_precision"],
        "test_accuracy": round(float(right_N.mean()), 6),
        **found,
        "test_images": len(targets),
    }


def compared(
    images: LabelledImages, logits: Mapping[str, Tensor], pairs: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """The permutation test between pairs of methods on the test images (B.8).

    Tested is what the measure is the mean of; for VOC, as in the paper, accuracy instead.
    `verdict` is "better", "worse" or "no difference" (p above 0.05) of the first named.
    """
    positions_N = images.split["test"]
    targets = images.targets[positions_N]
    counted_NK = None if images.counted_NK is None else images.counted_NK[positions_N]
    found = []
    for ours, theirs in pairs:
        if ours not in logits or theirs not in logits:
            continue
        parts = []
        for name in (ours, theirs):
            if images.has_one_class_each:
                right_N = (logits[name].argmax(dim=1) == targets).numpy()
                balanced = images.metric == "balanced_accuracy"
                parts.append(per_image_scores(right_N, targets.numpy(), balanced=balanced))
            else:
                right_N = _right_share(logits[name], targets, counted_NK)
                parts.append(right_N.numpy() / len(targets))
        difference_N = np.asarray(parts[0] - parts[1], dtype=np.float64)
        p = permutation_p(difference_N)
        difference = float(difference_N.sum())
        better = "better" if difference > 0 else "worse"
        found.append(
            {
                "method": ours,
                "against": theirs,
                "difference": round(difference, 6),
                "p": float(f"{p:.3g}"),
                "verdict": better if p <= LEVEL else "no difference",
            }
        )
    return found


def _right_share(logits_NK: Tensor, targets_NK: Tensor, counted_NK: Tensor | None) -> Tensor:
    """Share of the classes answered rightly for each image (N,), of those that count there."""
    right_NK = ((logits_NK > 0) == targets_NK).double()
    if counted_NK is None:
        return right_NK.mean(dim=1)
    return (right_NK * counted_NK).sum(dim=1) / counted_NK.sum(dim=1).clamp(min=1)
