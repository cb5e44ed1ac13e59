"""The regularisation path of the linear probe against scikit-learn, fitted once per strength.

    python tests/benchmarks/bench_linear.py [--images 5000] [--width 512] [--rounds 3]

One JSON line per figure; `ratio` >= `target` is good. Both minimise the same objective (mean cross
entropy + l2 / 2 * ||W||^2 on the same standardised features, C = 1 / (l2 * N)) over the 45
strengths of SimCLR's appendix B.8, until no entry of the gradient is above the same tolerance, and
both in float32, the type in which scikit-learn is faster. Runs alternate, on one thread, and
medians of CPU time are compared, which a busy machine changes least. `objective_excess` is how far
the worst of our 45 objectives lies above scikit-learn's, as a share of it: at a loose tolerance
both stop short of the minimum, each at a place of its own. The peer is among the locked packages.
"""

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor

from stages.evaluation.linear_probe import LinearProbe, regularisation_path

TARGET = 4.0
GRID = [10 ** (-6 + 0.25 * step) for step in range(45)]
MOST_ITERATIONS = 10_000
Weights = tuple[Tensor, Tensor]


def draw(n_images: int, width: int, n_classes: int) -> tuple[Tensor, Tensor]:
    """Features as an encoder gives them: after a ReLU, their variances falling as 1 / rank."""
    generator = torch.Generator().manual_seed(0)
    classes_N = torch.arange(n_images) % n_classes
    centres_KD = 0.3 * torch.randn(n_classes, width, generator=generator)
    hidden_ND = centres_KD[classes_N] + torch.randn(n_images, width, generator=generator)
    hidden_ND /= torch.arange(1, width + 1).sqrt()
    mixing_DD, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
    return (hidden_ND @ mixing_DD * math.sqrt(width) + 0.3).relu(), classes_N


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's handwritten digits: 1,797 rows of 64 real features."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return torch.from_numpy(bunch.data).float(), torch.from_numpy(bunch.target)


def ours(features_ND: Tensor, classes_N: Tensor, tolerance: float) -> list[LinearProbe]:
    n_classes = int(classes_N.max()) + 1
    path = regularisation_path(features_ND, classes_N, n_classes, GRID, MOST_ITERATIONS, tolerance)
    return list(path)


def peers(inputs_ND: np.ndarray, classes_N: np.ndarray, tolerance: float) -> list[Weights]:
    """Weights and biases of one fit per strength, strongest first."""
    found = []
    for l2 in sorted(GRID, reverse=True):
        model = LogisticRegression(
            C=1 / (l2 * len(inputs_ND)), tol=tolerance, max_iter=MOST_ITERATIONS
        ).fit(inputs_ND, classes_N)
        found.append((torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)))
    return found


def objective(weights: Weights, l2: float, inputs_ND: Tensor, classes_N: Tensor) -> float:
    weight_KD, bias_K = (tensor.double() for tensor in weights)
    loss = F.cross_entropy(F.linear(inputs_ND.double(), weight_KD, bias_K), classes_N)
    return float(loss + l2 / 2 * weight_KD.square().sum())


def measure(name: str, features_ND: Tensor, classes_N: Tensor, tolerance: float, rounds: int):
    probe = ours(features_ND, classes_N, tolerance)[0]
    inputs_ND = (features_ND - probe.mean_D) / probe.scale_D
    theirs_see = inputs_ND.numpy(), classes_N.numpy()
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(rounds):
        begun = time.process_time()
        probes = ours(features_ND, classes_N, tolerance)
        between = time.process_time()
        fits = peers(*theirs_see, tolerance)
        seconds["peer"].append(time.process_time() - between)
        seconds["ours"].append(between - begun)
    excess = []
    for probe, fit in zip(probes, fits, strict=True):
        lowest = objective(fit, probe.l2, inputs_ND, classes_N)
        found = objective((probe.weight_KD, probe.bias_K), probe.l2, inputs_ND, classes_N)
        excess.append(found / lowest - 1)
    medians = {who: statistics.median(taken) for who, taken in seconds.items()}
    figure = {
        "name": name,
        "ratio": round(medians["peer"] / medians["ours"], 2),
        "target": TARGET,
        "peer": "scikit-learn LogisticRegression(lbfgs)",
        "ours_seconds": round(medians["ours"], 3),
        "peer_seconds": round(medians["peer"], 3),
        "objective_excess": float(f"{max(excess):.2g}"),
        "images": len(features_ND),
        "width": features_ND.shape[1],
        "classes": int(classes_N.max()) + 1,
        "strengths": len(GRID),
        "tolerance": tolerance,
        "rounds": rounds,
    }
    print(json.dumps(figure), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)  # float32 ends its search a little short
    with threadpool_limits(1):
        for tolerance in (1e-4, 1e-6):  # scikit-learn's own, and the project's
            measure("linear_path_digits", *digits(), tolerance, arguments.rounds)
            for n_classes in (10, 100):
                drawn = draw(arguments.images, arguments.width, n_classes)
                measure("linear_path", *drawn, tolerance, arguments.rounds)


if __name__ == "__main__":
    main()
