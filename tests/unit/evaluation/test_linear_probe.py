"""The probe is logistic regression: scikit-learn finds the same minimum."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from stages.evaluation.linear_probe import LinearProbe, refitted, regularisation_path
from stages.evaluation.principal_axes import PrincipalAxes

ROOT = Path(__file__).parents[3]
V1_GRID = [10 ** (-6 + 0.25 * step) for step in range(45)]  # SimCLR, B.8


def clouds(n_images: int = 300, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Three overlapping clouds in dimensions of very different scale."""
    generator = torch.Generator().manual_seed(0)
    classes_N = torch.arange(n_images) % 3
    centres_KD = torch.randn(3, width, generator=generator)
    features_ND = centres_KD[classes_N] + torch.randn(n_images, width, generator=generator)
    return features_ND * torch.tensor([1e-2, 1.0, 10.0, 1.0, 100.0, 1.0]).repeat(
        width // 6
    ), classes_N


def objective(probe: LinearProbe, features_ND: torch.Tensor, classes_N: torch.Tensor) -> float:
    loss = F.cross_entropy(probe(features_ND).double(), classes_N)
    return float(loss + probe.l2 / 2 * probe.weight_KD.double().square().sum())


def of_scikit_learn(
    probe: LinearProbe, features_ND: torch.Tensor, classes_N: torch.Tensor
) -> LinearProbe:
    """The same regression in float64, to a tolerance far below ours."""
    inputs_ND = (features_ND - probe.mean_D) / probe.scale_D
    found = LogisticRegression(C=1 / (probe.l2 * len(inputs_ND)), tol=1e-8, max_iter=10_000)
    found.fit(inputs_ND.double().numpy(), classes_N.numpy())
    weight_KD, bias_K = torch.from_numpy(found.coef_), torch.from_numpy(found.intercept_)
    return LinearProbe(probe.mean_D, probe.scale_D, weight_KD.float(), bias_K.float(), probe.l2)


