"""Are two models different, or could their answers have been swapped (SimCLR, B.8)?

Shapes: N test images.
"""

import numpy as np
from numpy.typing import NDArray

SAMPLES = 100_000
LEVEL = 0.05  # a p above it is a tie


def permutation_p(
    differences_N: NDArray[np.float64], samples: int = SAMPLES, seed: int = 0
) -> float:
    """Two-sided p of the hypothesis that swapping both models' answers to an image changes nothing.

    A swap turns the sign of that image's difference. Images whose differences are of one size are
    drawn together, as one binomial; where all are of one size (top-1), nothing needs to be drawn
    and p is exact: McNemar's test.

    Args:
        differences_N: what each image adds to one model's score less what it adds to the other's.
        samples: random sets of swaps, where p isn't exact.
        seed: of the samples.
    """
    sizes, counts = np.unique(
        np.abs(differences_N[differences_N != 0]).round(12), return_counts=True
    )
    seen = abs(differences_N.sum())
    if not len(sizes):
        return 1.0
    if len(sizes) == 1:
        return _mcnemar(int(counts[0]), round(seen / sizes[0]))
    rng = np.random.default_rng(seed)
    sums = np.zeros(samples)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        sums += size * (2 * rng.binomial(count, 0.5, samples) - count)
    reached = int((np.abs(sums) >= seen - 1e-9 * max(seen, 1e-300)).sum())
    return (reached + 1) / (samples + 1)  # what was seen is one of the ways


def _mcnemar(count: int, lead: int) -> float:
    """Probability that of `count` fair coins heads and tails differ by `lead` or more."""
    most = (count + lead) // 2  # heads of the winner
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    heads = np.arange(most, count + 1)
    tail = np.exp(logs[count] - logs[heads] - logs[count - heads] - count * np.log(2)).sum()
    return float(min(1.0, 2 * tail)) if lead else 1.0


def per_image_scores(
    right_N: NDArray[np.bool_], classes_N: NDArray[np.int64], *, balanced: bool
) -> NDArray[np.float64]:
    """What each image adds to a model's score, which is accuracy or its mean over classes."""
    if not balanced:
        return right_N / len(right_N)
    _, place_N, counts_K = np.unique(classes_N, return_inverse=True, return_counts=True)
    return right_N / (counts_K[place_N] * len(counts_K))
