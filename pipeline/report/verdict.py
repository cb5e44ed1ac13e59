"""What the unlabelled images were worth, as arithmetic and as a sentence.

Ours is chosen by validation accuracy, never by the test set. Two methods are compared seed by seed
(same seed: same labels), and a difference counts as clear when the 95% confidence interval of
its mean, by Student's t, leaves out 0. Accuracies and differences are fractions in [0, 1].
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev

from pipeline.report.methods import finetuned, labels_phrase, same_net
from pipeline.report.results import Result, Study

# Student's t, 97.5% quantile, by degrees of freedom from 1.
_T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
MINUS = "\N{MINUS SIGN}"
NEAR = 0.01  # a student within a point of its teacher counts as near


def t_quantile(degrees: int) -> float:
    """97.5% quantile of Student's t; beyond the table a formula good to 0.003."""
    table = len(_T_QUANTILES)
    return _T_QUANTILES[degrees - 1] if degrees <= table else 1.96 + 2.4 / degrees


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
        if self.seeds < 2:
            return None
        return t_quantile(self.seeds - 1) * self.deviation / math.sqrt(self.seeds)

    @property
    def interval(self) -> tuple[float, float] | None:
        half = self.half_width
        return None if half is None else (self.mean - half, self.mean + half)

    @property
    def kind(self) -> str:
        """'gain', 'loss', 'unclear' (the interval holds 0) or 'one seed'."""
        if self.interval is None:
            return "one seed"
        low, high = self.interval
        return "gain" if low > 0 else "loss" if high < 0 else "unclear"


def compare(ours: Result | None, theirs: Result | None) -> Difference | None:
    """The paired difference over the seeds that both have; None where there is none."""
    if ours is None or theirs is None:
        return None
    a, b = ours.by_seed(), theirs.by_seed()
    shared = sorted(set(a) & set(b))
    if not shared:
        return None
    return Difference(ours, theirs, {seed: a[seed] - b[seed] for seed in shared})


def gain_at(study: Study, label_fraction: str) -> Difference | None:
    """Ours, chosen on validation, against the supervised net on the same labels.

    Candidates use the unlabelled images, end in the same net, and have as many seeds as any.
    """
    supervised = study.results.get(("supervised", label_fraction))
    pairs = [
        compare(study.results.get((method.name, label_fraction)), supervised)
        for method in study.methods
        if method.uses_unlabelled and same_net(method, study.params)
    ]
    found = [pair for pair in pairs if pair is not None]
    most = max((pair.seeds for pair in found), default=0)
    full = [pair for pair in found if pair.seeds == most]
    return max(full, key=lambda pair: pair.ours.validation_mean, default=None)


def means(gain: Difference) -> tuple[float, float]:
    """Accuracy of theirs and of ours over the shared seeds."""
    theirs, ours = gain.theirs.by_seed(), gain.ours.by_seed()
    return fmean(theirs[seed] for seed in gain.by_seed), fmean(ours[seed] for seed in gain.by_seed)


def points(difference: float) -> str:
    """'+4.7', or '-0.3' with a true minus: a difference of accuracies in points."""
    rounded = round(difference * 100, 1)
    return f"{'+' if rounded >= 0 else MINUS}{abs(rounded):.1f}"


def sentence(study: Study) -> str:
    """The answer, at the fewest labels that have been run."""
    for fraction in study.fractions:
        gain = gain_at(study, fraction)
        if gain is not None:
            return gain_sentence(gain, study.train_images)
    return (
        "Not run yet: the answer needs the supervised net and a pretrained one at the same labels."
    )


