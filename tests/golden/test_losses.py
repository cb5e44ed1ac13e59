"""NT-Xent and distillation against the official code, and its float64 re-computation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages.losses.distillation import distillation_loss, distillation_with_labels
from stages.losses.nt_xent import contrastive_accuracy_and_entropy, nt_xent
from stages.losses.streaming_nt_xent import streaming_nt_xent

pytestmark = pytest.mark.golden

OFFICIAL_IS_TWICE = 2  # it adds the means of the two directions
LOSSES = {"rtol": 1e-5, "atol": 1e-6}
GRADIENT_OF_LARGEST = 1e-5
STREAMING_OF_LARGEST = 5e-6


def cases(path: Path, prefix: str, last: str) -> list[dict[str, np.ndarray]]:
    """The arrays of each numbered case by name."""
    arrays = np.load(path)
    numbers = sorted(
        int(name.removeprefix(prefix).partition("_")[0])
        for name in arrays.files
        if name.startswith(prefix) and name.endswith(last)
    )
    assert numbers, f"no {prefix} cases in {path}"
    return [
        {
            name.removeprefix(f"{prefix}{number}_"): arrays[name]
            for name in arrays.files
            if name.startswith(f"{prefix}{number}_")
        }
        for number in numbers
    ]


def leaf(array: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(array, dtype=dtype, requires_grad=True)


def assert_close_to_largest(actual: torch.Tensor | None, expected: np.ndarray, share: float):
    assert actual is not None
    limit = share * np.abs(expected).max()
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=limit)


def official_loss(loss_function, case: dict[str, np.ndarray], dtype: torch.dtype):
    """Twice our loss of a case, and its gradients by the two views."""
    z0_BP, z1_BP = leaf(case["z1"], dtype), leaf(case["z2"], dtype)
    loss = OFFICIAL_IS_TWICE * loss_function(
        z0_BP, z1_BP, float(case["temperature"]), normalize=bool(case["hidden_norm"])
    )
    loss.backward()
    return loss.item(), np.concatenate([z0_BP.grad.numpy(), z1_BP.grad.numpy()])


def rounding_of_a_gradient(case: dict[str, np.ndarray]) -> float:
    """What the rounding of a softmax of almost 1 may move an entry of the gradient by."""
    norms = np.linalg.norm(np.concatenate([case["z1"], case["z2"]]), axis=1)
    slope = 1 / norms.min() if case["hidden_norm"] else norms.max()
    return float(np.finfo(np.float32).eps * slope / (case["temperature"] * len(case["z1"])))


@pytest.mark.parametrize("loss_function", [nt_xent, streaming_nt_xent])
def test_nt_xent_is_half_the_official_loss_with_half_its_gradient(golden_dir, loss_function):
    for case in cases(golden_dir / "nt_xent.npz", "case", "_loss"):
        loss, grad = official_loss(loss_function, case, torch.float32)
        _, precise_grad = official_loss(nt_xent, case, torch.float64)
        official_grad = np.concatenate([case["grad_z1"], case["grad_z2"]])
        # Where the loss is nearly 0 its float32 gradient, the official one too, is mostly rounding.
        official_error = np.abs(official_grad - precise_grad).max()
        largest = np.abs(official_grad).max()
        limit = GRADIENT_OF_LARGEST * largest + 2 * official_error + rounding_of_a_gradient(case)
        np.testing.assert_allclose(loss, case["loss"], **LOSSES)
        np.testing.assert_allclose(grad, official_grad, rtol=0, atol=limit)


@pytest.mark.parametrize("loss_function", [nt_xent, streaming_nt_xent])
def test_nt_xent_in_float64_is_the_float64_recomputation(golden_dir, loss_function):
    recomputed = json.loads((golden_dir / "nt_xent.json").read_text())
    arrays = cases(golden_dir / "nt_xent.npz", "case", "_loss")
    for case, expected in zip(arrays, recomputed, strict=True):
        case = {**case, "temperature": expected["temperature"]}  # not rounded to float32
        loss, _ = official_loss(loss_function, case, torch.float64)
        np.testing.assert_allclose(loss, expected["numpy_float64_loss"], rtol=1e-9, atol=1e-12)


def test_streaming_gradient_is_the_float64_one(golden_dir):
    for case in cases(golden_dir / "nt_xent.npz", "case", "_loss"):
        _, grad = official_loss(streaming_nt_xent, case, torch.float32)
        _, precise_grad = official_loss(nt_xent, case, torch.float64)
        assert_close_to_largest(torch.from_numpy(grad), precise_grad, STREAMING_OF_LARGEST)


def test_contrastive_accuracy_and_entropy_are_the_logged_ones(golden_dir):
    for case in cases(golden_dir / "nt_xent.npz", "case", "_loss"):
        accuracy, entropy = contrastive_accuracy_and_entropy(
            torch.tensor(case["z1"]),
            torch.tensor(case["z2"]),
            float(case["temperature"]),
            normalize=bool(case["hidden_norm"]),
        )
        assert accuracy.item() == pytest.approx(float(case["contrast_acc"]), abs=1e-6)
        np.testing.assert_allclose(entropy.item(), case["contrast_entropy"], rtol=2e-5, atol=1e-5)


def test_distillation_is_the_official_notebooks(golden_dir):
    for case in cases(golden_dir / "distill.npz", "kd", "_loss"):
        student_BK = leaf(case["student_logits"])
        teacher_BK = torch.tensor(case["teacher_logits"])
        loss = distillation_loss(student_BK, teacher_BK, float(case["temperature"]))
        loss.backward()
        np.testing.assert_allclose(loss.item(), case["loss"], **LOSSES)
        assert_close_to_largest(student_BK.grad, case["grad_student"], GRADIENT_OF_LARGEST)


def test_supervised_loss_is_plain_cross_entropy_and_distillation_of_share_0(golden_dir):
    for case in cases(golden_dir / "distill.npz", "sup", "_loss"):
        labels_B = torch.tensor(case["labels"], dtype=torch.int64)
        for loss_function in (
            F.cross_entropy,
            lambda logits, labels: distillation_with_labels(
                logits, torch.zeros_like(logits), labels, temperature=1.0, alpha=0.0
            ),
        ):
            logits_BK = leaf(case["logits"])
            loss = loss_function(logits_BK, labels_B)
            loss.backward()
            np.testing.assert_allclose(loss.item(), case["loss"], **LOSSES)
            assert_close_to_largest(logits_BK.grad, case["grad_logits"], GRADIENT_OF_LARGEST)
