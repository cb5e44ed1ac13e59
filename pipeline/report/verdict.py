"""What the unlabelled images were worth, as arithmetic and as a sentence.

Ours is chosen by validation accuracy, never by the test set. Two methods are compared seed by seed
(same seed: same labels), and a difference counts as clear when the 95% confidence interval of
its mean, by Student's t, leaves out 0. Accuracies and differences are fractions in [0, 1].
"""

from pipeline.report.comparison import Difference, compare, means, points
from pipeline.report.efficiency import Efficiency, efficiency_of
from pipeline.report.methods import is_pretrained, labels_phrase, same_net
from pipeline.report.results import Study


def gain_at(study: Study, label_fraction: str) -> Difference | None:
    """Ours, chosen on validation, against the supervised net on the same labels.

    Candidates start from pretraining, end in the same net, and have as many seeds as any.
    """
    supervised = study.results.get(("supervised", label_fraction))
    pairs = [
        compare(study.results.get((method.name, label_fraction)), supervised)
        for method in study.methods
        if is_pretrained(method) and same_net(method, study.params)
    ]
    found = [pair for pair in pairs if pair is not None]
    most = max((pair.seeds for pair in found), default=0)
    full = [pair for pair in found if pair.seeds == most]
    return max(full, key=lambda pair: pair.ours.validation_mean, default=None)


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


def labels_for_same(study: Study, gain: Difference) -> Efficiency | None:
    """How many labels the supervised net needs for our accuracy; None where ours is not ahead."""
    return efficiency_of(study, gain.ours) if gain.kind == "gain" else None


def efficiency_sentence(study: Study) -> str:
    """What ours is worth in labels, at the fewest; empty where it is not clearly ahead."""
    for fraction in study.fractions:
        gain = gain_at(study, fraction)
        if gain is not None:
            needed = labels_for_same(study, gain)
            at = f"{gain.ours.labels:,} labels"
            return "" if needed is None else f"Ours at {at} is worth {needed.words}."
    return ""