def gain_sentence(gain: Difference, unlabelled: int | None) -> str:
    """One sentence that may say 'worth', 'no gain', 'cost' or 'no verdict from one seed'."""
    count = "" if unlabelled is None else f"{unlabelled:,} "
    start = f"With {labels_phrase(gain.ours.label_fraction)}, the {count}unlabelled images"
    before, after = means(gain)
    change = f"{before * 100:.1f} → {after * 100:.1f} %"
    over = "over the same net trained on the labels alone"
    subsets = f"mean of {gain.seeds} label subsets"
    if gain.interval is None:
        return (
            f"{start} gave {points(gain.mean)} points ({change}) {over}, on one label subset: "
            "its spread is not known, so this is no verdict yet."
        )
    low, high = gain.interval
    if gain.kind == "gain":
        return f"{start} were worth {points(gain.mean)} points ({change}, {subsets}) {over}."
    if gain.kind == "loss":
        return f"{start} cost {points(-gain.mean)[1:]} points ({change}, {subsets}) {over}."
    return (
        f"{start} brought no gain that stands out from the spread over seeds: "
        f"{points(gain.mean)} points ({change}, {subsets}; 95% interval {points(low)} to "
        f"{points(high)}) {over}."
    )


def labels_for_same(study: Study, gain: Difference) -> tuple[str, float | None] | None:
    """How many labels the supervised net needs for our accuracy, read off its own curve.

    Returns:
        ('=', labels), by a straight line over log(labels); ('>', most labels tried) where its
        curve never gets there; None where ours is not ahead or there is no curve.
    """
    curve = sorted(
        (result.labels, result.mean)
        for (method, _), result in study.results.items()
        if method == "supervised" and result.labels >= max(gain.theirs.labels, 1)
    )
    target = means(gain)[1]
    if gain.kind != "gain" or len(curve) < 2:
        return None
    for (n0, a0), (n1, a1) in pairwise(curve):
        if a0 < target <= a1:
            return "=", n0 * (n1 / n0) ** ((target - a0) / (a1 - a0))
    return ">", curve[-1][0]


@dataclass(frozen=True)
class Claim:
    """A claim of the SimCLRv2 paper, held against our own numbers."""

    text: str
    verdict: str  # yes, no, undecided, not tested
    why: str


def claims(study: Study) -> list[Claim]:
    """The paper's claims at the fewest labels; 'undecided' where seeds disagree."""
    bigger = Claim(
        "Bigger nets gain more when labels are fewer",
        "not tested",
        "needs runs of two net sizes; this run has one",
    )
    if not study.fractions:
        return [bigger]
    fraction = study.fractions[0]

    def result(method: str) -> Result | None:
        return study.results.get((method, fraction))

    middle = [result(finetuned(layer).name) for layer in study.params.finetune.layers if layer > 0]
    best = max((r for r in middle if r), key=lambda r: r.validation_mean, default=None)
    teacher = result(finetuned(study.params.distill.teacher_layer).name)
    return [
        _claim(
            "Fine-tuning from a middle layer of the head beats layer 0 when labels are few",
            compare(best, result("finetune_layer_0")),
        ),
        _claim(
            "Distilling into a net of the same size on unlabelled images improves on its teacher",
            compare(result("distill_same"), teacher),
        ),
        _near_claim(result("distill_small"), result("distill_same")),
        bigger,
    ]


def _claim(text: str, difference: Difference | None) -> Claim:
    if difference is None:
        return Claim(text, "not tested", "not run yet")
    verdicts = {"gain": "yes", "loss": "no"}
    names = f"{difference.ours.method.title} against {difference.theirs.method.title}"
    why = f"{names}: {points(difference.mean)} points{_spread(difference)}"
    return Claim(text, verdicts.get(difference.kind, "undecided"), why)


def _spread(difference: Difference) -> str:
    if difference.interval is None:
        return ", one seed"
    low, high = difference.interval
    return f", {difference.seeds} seeds, 95% interval {points(low)} to {points(high)}"


def _near_claim(student: Result | None, teacher: Result | None) -> Claim:
    text = "Distillation on unlabelled images brings a smaller net near its teacher"
    gap = compare(student, teacher)
    if gap is None:
        return Claim(text, "not tested", "not run yet")
    why = f"student minus teacher {points(gap.mean)} points{_spread(gap)}; near means within 1"
    return Claim(text, "yes" if gap.mean >= -NEAR else "no", why)
