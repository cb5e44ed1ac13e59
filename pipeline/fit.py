"""Params that fit a folder of images: what `python -m pipeline init` decides, and why.

Everything follows from two things. What `stages.look` found (sizes, colours, classes, labels), and
how much the profile of this machine computes on the images it was made for: 55,000 of 28 x 28
pixels. Durations are scaled so that the fitted params compute about as much.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.fit_labels import (
    Labels,
    choose_fractions,
    deal_labels,
    pass_over_labels,
    scale_classifiers,
)
from stages.errors import UserError

PROFILE_IMAGES, PROFILE_SIZE = 55_000, 28  # of Fashion-MNIST, for which the profiles were made
SIZES = (16, 20, 24, 28, 32, 48, 64, 96, 128, 160, 192, 224)
SMALLEST_FOR_SPEED = 28  # below, shapes are gone; smaller only where the images are
# Time per pixel of the image, beside the stem small_stride2: imagenet's measured with ResNet-10 on
# a CPU (125 against 330 ns); small keeps four times the positions.
STEM_COST = {"small": 4.0, "small_stride2": 1.0, "imagenet": 0.38}

FEWEST_STEPS = 600  # of pretraining, that a size must leave time for
FEWEST_EPOCHS = 40
MOST_EPOCHS = {"quick": 300, "gpu": 800}
LARGEST_SIZE = {"quick": 96, "gpu": 224}
PIXELS_PER_MINUTE = 1e8  # quick's pretraining: 22 epochs of 55,000 images of 28 x 28 in 9.5 minutes
TAPS = 4  # pixels that the official resize reads for each it makes, along each side
RESIZED = (
    *("evaluation", "pretrain.views", "finetune.views", "distill.views"),
    *("semisup.weak_views", "semisup.strong_views"),
)
SHARD_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Fit:
    """What was decided.

    Attributes:
        values: by dotted key of params.yaml.
        reasons: a line each.
    """

    values: dict[str, Any]
    reasons: list[str]


def fit(found: Mapping[str, Any], profile: Mapping[str, Any], why_profile: str) -> Fit:
    """Decide every value that depends on the images.

    Args:
        found: the JSON of stages.look.
        profile: the values of the profile of this machine.
        why_profile: why this one.

    Raises:
        UserError: too few labels to train, choose and test with, or nothing that decodes.
    """
    values: dict[str, Any] = {f"data.{key}": value for key, value in found["data"].items()}
    reasons = [_what_was_found(found), f"profile {profile['profile']}: {why_profile}"]
    labels = deal_labels(found, values, reasons)
    size = _choose_size(found, profile, labels, values, reasons)
    _choose_colours(found, size, values, reasons)
    _choose_resize(found, size, profile, values, reasons)
    fractions = choose_fractions(labels, profile, values, reasons)
    _scale_work(size, profile, labels, values, reasons)
    pass_over_labels(fractions, profile, values, reasons)
    bytes_each = max(found["bytes_each"], 1)
    per_shard = min(profile["data"]["images_per_shard"], int(SHARD_BYTES / bytes_each) or 1)
    values["data.images_per_shard"] = _rounded(per_shard)
    return Fit(values, reasons)


def _what_was_found(found: Mapping[str, Any]) -> str:
    labelled = found["images"] - found["unlabelled"]
    names = found["class_names"]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    layout = {
        "folder": "a folder per class",
        "webdataset": "WebDataset shards",
        "torchvision": f"torchvision's {found['data'].get('name')}",
        "labels_csv": f"a list of labels ({found['data'].get('labels_csv')})",
    }.get(found["data"]["source"], found["data"]["source"])
    return (
        f"source {found['data']['source']}: {layout}; {found['images']:,} images, {labelled:,} "
        f"of them labelled, {len(names)} classes ({shown})"
    )


def _choose_size(
    found: Mapping[str, Any],
    profile: Mapping[str, Any],
    labels: Labels,
    values: dict[str, Any],
    reasons: list[str],
) -> int:
    """The largest size that the images have and that leaves time for enough epochs."""
    if not found["shorter_side"]:
        key, reason = found["damaged"][0]
        raise UserError(
            f"none of the {found['decoded']} images looked at decodes; the first: {key} "
            f"({reason}).\n  Check that data.root holds pictures."
        )
    low, median, high = (round(found["shorter_side"][place]) for place in (0, 2, 4))
    name = profile["profile"]
    most = min(median, LARGEST_SIZE[name])
    had = [size for size in SIZES if size <= most] or [SIZES[0]]
    floor = min(SMALLEST_FOR_SPEED, had[-1])
    batch = batch_for(profile, labels.n_train)
    size = next(
        (
            size
            for size in reversed(had)
            if size >= floor
            and budget_of(profile) / cost_of(size, name)
            >= max(FEWEST_EPOCHS * labels.n_train, FEWEST_STEPS * batch)
        ),
        floor,
    )
    stem = stem_for(size, name)
    values |= {
        "data.image_size": size,
        "pretrain.encoder.stem": stem,
        "distill.small.encoder.stem": stem,
    }
    reasons.append(
        f"image_size {size}: shorter sides are {low} to {high} pixels, {median} at the median; "
        f"the largest of {', '.join(map(str, SIZES))} up to that, to {LARGEST_SIZE[name]} (profile "
        f"{name}), and to what leaves time for {FEWEST_EPOCHS} epochs and {FEWEST_STEPS} steps"
    )
    reasons.append(f"stem {stem}: for {size} pixels")
    if found["aspect"] > 1.6:
        reasons.append(
            f"note: the images are {found['aspect']:.1f} times as long as wide at the median; what "
            "scores sees their middle only"
        )
    if found["damaged"]:
        key, reason = found["damaged"][0]
        reasons.append(
            f"note: {len(found['damaged'])} of {found['decoded']} images looked at do not decode, "
            f"the first {key} ({reason}); above {profile['data']['quarantine_tolerance']:g} of "
            "all, the stage shard stops"
        )
    return size


def _choose_colours(
    found: Mapping[str, Any], size: int, values: dict[str, Any], reasons: list[str]
) -> None:
    """Channels, and views that fit them."""
    looked_at = found["decoded"] - len(found["damaged"])
    in_colour = found["colourful"] > 0.01 * looked_at
    values["data.channels"] = 3 if in_colour else 1
    reasons.append(
        f"channels {values['data.channels']}: {found['colourful']} of {looked_at} images looked at "
        "have colour"
    )
    views = {"saturation": 0.0, "hue": 0.0, "grayscale_probability": 0.0}
    if in_colour:
        views = {"saturation": 0.8, "hue": 0.2, "grayscale_probability": 0.2}
    views["blur_probability"] = 0.5 if size >= 96 else 0.0
    values |= {f"pretrain.views.{key}": value for key, value in views.items()}
    reasons.append(
        f"views: {'colour jitter and greying of SimCLR' if in_colour else 'no colour to jitter'}; "
        f"blur {'on' if size >= 96 else 'off'} (on from 96 pixels; SimCLR has it on large images)"
    )


def _choose_resize(
    found: Mapping[str, Any],
    size: int,
    profile: Mapping[str, Any],
    values: dict[str, Any],
    reasons: list[str],
) -> None:
    """A resize that reads every pixel, where the official one would pass over most of them."""
    median = round(found["shorter_side"][2])
    if median <= TAPS * size:
        return
    kernel = "bicubic_antialias"
    for key in RESIZED:
        values[f"{key}.resize"] = kernel
    grid = profile["supervised"]["views_grid"]
    values["supervised.views_grid"] = [{**views, "resize": kernel} for views in grid]
    reasons.append(
        f"resize {kernel}: {median} pixels become {size}, and the official kernel reads {TAPS} for "
        "each, so most would count for nothing"
    )


def _scale_work(
    size: int,
    profile: Mapping[str, Any],
    labels: Labels,
    values: dict[str, Any],
    reasons: list[str],
) -> None:
    """Batches and durations: as much computing as the profile's own."""
    name = profile["profile"]
    cost = cost_of(size, name) / cost_of(PROFILE_SIZE, name)  # of an image, beside the profile's
    batch = batch_for(profile, labels.n_train)
    seen = budget_of(profile) / cost_of(size, name)
    epochs = min(max(seen / labels.n_train, 5), MOST_EPOCHS[name])
    base_lr = profile["pretrain"]["optimizer"]["base_lr"]
    if profile["pretrain"]["optimizer"]["lr_scaling"] == "none":
        base_lr *= (batch / profile["pretrain"]["batch_size"]) ** 0.5
    values |= {
        "pretrain.batch_size": batch,
        "pretrain.duration": _epochs(epochs),
        "pretrain.warmup": _epochs(max(epochs / 20, 0.1)),
        "pretrain.optimizer.base_lr": float(f"{base_lr:.2g}"),
    }
    share = epochs * labels.n_train / seen
    steps = max(round(epochs * max(labels.n_train // batch, 1)), 1)
    reasons.append(
        f"pretrain {_epochs(epochs)} of {labels.n_train:,} images, batch {batch} ({steps:,} "
        f"steps): {share:.2g} times the computing of the profile on the images it was made for"
        f"{_minutes(name, share * budget_of(profile))}"
    )
    _fit_memory(profile, labels, values, reasons)
    for student in ("same", "small"):
        written = float(profile["distill"][student]["duration"].split()[0])
        fitted = written * PROFILE_IMAGES / cost / labels.n_train
        values[f"distill.{student}.duration"] = _epochs(min(max(fitted, 0.5), 60))
    values["distill.batch_size"] = min(batch, profile["distill"]["batch_size"])
    scale_classifiers(cost, profile, values, reasons)


def _fit_memory(
    profile: Mapping[str, Any], labels: Labels, values: dict[str, Any], reasons: list[str]
) -> None:
    """A queue much shorter than an epoch: else an image meets its own past as a negative."""
    written = profile["pretrain"]["memory"]
    if written["kind"] == "none":
        return
    size = min(written["size"], _power_of_two(labels.n_train // 4))
    if size < 1024:
        values["pretrain.memory.kind"] = "none"
        reasons.append("memory none: too few images for a queue without an image's own past in it")
    elif size < written["size"]:
        values["pretrain.memory.size"] = size
        reasons.append(f"memory {size:,} keys: at most a quarter of the images")


def budget_of(profile: Mapping[str, Any]) -> float:
    """What the profile's pretraining computes, in pixels through the stem small_stride2."""
    epochs = float(profile["pretrain"]["duration"].split()[0])
    return epochs * PROFILE_IMAGES * cost_of(PROFILE_SIZE, profile["profile"])


def cost_of(size: int, profile_name: str) -> float:
    """Of one image, in pixels through the stem small_stride2."""
    return size**2 * STEM_COST[stem_for(size, profile_name)]


def stem_for(size: int, profile_name: str) -> str:
    """CIFAR's up to 32 pixels on a GPU, ImageNet's from 96, between them one that halves once."""
    if size >= 96:
        return "imagenet"
    return "small" if profile_name == "gpu" and size <= 32 else "small_stride2"


def batch_for(profile: Mapping[str, Any], n_train: int) -> int:
    """The profile's, but never more than half of the images."""
    return min(profile["pretrain"]["batch_size"], max(_power_of_two(n_train // 2), 2))


def _power_of_two(most: int) -> int:
    return 1 << max(most.bit_length() - 1, 0)


def _epochs(number: float) -> str:
    shown = f"{number:.0f}" if number >= 10 else f"{number:.1f}"
    return f"{shown} epochs"


def _minutes(profile_name: str, pixels: float) -> str:
    """As measured for quick's network; another profile's was not."""
    minutes = max(round(pixels / PIXELS_PER_MINUTE), 1)
    return f", some {minutes} minutes on two cores" if profile_name == "quick" else ""


def _rounded(count: int) -> int:
    """Down to one or two leading digits, as a person would write it."""
    digits = max(len(str(count)) - 2, 0)
    return count // 10**digits * 10**digits
