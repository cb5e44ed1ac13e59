"""Scores of a classifier's logits, by torchmetrics.

Shapes: N images, K classes. Accuracies are shares in [0, 1].
"""

import threading
from types import ModuleType
from typing import Any

from torch import Tensor

MOST_CLASSES_SHOWN = 50  # a larger confusion matrix is neither read nor worth its bytes


def import_ahead() -> None:
    """Begin to import torchmetrics in a thread, beside the training that comes before any score.

    It brings torchvision and more, and takes one core 7 seconds: twice what torch takes. The
    thread is no daemon: a process that ends early waits for it, as one that dies inside an import
    can crash.
    """
    threading.Thread(target=_torchmetrics, name="import torchmetrics").start()


def _torchmetrics() -> ModuleType:
    from torchmetrics.functional import classification

    return classification


def scores(logits_NK: Tensor, classes_N: Tensor) -> dict[str, Any]:
    """Accuracy, macro F1, accuracy per class, and the confusion matrix of few classes.

    The confusion matrix counts images: a row per true class, a column per predicted one.
    """
    metrics, n_classes = _torchmetrics(), logits_NK.shape[1]
    predicted_N = logits_NK.argmax(dim=1)
    per_class = metrics.multiclass_accuracy(predicted_N, classes_N, n_classes, average=None)
    result = {
        "accuracy": accuracy(logits_NK, classes_N),
        "macro_f1": round(
            float(metrics.multiclass_f1_score(predicted_N, classes_N, n_classes, average="macro")),
            6,
        ),
        "per_class_accuracy": [round(value, 6) for value in per_class.tolist()],
    }
    if n_classes <= MOST_CLASSES_SHOWN:
        confusion_KK = metrics.multiclass_confusion_matrix(predicted_N, classes_N, n_classes)
        result["confusion"] = confusion_KK.tolist()
    return result


def accuracy(logits_NK: Tensor, classes_N: Tensor) -> float:
    """Share of images whose most likely class is the true one."""
    metrics, n_classes = _torchmetrics(), logits_NK.shape[1]
    share = metrics.multiclass_accuracy(logits_NK.argmax(1), classes_N, n_classes, average="micro")
    return round(float(share), 6)  # float32: a share of up to 100,000 images, exactly as read
