"""Scores of a classifier's logits, by torchmetrics.

Shapes: N images, K classes. Accuracies are shares in [0, 1].
"""

from typing import Any

from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
)

MOST_CLASSES_SHOWN = 50  # a larger confusion matrix is neither read nor worth its bytes


def scores(logits_NK: Tensor, classes_N: Tensor) -> dict[str, Any]:
    """Accuracy, macro F1, accuracy per class, and the confusion matrix of few classes.

    The confusion matrix counts images: a row per true class, a column per predicted one.
    """
    n_classes = logits_NK.shape[1]
    predicted_N = logits_NK.argmax(dim=1)
    per_class = multiclass_accuracy(predicted_N, classes_N, n_classes, average=None)
    result = {
        "accuracy": accuracy(logits_NK, classes_N),
        "macro_f1": round(
            float(multiclass_f1_score(predicted_N, classes_N, n_classes, average="macro")), 6
        ),
        "per_class_accuracy": [round(value, 6) for value in per_class.tolist()],
    }
    if n_classes <= MOST_CLASSES_SHOWN:
        confusion_KK = multiclass_confusion_matrix(predicted_N, classes_N, n_classes)
        result["confusion"] = confusion_KK.tolist()
    return result


def accuracy(logits_NK: Tensor, classes_N: Tensor) -> float:
    """Share of images whose most likely class is the true one."""
    n_classes = logits_NK.shape[1]
    share = multiclass_accuracy(logits_NK.argmax(1), classes_N, n_classes, average="micro")
    return round(float(share), 6)  # float32: a share of up to 100,000 images, exactly as read
