import math

import pytest
import torch
import torch.nn.functional as F

from stages.losses.distillation import distillation_loss, distillation_with_labels


def draw_logits(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 4, generator=generator, dtype=torch.float64)


def softened(logits: torch.Tensor, temperature: float) -> list[list[float]]:
    shares = []
    for row in logits.tolist():
        powers = [math.exp(x / temperature) for x in row]
        shares.append([power / sum(powers) for power in powers])
    return shares


def by_loops(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> list[float]:
    """Equation 2 of SimCLRv2 for each image."""
    return [
        -sum(p * math.log(q) for p, q in zip(of_teacher, of_student, strict=True))
        for of_teacher, of_student in zip(
            softened(teacher, temperature), softened(student, temperature), strict=True
        )
    ]


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
def test_distillation_is_equation_2_with_and_without_the_squared_temperature(temperature):
    student_BK, teacher_BK = draw_logits(0), draw_logits(1)
    expected = sum(by_loops(student_BK, teacher_BK, temperature)) / 5
    plain = distillation_loss(
        student_BK, teacher_BK, temperature, scale_by_temperature_squared=False
    )
    assert plain.item() == pytest.approx(expected, rel=1e-10)
    scaled = distillation_loss(student_BK, teacher_BK, temperature)
    assert scaled.item() == pytest.approx(expected * temperature**2, rel=1e-10)


def test_distillation_with_labels_is_equation_3_over_the_batch():
    student_BK, teacher_BK = draw_logits(0), draw_logits(1)
    labels_B = torch.tensor([2, -1, 0, -1, -1])
    of_student = softened(student_BK, 0.5)
    on_labels = -math.log(of_student[0][2]) - math.log(of_student[2][0])
    on_soft = sum(by_loops(student_BK, teacher_BK, 0.5))
    expected = 0.5**2 * (0.3 * on_soft + 0.7 * on_labels) / 5
    loss = distillation_with_labels(student_BK, teacher_BK, labels_B, 0.5, alpha=0.3)
    assert loss.item() == pytest.approx(expected, rel=1e-10)


def test_batches_with_unequal_labels_average_to_the_whole():
    student_BK, teacher_BK = draw_logits(0)[:4], draw_logits(1)[:4]
    labels_B = torch.tensor([1, 2, -1, -1])
    whole = distillation_with_labels(student_BK, teacher_BK, labels_B, 1.0, alpha=0.5)
    halves = [
        distillation_with_labels(student_BK[part], teacher_BK[part], labels_B[part], 1.0, alpha=0.5)
        for part in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(torch.stack(halves).mean(), whole, rtol=1e-12, atol=0)


def test_share_1_is_distillation_without_labels_and_an_unlabelled_batch_has_no_other_term():
    student_BK, teacher_BK = draw_logits(0), draw_logits(1)
    labels_B, nobody_B = torch.tensor([0, 1, 2, 3, 0]), torch.full((5,), -1)
    alone = distillation_loss(student_BK, teacher_BK, 2.0)
    joined = distillation_with_labels(student_BK, teacher_BK, labels_B, 2.0, alpha=1.0)
    torch.testing.assert_close(joined, alone, rtol=1e-12, atol=0)
    unlabelled = distillation_with_labels(student_BK, teacher_BK, nobody_B, 2.0, alpha=0.25)
    torch.testing.assert_close(unlabelled, 0.25 * alone, rtol=1e-12, atol=0)


def test_gradient_flows_to_the_student_alone():
    student_BK, teacher_BK = draw_logits(0).requires_grad_(), draw_logits(1).requires_grad_()
    distillation_loss(student_BK, teacher_BK, 2.0).backward()
    assert teacher_BK.grad is None
    expected = 2.0 * (F.softmax(student_BK / 2, 1) - F.softmax(teacher_BK / 2, 1)) / 5
    torch.testing.assert_close(student_BK.grad, expected.detach(), rtol=1e-9, atol=1e-12)


def test_a_student_equal_to_its_teacher_has_no_gradient():
    student_BK = draw_logits(0).requires_grad_()
    distillation_loss(student_BK, student_BK.detach(), 0.1).backward()
    torch.testing.assert_close(student_BK.grad, torch.zeros(5, 4, dtype=torch.float64))


def test_half_precision_logits_are_compared_in_float32():
    student_BK, teacher_BK = draw_logits(0).bfloat16(), draw_logits(1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = distillation_loss(student_BK, teacher_BK, 0.1)
    torch.testing.assert_close(
        loss, distillation_loss(student_BK.float(), teacher_BK.float(), 0.1), rtol=0, atol=0
    )


def test_logits_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 4), 1.0)
