"""What classifiers answered to the test images: kept small, for the report's diagrams.

Shapes: N test images, K classes, R nets, M mistakes shown of a net, C H W.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stages.data.evaluation_views import EvaluationRecipe
from stages.data.store import ImageStore
from stages.evaluation.calibration import BINS

MISTAKES_SHOWN = 12  # of a net
LARGEST_PICTURE = 96  # pixels; a larger one is scaled down


@dataclass(frozen=True)
class Answers:
    """What is kept of a net's logits: the likeliest class of each image, and how sure it was."""

    said_N: Tensor
    confidence_N: Tensor

    @classmethod
    def of(cls, logits_NK: Tensor) -> "Answers":
        confidence_N, said_N = logits_NK.softmax(dim=1).max(dim=1)
        return cls(said_N, confidence_N)


def reliability(answers: Answers, classes_N: Tensor) -> dict[str, list[float]]:
    """How often answers are right by how sure they were: a bin per 1/15 of confidence.

    Returns:
        Of each bin that is not empty: `count`, mean `confidence` and `accuracy`.
    """
    confidence_N, right_N = answers.confidence_N, (answers.said_N == classes_N).float()
    bin_N = (confidence_N * BINS).long().clamp(max=BINS - 1)
    count_B = torch.bincount(bin_N, minlength=BINS)
    sums = [torch.bincount(bin_N, weights, BINS) for weights in (confidence_N, right_N)]
    filled_B = count_B > 0
    confidence_B, accuracy_B = (found[filled_B] / count_B[filled_B] for found in sums)
    return {
        "count": count_B[filled_B].tolist(),
        "confidence": [round(value, 5) for value in confidence_B.tolist()],
        "accuracy": [round(value, 5) for value in accuracy_B.tolist()],
    }


def most_confident_mistakes(answers: Answers, classes_N: Tensor) -> Tensor:
    """Positions of at most MISTAKES_SHOWN images, the surest wrong answer first."""
    confidence_N = torch.where(answers.said_N == classes_N, -1.0, answers.confidence_N)
    order_N = confidence_N.argsort(descending=True, stable=True)[:MISTAKES_SHOWN]
    return order_N[confidence_N[order_N] >= 0]


def write_predictions(
    path: Path,
    test: ImageStore,
    answers: Sequence[Answers],
    rows: Sequence[dict[str, Any]],
    seen_as: EvaluationRecipe,
) -> None:
    """One .npz for a stage: 4 bytes for each image and net, and pictures of the worst mistakes.

    Holds `keys` and `classes` (N); `methods`, `seeds` and `initialisations` (R); `said` and
    `confidence` (R, N); `mistakes`, positions (R, M), filled up with -1, and `shown` and
    `pictures`: the positions whose pictures are kept, those of each method's first net.
    """
    classes_N = torch.from_numpy(test.classes)
    mistakes_RM = np.full((len(rows), MISTAKES_SHOWN), -1, dtype=np.int64)
    shown: dict[int, None] = {}
    seen: set[str] = set()
    for place, (row, one) in enumerate(zip(rows, answers, strict=True)):
        found = most_confident_mistakes(one, classes_N).tolist()
        mistakes_RM[place, : len(found)] = found
        if row["method"] not in seen:
            seen.add(row["method"])
            shown.update(dict.fromkeys(found))
    positions_P = np.array(sorted(shown), dtype=np.int64)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(
            file,
            keys=np.array(test.keys),
            classes=test.classes,
            methods=np.array([row["method"] for row in rows]),
            seeds=np.array([row["seed"] for row in rows]),
            initialisations=np.array([row.get("initialisation", 0) for row in rows]),
            said=np.stack([one.said_N.numpy().astype(np.uint16) for one in answers]),
            confidence=np.stack([one.confidence_N.numpy().astype(np.float16) for one in answers]),
            mistakes=mistakes_RM,
            shown=positions_P,
            pictures=pictures_of(test, positions_P, seen_as),
        )
    partial.replace(path)


def pictures_of(
    test: ImageStore, positions_P: NDArray[np.int64], seen_as: EvaluationRecipe
) -> NDArray[np.uint8]:
    """The images as the net sees them, (P, H, W, C), at most LARGEST_PICTURE pixels a side."""
    if not len(positions_P):
        return np.zeros((0, 1, 1, 1), dtype=np.uint8)
    images_PCHW = seen_as(test.images(positions_P))
    if max(images_PCHW.shape[-2:]) > LARGEST_PICTURE:
        images_PCHW = F.adaptive_avg_pool2d(images_PCHW, LARGEST_PICTURE)
    return (images_PCHW.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
