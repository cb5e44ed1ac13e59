"""Student's t and an exact permutation test, for a handful of seeds.

Two tests of one question, for they fail in different places. Student's t reads the size of the
spread off the values and takes them for normal, which nobody can check on three. The permutation
test assumes only that without an effect each difference could as well have had the other sign;
of n seeds its p is at least 2 / 2^n, so below six seeds it can't come under 0.05 whatever is seen.
"""

import math
from collections.abc import Sequence
from functools import cache
from itertools import product
from statistics import fmean, stdev

LEVEL = 0.95
MOST_SIGNS = 14  # seeds of which all patterns of signs are gone through: 16,384


def t_within(t: float, degrees: int) -> float:
    """Probability that |T| is below t, T of Student's t (Abramowitz and Stegun 26.7.3-4)."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    term = cosine if degrees % 2 else 1.0
    total = 0.0
    for k in range(degrees % 2, degrees - 1, 2):
        total += term
        term *= cosine * cosine * (k + 1) / (k + 2)
    if degrees % 2:
        return 2 / math.pi * (angle + sine * total)
    return sine * total


@cache
def t_quantile(degrees: int) -> float:
    """97.5% quantile of Student's t, so that 95% lie within plus and minus it."""
    low, high = 0.0, 13.0  # 12.706 is the largest, of one degree
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, degrees) < LEVEL else (low, middle)
    return high


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95% confidence interval of the mean; None of one value, which has no spread."""
    if len(values) < 2:
        return None
    return t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def p_by_t(differences: Sequence[float]) -> float | None:
    """Two-sided p of a paired t-test; None where there is no spread to compare with."""
    if len(differences) < 2 or not (deviation := stdev(differences)):
        return None
    t = abs(fmean(differences)) / (deviation / math.sqrt(len(differences)))
    return 1 - t_within(t, len(differences) - 1)


def p_by_signs(differences: Sequence[float]) -> float | None:
    """Two-sided p of the exact test over all patterns of signs.

    None for one value, and for more than MOST_SIGNS, where Student's t does well.
    """
    if not 2 <= len(differences) <= MOST_SIGNS:
        return None
    seen = abs(sum(differences)) - 1e-12  # equal sums must not differ by rounding
    patterns = list(product((1, -1), repeat=len(differences)))
    reached = sum(
        abs(sum(sign * value for sign, value in zip(pattern, differences, strict=True))) >= seen
        for pattern in patterns
    )
    return reached / len(patterns)
