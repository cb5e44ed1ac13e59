"""What `python -m pipeline init` decides about labels: splits, fractions, how long a net learns."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.errors import UserError

# Passes over the labels, at least: quick's own at 10% are 16 and 23, gpu's at all labels 20 and 28.
FEWEST_PASSES = {"finetune": 16, "supervised": 24}


@dataclass(frozen=True)
class Labels:
    """How the labelled images are dealt out.

    Attributes:
        n_train: images to train on, with and without a label.
        labelled: of them with a label.
        fewest: labelled ones of the smallest class.
        n_classes: of the source.
    """

    n_train: int
    labelled: int
    fewest: int
    n_classes: int


def deal_labels(found: Mapping[str, Any], values: dict[str, Any], reasons: list[str]) -> Labels:
    """Sizes of the splits that the source does not bring, and what they leave to train on."""
    per_class = found["per_class"]
    names = found["class_names"]
    n_classes = len(names)
    own = [per_class[side] for side in ("not said", "train") if side in per_class]
    pool = [sum(counts) for counts in zip(*own, strict=True)] or [0] * n_classes
    drawn = [side for side in ("test", "validation") if side not in per_class]
    least = 1 + len(drawn)
    short = [
        f"{name} has {count}" for name, count in zip(names, pool, strict=True) if count < least
    ]
    if short:
        more = f" and {len(short) - 5} more" if len(short) > 5 else ""
        raise UserError(
            f"too few labels: {', '.join(short[:5])}{more}.\n  Each class needs {least} labelled "
            f"images or more, one each for {' and for '.join(['training', *drawn])}. "
            "Label more, or take the class out."
        )
    total = sum(pool)
    if "test" in drawn:
        share = min(max(5 * n_classes / total, 0.15), 0.3)
        share = max(round(share, 2), -(-1000 * n_classes // total) / 1000)
        held = int(share * total)
        values["data.test_fraction"] = share
        reasons.append(
            f"test_fraction {share:g}: {held:,} labelled images to report on, as the source names "
            f"no test images (0.15, more where that is fewer than 5 a class)"
        )
    else:
        held = 0
        reasons.append(f"test: the source's own {sum(per_class['test']):,} images")
    rest = total - held
    wanted = max(rest // 10, min(5 * n_classes, rest // 5), n_classes)
    validation = max(min(wanted, 5000, rest - n_classes), 1)
    values["data.validation_images"] = validation
    if "validation" in drawn:
        rest -= validation
        reasons.append(
            f"validation_images {validation}: a tenth of the labels left, at least 5 a class "
            "where there are enough, at most 5,000"
        )
    else:
        reasons.append(f"validation: the source's own {sum(per_class['validation']):,} images")
    n_train = found["unlabelled"] + rest
    return Labels(n_train, rest, max(int(min(pool) * rest / total), 1), n_classes)


def choose_fractions(
    labels: Labels, profile: Mapping[str, Any], values: dict[str, Any], reasons: list[str]
) -> dict[Any, int]:
    """Label fractions that every class can fill and that differ by half or more; their labels."""
    each = max(k for k in (1, 2, 5, 10) if k == 1 or 2 * k <= labels.fewest)
    chosen: dict[Any, int] = {f"{each}_per_class": each * labels.n_classes}
    for share in (0.01, 0.1, 1.0):
        count = int(share * labels.labelled)
        enough = count >= 2 * labels.n_classes or share == 1.0
        if enough and all(
            count >= 1.5 * other or other >= 1.5 * count for other in chosen.values()
        ):
            chosen[share] = count
    if len(chosen) > 3 and 1.0 in chosen and profile["profile"] == "quick":
        del chosen[1.0]  # as the profile: where labels are many, the question is about few
    values["finetune.label_fractions"] = list(chosen)
    values["finetune.label_lists"] = {}
    for stage in ("finetune", "supervised"):  # tuned on the images that the profile was made for
        if profile[stage].get("overrides"):
            values[f"{stage}.overrides"] = {}
    shown = ", ".join(f"{fraction} ({count:,} labels)" for fraction, count in chosen.items())
    reasons.append(
        f"label_fractions {shown}: of {labels.labelled:,} training labels, {labels.fewest:,} in "
        "the smallest class; those with two of each class or more, half as large again as the last"
    )
    return chosen


def scale_classifiers(
    cost: float, profile: Mapping[str, Any], values: dict[str, Any], reasons: list[str]
) -> None:
    """Fewer and smaller steps on labels where an image costs more than the profile's."""
    if cost <= 1:
        return
    fitted = {}
    for stage in ("finetune", "supervised"):
        batch = profile[stage]["batch_size"]
        fitted_batch = max(batch // 2, 32) if cost > 2 else batch
        faster = cost * fitted_batch / batch
        section = profile[stage]
        key = "duration" if stage == "finetune" else "duration_grid"
        durations = [section[key]] if stage == "finetune" else section[key]
        steps = [_fewer_steps(duration, faster) for duration in durations]
        values[f"{stage}.batch_size"] = fitted_batch
        values[f"{stage}.{key}"] = steps[0] if stage == "finetune" else list(dict.fromkeys(steps))
        values[f"{stage}.warmup"] = _fewer_steps(section["warmup"], faster, least=10)
        fitted[stage] = f"{stage} {' or '.join(dict.fromkeys(steps))} of {fitted_batch}"
    reasons.append(f"{', '.join(fitted.values())}: an image costs {cost:.1f} times the profile's")


def pass_over_labels(
    fractions: Mapping[Any, int],
    profile: Mapping[str, Any],
    values: dict[str, Any],
    reasons: list[str],
) -> None:
    """Longer where there are more labels: a net that saw each a few times is no baseline."""
    longer = []
    for stage, key in (("finetune", "duration"), ("supervised", "duration_grid")):
        batch = values.get(f"{stage}.batch_size", profile[stage]["batch_size"])
        written = values.get(f"{stage}.{key}", profile[stage][key])
        longest = max(_steps(text) for text in ([written] if key == "duration" else written))
        passes = FEWEST_PASSES[stage]
        duration = f"{passes} epochs"
        few = [name for name, count in fractions.items() if longest * batch < passes * count]
        if few:
            value = duration if key == "duration" else [duration]
            values[f"{stage}.overrides"] = {str(name): {key: value} for name in few}
            longer.append(f"{stage} {duration} with {' and '.join(map(str, few))}")
    if longer:
        reasons.append(
            f"{', '.join(longer)}: the steps above would be fewer passes over the labels"
        )


def _steps(duration: str) -> float:
    number, unit = duration.split()
    return float(number) if unit == "steps" else math.inf


def _fewer_steps(duration: str, faster: float, least: int = 100) -> str:
    number, unit = duration.split()
    if unit != "steps":
        return duration
    return f"{min(max(round(float(number) / faster), least), round(float(number)))} steps"
