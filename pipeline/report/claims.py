"""The claims of the SimCLRv2 paper, held against our own numbers: yes, no or undecided.

"Yes" and "no" need a 95% interval over label subsets (Student's t, paired) that lies on one side;
everything else is undecided, and why is said. A verdict is on these nets and these images.
"""

from dataclasses import dataclass
from statistics import fmean

from pipeline.report.comparison import Difference, compare, interval_words, points
from pipeline.report.methods import finetuned, fraction_title
from pipeline.report.results import Result, Study
from pipeline.report.statistics import half_width

NEAR = 0.01  # a student within a point of its teacher counts as near
VERDICTS = {"gain": "yes", "loss": "no"}


@dataclass(frozen=True)
class Claim:
    """A claim of the SimCLRv2 paper, and what these numbers say of it."""

    text: str
    verdict: str  # yes, no, undecided
    why: str


def claims(study: Study) -> list[Claim]:
    """The paper's three claims, and the one of self-distillation, at the fewest labels."""

    def result(method: str) -> Result | None:
        return study.results.get((method, study.fractions[0]))

    middle = [result(finetuned(layer).name) for layer in study.params.finetune.layers if layer > 0]
    best = max((r for r in middle if r), key=lambda r: r.validation_mean, default=None)
    teacher = result(finetuned(study.params.distill.teacher_layer).name)
    return [
        bigger_nets_gain_more(study),
        beats(
            "A middle layer of the head beats layer 0 when labels are few",
            compare(best, result("finetune_layer_0")),
        ),
        comes_near(
            "Distillation on unlabelled images brings a small student near its teacher",
            result("distill_small"),
            result("distill_same"),
        ),
        beats(
            "Distilling into a net of the same size on unlabelled images improves on its teacher",
            compare(result("distill_same"), teacher),
        ),
    ]


def beats(text: str, difference: Difference | None) -> Claim:
    if difference is None:
        return Claim(text, "undecided", "not run yet")
    spread = interval_words(difference.interval, difference.seeds)
    names = f"{difference.ours.method.title} against {difference.theirs.method.title}"
    why = f"{names}: {points(difference.mean)} points, {spread}"
    return Claim(text, VERDICTS.get(difference.kind, "undecided"), why)


def comes_near(text: str, student: Result | None, teacher: Result | None) -> Claim:
    """Near: the whole interval of student minus teacher lies above minus one point."""
    gap = compare(student, teacher)
    if gap is None:
        return Claim(text, "undecided", "not run yet")
    why = f"student minus teacher {points(gap.mean)} points, "
    why += f"{interval_words(gap.interval, gap.seeds)}; near means within 1"
    if gap.interval is None:
        return Claim(text, "undecided", f"{why}; the spread of one seed is not known")
    low, high = gap.interval
    return Claim(text, "yes" if low >= -NEAR else "no" if high < -NEAR else "undecided", why)


def bigger_nets_gain_more(study: Study) -> Claim:
    """Fine-tuned, what the biggest net has over the smallest: at the fewest labels and the most."""
    text = "Bigger nets gain more when labels are fewer"
    layer = finetuned(study.params.distill.teacher_layer).name
    sized = sorted(study.sizes, key=study.parameters_of)
    shared = [
        fraction
        for fraction in study.fractions
        if len(sized) > 1 and all(study.sized(s, layer, fraction) for s in (sized[0], sized[-1]))
    ]
    if len(sized) < 2:
        why = "one net size only; sizes.encoders of params.yaml adds some (profile study)"
        return Claim(text, "undecided", why)
    if len(shared) < 2:
        return Claim(text, "undecided", "needs two sizes at two label fractions; not run yet")
    gaps = [
        compare(study.sized(sized[-1], layer, f), study.sized(sized[0], layer, f))
        for f in (shared[0], shared[-1])
    ]
    few, many = (gap.by_seed if gap else {} for gap in gaps)
    change = [few[seed] - many[seed] for seed in sorted(set(few) & set(many))]
    if not change:
        return Claim(text, "undecided", "the two sizes share no label subset")
    half, mean = half_width(change), fmean(change)
    interval = None if half is None else (mean - half, mean + half)
    why = (
        f"{sized[-1]} over {sized[0]}, fine-tuned: {_gap(few)} with {fraction_title(shared[0])}, "
        f"{_gap(many)} with {fraction_title(shared[-1])}; the change "
        f"{points(mean)}, {interval_words(interval, len(change))}"
    )
    if interval is None:
        return Claim(text, "undecided", why)
    low, high = interval
    return Claim(text, "yes" if low > 0 else "no" if high < 0 else "undecided", why)


def _gap(by_seed: dict[int, float]) -> str:
    return f"{points(fmean(by_seed.values()))} points"