@pytest.mark.parametrize("width", [6, 600])  # fewer axes than images, and as many as images
def test_probes_along_the_papers_path_are_those_that_scikit_learn_finds_one_by_one(width: int):
    features_ND, classes_N = clouds(width=width)
    probes = list(regularisation_path(features_ND, classes_N, 3, V1_GRID, max_iterations=1000))
    assert [probe.l2 for probe in probes] == sorted(V1_GRID, reverse=True)
    assert all(probe.converged for probe in probes)
    for probe in probes[12:33:5]:  # from 100 to 1e-3; the ends take scikit-learn long
        theirs = of_scikit_learn(probe, features_ND, classes_N)
        torch.testing.assert_close(probe.weight_KD, theirs.weight_KD, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(probe.bias_K, theirs.bias_K, rtol=2e-3, atol=2e-3)
        lowest = objective(theirs, features_ND, classes_N)
        assert objective(probe, features_ND, classes_N) == pytest.approx(lowest, rel=1e-4)


def test_several_classes_an_image_are_a_regression_each():
    features_ND, classes_N = clouds()
    targets_NK = torch.stack([classes_N == 0, classes_N > 0], dim=1)
    (probe,) = regularisation_path(features_ND, targets_NK, 2, [1e-2], 500)
    for number in range(2):
        theirs = of_scikit_learn(probe, features_ND, targets_NK[:, number])
        torch.testing.assert_close(
            probe.weight_KD[number : number + 1], theirs.weight_KD, rtol=2e-3, atol=2e-3
        )


def test_the_start_on_the_path_does_not_change_the_answer():
    features_ND, classes_N = clouds()
    *_, last = regularisation_path(features_ND, classes_N, 3, [1e-3, 1.0, 1e-2], 1000)
    (alone,) = regularisation_path(features_ND, classes_N, 3, [1e-3], 1000)
    assert last.l2 == 1e-3
    torch.testing.assert_close(last.weight_KD, alone.weight_KD, rtol=5e-3, atol=5e-3)


def test_too_few_iterations_are_told():
    features_ND, classes_N = clouds()
    (probe,) = regularisation_path(features_ND, classes_N, 3, [1e-5], max_iterations=2)
    assert not probe.converged


def test_a_feature_that_never_varies_does_no_harm():
    features_ND, classes_N = clouds()
    features_ND[:, 2] = 7.0
    (probe,) = regularisation_path(features_ND, classes_N, 3, [1e-2], 200)
    assert probe(features_ND).isfinite().all()
    torch.testing.assert_close(probe.weight_KD[:, 2], torch.zeros(3))


def test_images_that_are_all_alike_give_the_shares_of_the_classes():
    classes_N = torch.tensor([0, 0, 0, 1])
    (probe,) = regularisation_path(torch.ones(4, 8), classes_N, 2, [1.0], 200)
    torch.testing.assert_close(
        probe(torch.ones(1, 8)).softmax(dim=1), torch.tensor([[0.75, 0.25]]), atol=1e-5, rtol=0
    )


def test_a_refit_keeps_the_whole_penalty_while_images_become_more():
    features_ND, classes_N = clouds()
    probe = refitted(1e-2, 200, features_ND, classes_N, 3, 1000)
    assert probe.l2 == pytest.approx(1e-2 * 200 / 300)
    # scikit-learn's C is one over the whole penalty: chosen with 200 images, kept for 300
    inputs_ND = (features_ND - probe.mean_D) / probe.scale_D
    found = LogisticRegression(C=1 / (1e-2 * 200), tol=1e-8, max_iter=10_000)
    found.fit(inputs_ND.double().numpy(), classes_N.numpy())
    expected_KD = torch.from_numpy(found.coef_).float()
    torch.testing.assert_close(probe.weight_KD, expected_KD, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("n_images", "width"), [(400, 12), (30, 200)])
def test_along_principal_axes_the_covariance_is_diagonal(n_images: int, width: int):
    generator = torch.Generator().manual_seed(0)
    mixing_DD = torch.randn(width, width, generator=generator)
    features_ND = torch.randn(n_images, width, generator=generator) @ mixing_DD + 5
    axes = PrincipalAxes.of(features_ND, torch.device("cpu"))
    rotated_NR = axes.rotate(features_ND)
    assert rotated_NR.shape[1] == min(n_images - 1, width)
    covariance_RR = rotated_NR.T @ rotated_NR / n_images
    torch.testing.assert_close(covariance_RR, axes.variance_R.diag(), rtol=1e-3, atol=1e-3)
    eye_RR = torch.eye(len(axes.variance_R))
    torch.testing.assert_close(axes.axes_DR.T @ axes.axes_DR, eye_RR, rtol=0, atol=1e-4)


MEMORY = """
import resource, sys, torch
from stages.evaluation.linear_probe import regularisation_path
torch.set_num_threads(1)
features_ND = torch.randn(int(sys.argv[1]), 64)
classes_N = torch.arange(len(features_ND)) % 200
list(regularisation_path(features_ND[:8192], classes_N[:8192], 200, [1.0], 3))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
list(regularisation_path(features_ND, classes_N, 200, [1.0], 3))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux")
def test_memory_is_bounded_by_one_copy_of_the_features_and_not_by_logits():
    n_images = 200_000  # 51 MB of features; logits alone would be 160 MB, and a gradient as much
    taken = subprocess.run(
        [sys.executable, "-c", MEMORY, str(n_images)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(taken.stdout) < 1.5 * n_images * 64 * 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_same_probe():
    features_ND, classes_N = clouds()
    cpu = list(regularisation_path(features_ND, classes_N, 3, V1_GRID, 1000))
    device = torch.device("cuda")
    gpu = list(regularisation_path(features_ND, classes_N, 3, V1_GRID, 1000, device=device))
    for ours, theirs in zip(gpu, cpu, strict=True):
        torch.testing.assert_close(ours.weight_KD, theirs.weight_KD, rtol=2e-3, atol=2e-3)
