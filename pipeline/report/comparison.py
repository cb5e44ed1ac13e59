"""Two methods against each other, label subset by label subset.

A seed is a label subset; nets that differ only in their initialisation share one, so their mean
is one value of that subset and not several. Differences are fractions in [0, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, stdev

from pipeline.report.results import Result
from pipeline.report.statistics import half_width, p_by_signs, p_by_t

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Difference:
    """`ours` minus `theirs`, paired by seed."""

    ours: Result
    theirs: Result
    by_seed: dict[int, float]

    @property
    def seeds(self) -> int:
        return len(self.by_seed)

    @property
    def mean(self) -> float:
        return fmean(self.by_seed.values())

    @property
    def deviation(self) -> float:
        """Standard deviation of the differences over seeds; 0 for one seed."""
        return stdev(self.by_seed.values()) if self.seeds > 1 else 0.0

    @property
    def half_width(self) -> float | None:
        """Half of the 95% interval; None for one seed, which has no spread."""
        return half_width([*self.by_seed.values()])

    @property
    def interval(self) -> tuple[float, float] | None:
        half = self.half_width
        return None if half is None else (self.mean - half, self.mean + half)

    @property
    def p_by_t(self) -> float | None:
        return p_by_t([*self.by_seed.values()])

    @property
    def p_by_signs(self) -> float | None:
        return p_by_signs([*self.by_seed.values()])

    @property
    def kind(self) -> str:
        """'gain', 'loss', 'unclear' (the interval holds 0) or 'one seed'."""
        if self.interval is None:
            return "one seed"
        low, high = self.interval
        return "gain" if low > 0 else "loss" if high < 0 else "unclear"


def compare(
    ours: Result | None, theirs: Result | None, measure: str = "test_accuracy"
) -> Difference | None:
    """The paired difference over the seeds that both have; None where there is none."""
    if ours is None or theirs is None:
        return None
    a, b = ours.by_seed(measure), theirs.by_seed(measure)
    shared = sorted(set(a) & set(b))
    if not shared:
        return None
    return Difference(ours, theirs, {seed: a[seed] - b[seed] for seed in shared})


def means(gain: Difference) -> tuple[float, float]:
    """Accuracy of theirs and of ours over the shared seeds."""
    theirs, ours = gain.theirs.by_seed(), gain.ours.by_seed()
    return fmean(theirs[seed] for seed in gain.by_seed), fmean(ours[seed] for seed in gain.by_seed)


def points(difference: float) -> str:
    """'+4.7', or '-0.3' with a true minus: a difference of accuracies in points."""
    rounded = round(difference * 100, 1)
    return f"{'+' if rounded >= 0 else MINUS}{abs(rounded):.1f}"


def interval_words(
    interval: tuple[float, float] | None, seeds: int, show: Callable[[float], str] = points
) -> str:
    """'3 seeds, 95% interval +0.2 to +4.1', or 'one seed'."""
    if interval is None:
        return "one seed"
    low, high = interval
    return f"{seeds} seeds, 95% interval {show(low)} to {show(high)}"
