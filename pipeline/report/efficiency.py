"""Label efficiency: how many labels the supervised net needs for the same accuracy.

Read off its own curve of accuracy over the logarithm of the number of labels, straight between the
fractions that were run. The curve is that of the mean; how sure the figure is, is told by
reading each label subset's accuracy off the curve of that same subset (of one seed, fewer labels
lie inside more) and taking Student's t over the logarithms. What the figure can't know: the shape
of the curve between two fractions, and anything beyond the last of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from pipeline.report.results import Result, Study
from pipeline.report.statistics import half_width

Curve = Sequence[tuple[int, float]]  # (labels, accuracy), fewest labels first


@dataclass(frozen=True)
class Efficiency:
    """What `result` is worth in labels.

    Attributes:
        result: the method at its label fraction.
        sign: "=": `times` is read off the curve; ">" or "<": the curve never gets there, and
            `times` is as far as it goes.
        times: labels the supervised net needs, over the labels the method had.
        by_seed: the same for each label subset whose own curve gets there.
        interval: 95%, of `times`; None where a subset's curve does not get there, or of one.
    """

    result: Result
    sign: str
    times: float
    by_seed: dict[int, float]
    interval: tuple[float, float] | None

    @property
    def labels(self) -> float:
        return self.times * self.result.labels

    @property
    def words(self) -> str:
        """'2.3 times the labels (95% interval 1.6 to 3.4)' or 'more than 55 times the labels'."""
        if self.sign != "=":
            bound = "more" if self.sign == ">" else "less"
            return f"{bound} than {times_text(self.times)} times the labels"
        more = ""
        if self.interval is not None:
            low, high = self.interval
            more = f" (95% interval {times_text(low)} to {times_text(high)})"
        return f"{times_text(self.times)} times the labels{more}"


def times_text(times: float) -> str:
    """'2.3', '1,200', '0.02': never '0.0'."""
    if times < 0.1:
        return f"{times:.1g}"
    return f"{times:.1f}" if times < 100 else f"{times:,.0f}"


def efficiency_of(study: Study, result: Result | None) -> Efficiency | None:
    """How many times the labels the supervised net needs; None where it has no curve to read."""
    supervised = [
        found
        for (method, _), found in study.results.items()
        if method == "supervised" and found.labels
    ]
    if result is None or not result.labels or len(supervised) < 2:
        return None
    curve = sorted((found.labels, found.mean) for found in supervised)
    sign, labels = read_off(curve, result.mean)
    by_seed = {}
    asked = result.by_seed()
    for seed, accuracy in asked.items():
        points = sorted(
            (found.labels, found.by_seed()[seed]) for found in supervised if seed in found.by_seed()
        )
        if len(points) == len(curve) and (read := read_off(points, accuracy))[0] == "=":
            by_seed[seed] = read[1] / result.labels
    return Efficiency(
        result,
        sign,
        labels / result.labels,
        by_seed,
        _interval(list(by_seed.values())) if len(by_seed) == len(asked) else None,
    )


def read_off(curve: Curve, accuracy: float) -> tuple[str, float]:
    """('=', labels) by a straight line over log(labels); ('<', fewest) or ('>', most) outside."""
    if accuracy < curve[0][1]:
        return "<", curve[0][0]
    for (n0, a0), (n1, a1) in pairwise(curve):
        if a0 <= accuracy <= a1:
            share = (accuracy - a0) / (a1 - a0) if a1 > a0 else 0.0
            return "=", n0 * (n1 / n0) ** share
    return ">", curve[-1][0]


def _interval(times: Sequence[float]) -> tuple[float, float] | None:
    logarithms = [math.log(value) for value in times]
    half = half_width(logarithms)
    if half is None:
        return None
    middle = fmean(logarithms)
    return math.exp(middle - half), math.exp(middle + half)
