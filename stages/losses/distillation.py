"""Distillation: the student learns the teacher's soft labels, with or without true ones.

Shapes: B images, K classes. Losses are scalars in nats, float32 at least: autocast does not
reach them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

UNLABELLED = -1


def distillation_loss(
    student_logits_BK: Tensor,
    teacher_logits_BK: Tensor,
    temperature: float,
    *,
    scale_by_temperature_squared: bool = True,
) -> Tensor:
    """Cross entropy between softened teacher and student, the mean over B (SimCLRv2, eq. 2).

    Args:
        student_logits_BK: of the network that learns.
        teacher_logits_BK: of the same images; no gradient flows into them.
        temperature: divides both logits; 0.1 in self-distillation, 1 from big to small.
        scale_by_temperature_squared: multiply by temperature squared, so that gradients keep
            their size as the temperature changes. In the official notebook, not in eq. 2.
    """
    scale = temperature**2 if scale_by_temperature_squared else 1.0
    return scale * _on_soft_labels(student_logits_BK, teacher_logits_BK, temperature).mean()


def distillation_with_labels(
    student_logits_BK: Tensor,
    teacher_logits_BK: Tensor,
    labels_B: Tensor,
    temperature: float,
    alpha: float,
    *,
    scale_by_temperature_squared: bool = True,
) -> Tensor:
    """Distillation on all images joined by cross entropy on the labelled ones (SimCLRv2, eq. 3).

    As in eq. 3, both softmaxes have the temperature and an image without a label adds nothing to
    the second sum; both sums are divided by B (not the second by the labelled images' number), so
    processes with unequal numbers of labels average to the loss of the global batch.

    Args:
        student_logits_BK: of the network that learns.
        teacher_logits_BK: of the same images; no gradient flows into them.
        labels_B: class indices, -1 where an image has none.
        temperature: divides all logits.
        alpha: share of the soft labels, 0 to 1; 1 (SimCLRv2's choice) is `distillation_loss`.
        scale_by_temperature_squared: as in `distillation_loss`, for both terms.
    """
    scale = temperature**2 if scale_by_temperature_squared else 1.0
    soft_B = _on_soft_labels(student_logits_BK, teacher_logits_BK, temperature)
    with torch.autocast(student_logits_BK.device.type, enabled=False):
        true_B = F.cross_entropy(
            _precise(student_logits_BK) / temperature,
            labels_B,
            ignore_index=UNLABELLED,
            reduction="none",
        )
    return scale * (alpha * soft_B + (1 - alpha) * true_B).mean()


def _on_soft_labels(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    if student_BK.shape != teacher_BK.shape:
        raise ValueError(
            f"student and teacher logits differ in shape: {tuple(student_BK.shape)}, "
            f"{tuple(teacher_BK.shape)}"
        )
    with torch.autocast(student_BK.device.type, enabled=False):
        soft_BK = F.softmax(_precise(teacher_BK.detach()) / temperature, dim=1)
        return F.cross_entropy(_precise(student_BK) / temperature, soft_BK, reduction="none")


def _precise(logits_BK: Tensor) -> Tensor:
    return logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
