"""The probe is logistic regression: scikit-learn finds the same minimum."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from stages.evaluation.linear_probe import regularisation_path


def clouds(n_images: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Three overlapping clouds in six dimensions of very different scale."""
    generator = torch.Generator().manual_seed(0)
    classes_N = torch.arange(n_images) % 3
    centres_KD = torch.randn(3, 6, generator=generator)
    features_ND = centres_KD[classes_N] + torch.randn(n_images, 6, generator=generator)
    return features_ND * torch.tensor([1e-2, 1.0, 10.0, 1.0, 100.0, 1.0]), classes_N


@pytest.mark.parametrize("l2", [1e-3, 1e-1])
def test_a_probe_has_the_weights_that_scikit_learn_finds(l2: float):
    features_ND, classes_N = clouds()
    (probe,) = regularisation_path(features_ND, classes_N, 3, [l2], max_iterations=1000)
    inputs_ND = (features_ND - probe.mean_D) / probe.scale_D
    reference = LogisticRegression(C=1 / (l2 * len(inputs_ND)), tol=1e-8, max_iter=10_000)
    reference.fit(inputs_ND.double().numpy(), classes_N.numpy())
    expected_KD = torch.from_numpy(reference.coef_).float()
    torch.testing.assert_close(probe.weight_KD, expected_KD, rtol=2e-3, atol=2e-3)


def test_the_start_on_the_path_does_not_change_the_answer():
    features_ND, classes_N = clouds()
    *_, last = regularisation_path(features_ND, classes_N, 3, [1e-3, 1.0, 1e-2], 1000)
    (alone,) = regularisation_path(features_ND, classes_N, 3, [1e-3], 1000)
    assert last.l2 == 1e-3
    torch.testing.assert_close(last.weight_KD, alone.weight_KD, rtol=5e-3, atol=5e-3)


def test_a_feature_that_never_varies_does_no_harm():
    features_ND, classes_N = clouds()
    features_ND[:, 2] = 7.0
    (probe,) = regularisation_path(features_ND, classes_N, 3, [1e-2], 200)
    assert probe(features_ND).isfinite().all()
