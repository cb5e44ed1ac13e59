"""Scores of a classifier's logits, by torchmetrics.

Shapes: N images, K classes. Accuracies are shares in [0, 1].
"""

import threading
from types import ModuleType
from typing import Any

from torch import Tensor

from stages.evaluation.calibration import BINS, best_temperature

MOST_CLASSES_SHOWN = 50  # a larger confusion matrix is neither read nor worth its bytes


def import_ahead() -> threading.Thread:
    """Begin to import torchmetrics in a thread, beside the training that comes before any score.

    It brings torchvision and more, and takes one core 7 seconds: twice what torch takes. The
    thread is no daemon: a process that ends early waits for it, as one that dies inside an import
    can crash.
    """
    thread = threading.Thread(target=_torchmetrics, name="import torchmetrics")
    thread.start()
    return thread


def _torchmetrics() -> ModuleType:
    from torchmetrics.functional import classification

    return classification


def scores(
    logits_NK: Tensor, classes_N: Tensor, validation: tuple[Tensor, Tensor] | None = None
) -> dict[str, Any]:
    """What is told of a classifier's test logits.

    Args:
        logits_NK: of the test images.
        classes_N: their classes.
        validation: logits and classes that a temperature is fitted on, for calibration.

    Returns:
        `accuracy` (top 1) and `top5_accuracy` (of more than 5 classes); `balanced_accuracy`, the
        mean over the classes of `per_class_accuracy`, which the papers call mean per class;
        `macro_f1`; `calibration_error`, the expected one (ECE) over 15 bins; `temperature`, and
        `calibration_error_scaled` with it; and of few classes `confusion`: images, a row per true
        class, a column per predicted one.
    """
    metrics, n_classes = _torchmetrics(), logits_NK.shape[1]
    predicted_N = logits_NK.argmax(dim=1)
    per_class = metrics.multiclass_accuracy(predicted_N, classes_N, n_classes, average=None)
    balanced = metrics.multiclass_accuracy(predicted_N, classes_N, n_classes, average="macro")
    macro_f1 = metrics.multiclass_f1_score(predicted_N, classes_N, n_classes, average="macro")
    result: dict[str, Any] = {
        "accuracy": accuracy(logits_NK, classes_N),
        "balanced_accuracy": round(float(balanced), 6),
        "macro_f1": round(float(macro_f1), 6),
        "per_class_accuracy": [round(value, 6) for value in per_class.tolist()],
        "calibration_error": calibration_error(logits_NK, classes_N),
    }
    if n_classes > 5:
        result["top5_accuracy"] = accuracy(logits_NK, classes_N, top_k=5)
    if validation is not None:
        temperature = best_temperature(*validation)
        scaled = calibration_error(logits_NK / temperature, classes_N)
        result |= {"temperature": round(temperature, 4), "calibration_error_scaled": scaled}
    if n_classes <= MOST_CLASSES_SHOWN:
        confusion_KK = metrics.multiclass_confusion_matrix(predicted_N, classes_N, n_classes)
        result["confusion"] = confusion_KK.tolist()
    return result


def accuracy(logits_NK: Tensor, classes_N: Tensor, top_k: int = 1) -> float:
    """Share of images whose true class is among the `top_k` most likely ones."""
    metrics, n_classes = _torchmetrics(), logits_NK.shape[1]
    guesses = logits_NK.argmax(1) if top_k == 1 else logits_NK
    share = metrics.multiclass_accuracy(guesses, classes_N, n_classes, average="micro", top_k=top_k)
    return round(float(share), 6)  # float32: a share of up to 100,000 images, exactly as read


def calibration_error(logits_NK: Tensor, classes_N: Tensor) -> float:
    """Expected calibration error (ECE): mean gap between confidence and accuracy over 15 bins."""
    gap = _torchmetrics().multiclass_calibration_error(
        logits_NK.softmax(dim=1), classes_N, logits_NK.shape[1], n_bins=BINS, norm="l1"
    )
    return round(float(gap), 6)
