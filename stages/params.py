"""The types of params.yaml: every value a run may vary, checked before anything runs.

A section per stage, in stage order. Sections are frozen and refuse unknown keys, so a misspelt
key is an error and not a default. Stages read their section once, in `main`; inner code takes
plain arguments.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from stages.errors import UserError

PARAMS_FILE = Path("params.yaml")

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]

Precision = Annotated[
    Literal["float32", "bfloat16"],
    Field(description="of the network while it trains; weights and losses are float32 always"),
]

REMOTE_SCHEMES = ("s3", "gs", "http", "https")

ResizeKernel = Literal["bicubic_tf2", "bicubic_tf1", "bilinear_antialias", "bicubic_antialias"]

# Pixels that a stem needs at least; `stages.models.resnet.STRIDE`, which this light file can't read
SMALLEST_IMAGE = {"imagenet": 32, "small": 8, "small_stride2": 16}

_DURATION = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?) (epochs|steps|images)")
_PER_CLASS = re.compile(r"[1-9]\d*_per_class")


def _check_duration(text: str) -> str:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("write a number and a unit, like '60 epochs', '500 steps', '2e6 images'")
    if float(match[1]) <= 0:
        raise ValueError("must be longer than nothing")
    return text


Duration = Annotated[
    str,
    AfterValidator(_check_duration),
    Field(description="a number and a unit: epochs, steps or images"),
]


def duration_in_steps(duration: str, n_images: int, batch_size: int) -> int:
    """Steps of `batch_size` images that a duration like '60 epochs' means, at least 1.

    An epoch has floor(n_images / batch_size) steps, but at least one (few labels: the batch
    then is the whole set).
    """
    number, unit = duration.split()
    steps_per_epoch = max(n_images // batch_size, 1)
    steps = {
        "epochs": float(number) * steps_per_epoch,
        "steps": float(number),
        "images": float(number) / batch_size,
    }[unit]
    return max(round(steps), 1)


def _check_label_fraction(value: Any) -> Any:
    """'0.01' is a share of the training labels, '10_per_class' a number for each class."""
    text = str(value)
    if _PER_CLASS.fullmatch(text):
        return text
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise ValueError("write a share of the labels above 0 and up to 1, or N_per_class")
    return text


LABEL_LISTS = Path("stages/label_lists")  # the stage subsets depends on this folder

LabelFraction = Annotated[
    str,
    BeforeValidator(_check_label_fraction, json_schema_input_type=str | float),
    Field(description="share of the training labels (0.01), or a number per class (10_per_class)"),
]


def _no_doubles(values: list[Any]) -> list[Any]:
    doubles = sorted({str(value) for value in values if values.count(value) > 1})
    if doubles:
        raise ValueError(f"named twice: {', '.join(doubles)}")
    return values


HeadLayers = Annotated[
    list[Annotated[int, Field(ge=0, le=4)]],
    AfterValidator(_no_doubles),
    Field(min_length=1, description="layers of g the classifier attaches to; 0 is h"),
]


class Section(BaseModel):
    """A part of params.yaml: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LogSpaced(Section):
    """A grid of numbers at equal ratios, both ends in it."""

    first: Annotated[Positive, Field(alias="from")]
    last: Annotated[Positive, Field(alias="to")]
    n: Annotated[int, Field(ge=2, le=1000, description="how many")]


def _spaced(written: Any) -> Any:
    """{from, to, n} as the numbers that it stands for; a list as it is."""
    if not isinstance(written, dict):
        return written
    try:
        grid = LogSpaced.model_validate(written)
    except ValidationError:
        raise ValueError("write a list, or {from: 0.000001, to: 100000.0, n: 45}") from None
    ratio = math.log10(grid.last / grid.first) / (grid.n - 1)
    return [float(f"{grid.first * 10 ** (ratio * k):.12g}") for k in range(grid.n)]


L2Grid = Annotated[
    list[Positive],
    BeforeValidator(_spaced, json_schema_input_type=list[Positive] | LogSpaced),
    Field(
        min_length=1,
        description="strengths of the penalty per image, a list or {from, to, n} at equal ratios; "
        "the best on validation is kept",
    ),
]


def problem_of_address(address: str) -> str | None:
    """Why an address of remote files can't be used, or None."""
    if "::" in address or not re.fullmatch(r"[!-~]+", address):
        return "write one plain address, without :: and spaces"
    parts = urlsplit(address)
    if parts.scheme not in REMOTE_SCHEMES or not parts.netloc:
        return f"write {', '.join(f'{scheme}://' for scheme in REMOTE_SCHEMES)} and a place"
    if "@" in parts.netloc or parts.query or parts.fragment:
        return "leave out user names, passwords, ? and #; credentials come from the environment"
    return "leave out .." if ".." in parts.path.split("/") else None


def _check_address(address: str | None) -> str | None:
    problem = None if address is None else problem_of_address(address)
    if problem:
        raise ValueError(problem)
    return address


TorchvisionName = Literal[
    "CIFAR10",
    "CIFAR100",
    "STL10",
    "SVHN",
    "ImageNet",
    "Food101",
    "SUN397",
    "StanfordCars",
    "FGVCAircraft",
    "DTD",
    "OxfordIIITPet",
    "Caltech101",
    "Flowers102",
]


class DataParams(Section):
    """Images in: where from, how split, how sharded."""

    source: Annotated[
        Literal["fashion_mnist", "folder", "labels_csv", "webdataset", "torchvision", "published"],
        Field(
            description="fashion_mnist; folder: a folder per class; labels_csv: a flat folder; "
            "webdataset: .tar shards; torchvision: a data set it knows; published: finished shards "
            "at shards_at"
        ),
    ]
    root: Annotated[
        str | None,
        Field(description="folder of the images; null: downloaded (fashion_mnist, torchvision)"),
    ] = None
    labels_csv: Annotated[
        str | None, Field(description="key,label per line; may name only some of the images")
    ] = None
    shards: Annotated[
        list[str],
        AfterValidator(_no_doubles),
        Field(description="webdataset: only these .tar files below root; empty: all"),
    ] = []
    json_label: Annotated[
        str, Field(description="webdataset: what a .json member calls the class")
    ] = "label"
    name: Annotated[TorchvisionName | None, Field(description="torchvision: the data set")] = None
    download: Annotated[
        bool, Field(description="torchvision: fetch the data set where it is not there")
    ] = False
    unlabelled: Annotated[
        list[str],
        AfterValidator(_no_doubles),
        Field(description="further folders of images, or of .tar shards, used without labels"),
    ] = []
    image_size: Annotated[int, Field(ge=8, le=1024, description="pixels, height and width")]
    channels: Annotated[Literal[1, 3], Field(description="1: grey, 3: RGB")]
    validation_images: Annotated[
        int, Field(ge=1, description="training images set apart to choose with")
    ]
    test_fraction: Annotated[
        Fraction, Field(description="share set apart to report on, where the source has no test")
    ] = 0.15
    train_limit: Annotated[Count | None, Field(description="use only so many; null: all")] = None
    test_limit: Annotated[Count | None, Field(description="use only so many; null: all")] = None
    images_per_shard: Count = 5000
    max_pixels: Annotated[Count, Field(description="a larger picture is quarantined")] = 100_000_000
    quarantine_tolerance: Annotated[
        Fraction, Field(description="share of images that may fail to decode")
    ] = 0.01
    near_duplicates: Annotated[
        Literal["report", "drop"],
        Field(description="drop: leave near copies of held-out images out of training"),
    ] = "report"
    shards_at: Annotated[
        str | None,
        AfterValidator(_check_address),
        Field(description="s3://, gs:// or http:// folder that holds the shards; null: this disk"),
    ] = None
    shuffle_shards: Annotated[
        Count | None,
        Field(description="images are shuffled over so many shards at a time; null: over all"),
    ] = None
    seed: int = 0

    @model_validator(mode="after")
    def _source_has_its_files(self) -> Self:
        if self.source == "published":
            if self.shards_at is None:
                raise ValueError("source published needs shards_at: where the shards are")
        elif self.source == "torchvision":
            if self.name is None:
                raise ValueError("source torchvision needs name: the data set")
            if self.root is None and not self.download:
                raise ValueError("source torchvision needs root: its folder; or download: true")
        elif self.source != "fashion_mnist" and self.root is None:
            raise ValueError(f"source {self.source} needs root: the folder of the images")
        if self.source == "labels_csv" and self.labels_csv is None:
            raise ValueError("source labels_csv needs labels_csv: a file of key,label lines")
        return self


_ENCODER_NAME = re.compile(r"r(\d+)_(\d+(?:\.\d+)?)x_sk([01])")
_SK_RATIO = 0.0625  # the paper's


def _check_encoder_name(name: str) -> str:
    found = _ENCODER_NAME.fullmatch(name)
    if found is None:
        raise ValueError("write depth, width and selective kernels as r50_2x_sk1 or r10_0.5x_sk0")
    depth, width, sk = found.groups()
    EncoderParams.model_validate(
        {
            "depth": int(depth),
            "width_multiplier": float(width),
            "sk_ratio": _SK_RATIO * int(sk),
            "stem": "small",
        }
    )
    return name


EncoderName = Annotated[
    str,
    AfterValidator(_check_encoder_name),
    Field(description="as r50_2x_sk1 of the released networks: depth, width, selective kernels"),
]


class EncoderParams(Section):
    """The encoder f: a ResNet (SimCLRv2, section 3; depth 10 is ours, one block per group)."""

    depth: Literal[10, 18, 34, 50, 101, 152, 200]
    width_multiplier: Annotated[float, Field(gt=0, le=8)]
    sk_ratio: Annotated[
        float, Field(ge=0, le=1, description="0: plain; the paper's selective kernels: 0.0625")
    ] = 0.0
    stem: Annotated[
        Literal["imagenet", "small", "small_stride2"],
        Field(description="imagenet: 7x7/2 + pool; small: 3x3/1 (CIFAR); small_stride2: 3x3/2"),
    ]

    @model_validator(mode="after")
    def _selective_kernels_need_bottlenecks(self) -> Self:
        if self.sk_ratio > 0 and self.depth < 50:
            raise ValueError(f"sk_ratio needs depth 50 or more (depth is {self.depth})")
        return self


def encoder_name(encoder: EncoderParams) -> str:
    """r50_2x_sk1: an encoder in the words of the released networks (the stem is not in them)."""
    return f"r{encoder.depth}_{encoder.width_multiplier:g}x_sk{int(encoder.sk_ratio > 0)}"


def encoder_named(name: str, beside: EncoderParams) -> EncoderParams:
    """The encoder of a name, with the stem of another."""
    found = _ENCODER_NAME.fullmatch(name)
    assert found is not None
    depth, width, sk = found.groups()
    ratio = (beside.sk_ratio or _SK_RATIO) if int(sk) else 0.0
    changed = {"depth": int(depth), "width_multiplier": float(width), "sk_ratio": ratio}
    return EncoderParams.model_validate({**beside.model_dump(), **changed})


class HeadParams(Section):
    """The projection head g (SimCLRv2, section 3: three layers)."""

    depth: Annotated[int, Field(ge=1, le=4, description="layers of g")]
    hidden_width: Annotated[Positive, Field(description="width of hidden layers, times that of h")]
    out_dim: Annotated[int, Field(ge=2, description="width of the projection z")]


class ViewParams(Section):
    """Random views of an image (SimCLR, section 3 and appendix A).

    Strengths are already multiplied by the paper's s: brightness 0.8 is s = 1.
    """

    convention: Annotated[
        Literal["official", "torchvision"],
        Field(description="whose arithmetic of crops and colour"),
    ]
    size: Annotated[
        int | None, Field(ge=8, le=1024, description="pixels of a view; null: data.image_size")
    ] = None
    crop_area: Annotated[
        tuple[float, float], Field(description="smallest and largest share of the image")
    ]
    flip_probability: Fraction = 0.5
    jitter_probability: Fraction = 0.8
    brightness: Annotated[float, Field(ge=0)] = 0.8
    contrast: Annotated[float, Field(ge=0)] = 0.8
    saturation: Annotated[float, Field(ge=0)] = 0.8
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.2
    brightness_kind: Annotated[
        Literal["v1", "v2"], Field(description="v2: multiplies (SimCLRv2's code); v1: adds")
    ] = "v2"
    random_order: Annotated[
        bool, Field(description="the four jitters in random order; false: as listed here")
    ] = True
    grayscale_probability: Fraction = 0.2
    blur_probability: Fraction = 0.5
    blur_sigma: tuple[Positive, Positive] = (0.1, 2.0)
    resize: Annotated[
        ResizeKernel | None,
        Field(description="of crops; null: bicubic_tf2 (official), bilinear_antialias (other)"),
    ] = None

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        low, high = self.crop_area
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_area ({low}, {high}) must rise within 0 and 1")
        if self.blur_sigma[0] > self.blur_sigma[1]:
            raise ValueError(f"blur_sigma {self.blur_sigma} must rise")
        return self

    @model_validator(mode="after")
    def _torchvision_multiplies(self) -> Self:
        if self.convention == "torchvision" and self.brightness_kind == "v1":
            raise ValueError("brightness_kind v1 (adds) is of convention official only")
        return self


class LabelledViewParams(ViewParams):
    """Views a classifier learns from: crop and flip (section B.5 of SimCLR), or stronger."""

    convention: Literal["official", "torchvision"] = "official"
    crop_area: tuple[float, float] = (0.08, 1.0)
    jitter_probability: Fraction = 0.0
    grayscale_probability: Fraction = 0.0
    blur_probability: Fraction = 0.0


class OptimizerParams(Section):
    """One optimizer and its schedule: linear warm-up, then cosine to 0."""

    name: Literal["lars", "sgd", "adamw"]
    base_lr: Annotated[Positive, Field(description="before scaling by the batch size")]
    lr_scaling: Annotated[
        Literal["none", "linear", "sqrt"],
        Field(description="linear: x batch/256; sqrt: x sqrt(batch); none: as written"),
    ] = "none"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1, description="lars and sgd")] = 0.9
    nesterov: Annotated[
        bool | None, Field(description="lars and sgd; null: the official choice, sgd only")
    ] = None
    classic_momentum: Annotated[
        bool, Field(description="lars and sgd: lr inside the momentum buffer, as officially")
    ] = True
    trust_coefficient: Annotated[Positive, Field(description="lars; officially EETA")] = 0.001

    @model_validator(mode="after")
    def _options_are_of_this_optimizer(self) -> Self:
        defaults = type(self).model_fields
        known = {
            "lars": {"nesterov", "classic_momentum", "trust_coefficient"},
            "sgd": {"nesterov", "classic_momentum"},
            "adamw": set(),
        }[self.name]
        for option in ("nesterov", "classic_momentum", "trust_coefficient"):
            if option not in known and getattr(self, option) != defaults[option].default:
                raise ValueError(f"{self.name} has no {option}; leave it out")
        return self


class LossParams(Section):
    """The contrastive loss: NT-Xent, or one that SimCLR compares it with (Table 2, B.10)."""

    kind: Literal["nt_xent", "nt_logistic", "margin_triplet"] = "nt_xent"
    margin: Annotated[float, Field(ge=0, le=2, description="margin_triplet: of the cosines")] = 0.8
    semi_hard: Annotated[
        bool, Field(description="nt_logistic, margin_triplet: one semi-hard negative per anchor")
    ] = False
    scale: Annotated[
        float, Field(gt=0, description="of what is minimised; 2: both directions summed, official")
    ] = 1.0

    @model_validator(mode="after")
    def _nt_xent_takes_all_negatives(self) -> Self:
        if self.kind == "nt_xent" and self.semi_hard:
            raise ValueError("semi_hard is of nt_logistic and margin_triplet (kind is nt_xent)")
        return self


class MemoryParams(Section):
    """Momentum memory: keys of an EMA copy of the network as further negatives (section 2)."""

    kind: Annotated[
        Literal["none", "simclr", "moco"],
        Field(description="simclr: current and past keys join the symmetric loss; moco: MoCo's"),
    ] = "none"
    size: Annotated[int, Field(ge=1, description="keys kept")] = 65536
    decay: Annotated[float, Field(gt=0, lt=1, description="EMA decay per step")] = 0.999


class OnlineProbeParams(Section):
    """Frozen features scored while they are learnt; labels reach nothing else."""

    every: Annotated[Duration | None, Field(description="between two looks; null: never")] = None
    images: Annotated[
        int, Field(ge=10, description="labelled training images, and as many of validation")
    ] = 2000
    k: Annotated[Count, Field(description="nearest neighbours that vote")] = 20
    l2: Annotated[Positive, Field(description="of the linear classifier")] = 0.01


class RollbackParams(Section):
    """Back to the last good state after a number that was not finite."""

    every: Annotated[
        Duration, Field(description="at multiples of this a state to go back to is kept")
    ] = "1 epochs"
    lr_factor: Annotated[
        float, Field(gt=0, lt=1, description="multiplies all later learning rates, each time")
    ] = 0.5
    at_most: Annotated[Count, Field(description="rollbacks of a run; then it stops")] = 3


class PretrainParams(Section):
    """Contrastive pretraining (SimCLRv2, section 2)."""

    encoder: EncoderParams
    head: HeadParams
    views: ViewParams
    duration: Duration
    warmup: Annotated[Duration | None, Field(description="null: none")] = None
    batch_size: Annotated[int, Field(ge=2, description="images per step, all processes")]
    temperature: Annotated[float, Field(gt=0, le=1)]
    decode_on: Annotated[
        Literal["cpu", "gpu"],
        Field(description="gpu: JPEG files there, whose pixels differ a little from the CPU's"),
    ] = "cpu"
    batch_norm_images: Annotated[
        Count | None,
        Field(
            description="images whose views are normalised as one, a divisor of the batch of a "
            "process; null: the whole batch, over all processes"
        ),
    ] = None
    loss: LossParams = LossParams()
    memory: MemoryParams = MemoryParams()
    optimizer: OptimizerParams
    precision: Precision = "float32"
    seed: int = 0
    online_probe: OnlineProbeParams = OnlineProbeParams()
    on_non_finite: Annotated[
        Literal["stop", "rollback"],
        Field(description="a loss, weight or gradient that is not finite; see rollback"),
    ] = "stop"
    rollback: RollbackParams = RollbackParams()
    on_collapse: Annotated[
        Literal["warn", "stop"], Field(description="every image gets about the same z")
    ] = "warn"
    init_from: Annotated[
        str | None,
        Field(
            min_length=1,
            description="folder of a product or an official checkpoint that is taken instead of "
            "training; null: train",
        ),
    ] = None

    @model_validator(mode="after")
    def _memory_needs_nt_xent(self) -> Self:
        if self.memory.kind != "none" and self.loss.kind != "nt_xent":
            raise ValueError(
                f"loss.kind {self.loss.kind} knows no memory (memory.kind is {self.memory.kind}); "
                "write memory.kind: none, or loss.kind: nt_xent"
            )
        return self


class EvaluationParams(Section):
    """How every stage that scores or embeds sees an image: nothing random (SimCLR, B.5)."""

    convention: Annotated[
        Literal["official", "torchvision"],
        Field(description="official: crop, then resize; torchvision: resize, then crop"),
    ] = "official"
    resize: Annotated[
        ResizeKernel | None,
        Field(
            description="null: bicubic_tf2 (official), bilinear_antialias (torchvision); "
            "bicubic_tf1: for the released weights"
        ),
    ] = None
    keep: Annotated[
        float | None,
        Field(gt=0, le=1, description="share of the side; null: 0.875 above 32 pixels, else 1"),
    ] = None


class TrainOnLabels(Section):
    """How a classifier is trained on labelled images."""

    duration: Duration
    warmup: Duration | None = None
    batch_size: Count
    views: LabelledViewParams = LabelledViewParams()
    optimizer: OptimizerParams


class ProbeParams(Section):
    """Frozen features: a linear classifier and nearest neighbours on h."""

    method: Annotated[
        Literal["lbfgs", "sgd"],
        Field(description="lbfgs: to the optimum, on evaluation views; sgd: on random crops"),
    ] = "lbfgs"
    l2_grid: L2Grid
    max_iterations: Annotated[Count, Field(description="lbfgs")] = 200
    sgd: Annotated[TrainOnLabels | None, Field(description="for method sgd (SimCLR, B.6)")] = None
    knn_k: Annotated[Count, Field(description="neighbours; at most the number of labels is used")]
    knn_temperature: Positive = 0.07

    @model_validator(mode="after")
    def _sgd_has_its_settings(self) -> Self:
        if self.method == "sgd" and self.sgd is None:
            raise ValueError("method sgd needs sgd: duration, batch_size, views, optimizer")
        return self


class SupervisedOverride(Section):
    """What the baseline tries otherwise on a label fraction."""

    lr_grid: Annotated[list[Positive] | None, Field(min_length=1)] = None
    duration_grid: Annotated[list[Duration] | None, Field(min_length=1)] = None


class SupervisedParams(Section):
    """The honest baseline: the same net from scratch, on the same labels, tuned on validation."""

    lr_grid: Annotated[list[Positive], Field(min_length=1)]
    duration_grid: Annotated[list[Duration], Field(min_length=1)]
    views_grid: Annotated[
        list[LabelledViewParams], Field(min_length=1, description="weak and strong views")
    ]
    warmup: Duration | None = None
    batch_size: Count
    optimizer: OptimizerParams
    precision: Precision = "float32"
    overrides: Annotated[
        dict[LabelFraction, SupervisedOverride], Field(description="by label fraction")
    ] = {}


class FinetuneOverride(Section):
    """What a label fraction does otherwise than the rest."""

    duration: Duration | None = None
    base_lr: Positive | None = None
    batch_size: Count | None = None
    layers: HeadLayers | None = None


def _check_list_name(name: str) -> str:
    if Path(name).name != name or name.startswith("."):
        raise ValueError(f"write the name of a file in {LABEL_LISTS}/, without a folder")
    return name


class FinetuneParams(TrainOnLabels):
    """A classifier on layer k of g, the whole network trained (section 2)."""

    label_fractions: Annotated[
        list[LabelFraction], AfterValidator(_no_doubles), Field(min_length=1)
    ]
    label_lists: Annotated[
        dict[LabelFraction, Annotated[str, AfterValidator(_check_list_name)]],
        Field(
            description="by label fraction: a file in stages/label_lists/ that says which images"
        ),
    ] = {}
    layers: HeadLayers
    seeds: Annotated[int, Field(ge=1, le=100, description="label subsets, each with its own init")]
    initialisations: Annotated[
        int,
        Field(ge=1, le=100, description="nets per label subset, from scratch and fine-tuned"),
    ] = 1
    zero_init: Annotated[bool, Field(description="start the linear classifier at zero")] = True
    precision: Precision = "float32"
    overrides: Annotated[
        dict[LabelFraction, FinetuneOverride], Field(description="by label fraction")
    ] = {}

    def layers_at(self, fraction: str) -> list[int]:
        """The layers that a label fraction is trained from."""
        override = self.overrides.get(fraction)
        return (override.layers if override else None) or self.layers


class StudentParams(Section):
    """One student: what it is and how long it learns."""

    encoder: Annotated[
        EncoderParams | None, Field(description="null: the teacher's architecture")
    ] = None
    start: Annotated[
        Literal["scratch", "pretrained", "teacher"],
        Field(description="the student's first weights; another encoder starts from scratch"),
    ] = "scratch"
    temperature: Annotated[Positive, Field(description="of the soft labels")]
    duration: Duration
    seeds: Annotated[int | None, Field(ge=1, description="null: as many as finetune.seeds")] = None

    @model_validator(mode="after")
    def _another_encoder_starts_from_scratch(self) -> Self:
        if self.encoder is not None and self.start != "scratch":
            raise ValueError(f"start: {self.start} needs the teacher's encoder (encoder: null)")
        return self


class DistillParams(Section):
    """The teacher's soft labels on all training images (section 2, eq. 2 and 3)."""

    teacher_layer: Annotated[int, Field(ge=0, le=4, description="which of finetune.layers")]
    label_share: Annotated[
        Fraction, Field(description="weight of true labels (1 - alpha of eq. 3); 0: none")
    ] = 0.0
    scale_by_temperature_squared: Annotated[
        bool, Field(description="true: as the official notebook; false: eq. 2 as printed")
    ] = True
    teacher_views: Annotated[
        int,
        Field(
            ge=0,
            le=64,
            description="0: the teacher sees the student's view, as in the paper; "
            "else one answer per image, its mean over so many views",
        ),
    ] = 0
    batch_size: Count
    warmup: Duration | None = None
    views: LabelledViewParams = LabelledViewParams()
    optimizer: OptimizerParams
    precision: Precision = "float32"
    same: Annotated[StudentParams, Field(description="self-distillation, the teacher's size")]
    small: Annotated[StudentParams, Field(description="a smaller student of the self-distilled")]


class SemisupParams(Section):
    """Semi-supervised neighbours: the same net from scratch on labels and unlabelled images.

    Tuned like the supervised baseline. An empty list of methods leaves them out.
    """

    methods: Annotated[
        list[Literal["fixmatch", "pseudo_label"]],
        AfterValidator(_no_doubles),
        Field(description="fixmatch (Sohn et al. 2020), pseudo_label (Lee 2013); empty: none"),
    ] = []
    lr_grid: Annotated[list[Positive], Field(min_length=1)] = [0.003]
    duration_grid: Annotated[list[Duration], Field(min_length=1)] = ["1000 steps"]
    warmup: Duration | None = None
    batch_size: Annotated[Count, Field(description="labelled images of a step")] = 64
    unlabelled_ratio: Annotated[
        Count, Field(description="unlabelled images for each labelled one; mu of FixMatch")
    ] = 7
    unlabelled_weight: Annotated[
        Positive, Field(description="of their loss; lambda_u of FixMatch")
    ] = 1.0
    threshold: Annotated[
        Fraction, Field(description="fixmatch: confidence from which a pseudo-label counts; tau")
    ] = 0.95
    ramp: Annotated[
        tuple[Fraction, Fraction],
        Field(description="pseudo_label: shares of the run between which the weight rises from 0"),
    ] = (0.1, 0.6)
    weak_views: LabelledViewParams = LabelledViewParams(crop_area=(0.6, 1.0))
    strong_views: Annotated[
        LabelledViewParams, Field(description="fixmatch: what must get the weak view's label")
    ] = LabelledViewParams(crop_area=(0.2, 1.0), jitter_probability=0.8)
    optimizer: OptimizerParams = OptimizerParams(name="adamw", base_lr=0.003, weight_decay=0.05)
    precision: Precision = "float32"
    seeds: Annotated[int | None, Field(ge=1, description="null: as many as finetune.seeds")] = None

    @model_validator(mode="after")
    def _ramp_rises(self) -> Self:
        if self.ramp[0] > self.ramp[1]:
            raise ValueError(f"ramp {self.ramp} must rise")
        return self


class SizesParams(Section):
    """The study of net sizes: others than pretrain.encoder, and small students of each."""

    encoders: Annotated[
        list[EncoderName],
        AfterValidator(_no_doubles),
        Field(description="each is pretrained, fine-tuned and trained from scratch; empty: none"),
    ] = []
    students: Annotated[
        list[EncoderName],
        AfterValidator(_no_doubles),
        Field(description="each is taught by every net of encoders and by that of pretrain"),
    ] = []
    label_fractions: Annotated[
        list[LabelFraction],
        AfterValidator(_no_doubles),
        Field(description="among finetune.label_fractions"),
    ] = []
    label_shares: Annotated[
        list[Annotated[float, Field(ge=0, lt=1)]],
        AfterValidator(_no_doubles),
        Field(min_length=1, description="of students: weights of true labels beside soft ones"),
    ] = [0.0]
    seeds: Annotated[int | None, Field(ge=1, description="null: as many as finetune.seeds")] = None


TransferMetric = Literal["accuracy", "balanced_accuracy", "mean_average_precision"]
TransferName = Literal[
    "digits",
    "elpv",
    "fashion_mnist",
    "food101",
    "cifar10",
    "cifar100",
    "birdsnap",
    "sun397",
    "stanfordcars",
    "fgvcaircraft",
    "voc2007",
    "dtd",
    "oxfordiiitpet",
    "caltech101",
    "flowers102",
]


class TransferDataset(Section):
    """A data set of one's own to transfer to."""

    name: Annotated[str, Field(pattern=r"^\w[\w-]*$", description="what the report calls it")]
    source: Annotated[
        Literal["folder", "labels_csv", "webdataset"], Field(description="as data.source")
    ]
    root: Annotated[str, Field(min_length=1, description="folder of the images or shards")]
    labels_csv: Annotated[str | None, Field(description="for source labels_csv")] = None
    json_label: Annotated[str, Field(description="for source webdataset")] = "label"
    metric: Annotated[
        Literal["accuracy", "balanced_accuracy"], Field(description="balanced: mean over classes")
    ] = "accuracy"
    held_out: Annotated[
        float,
        Field(gt=0, lt=1, description="of training, to choose with; where it brings none"),
    ] = 0.1
    test_fraction: Annotated[
        float, Field(gt=0, lt=1, description="to report on; where it brings no test split")
    ] = 0.25
    train_limit: Annotated[Count | None, Field(description="use only so many; null: all")] = None
    test_limit: Annotated[Count | None, Field(description="use only so many; null: all")] = None

    @model_validator(mode="after")
    def _has_its_list(self) -> Self:
        if self.source == "labels_csv" and self.labels_csv is None:
            raise ValueError("source labels_csv needs labels_csv: a file of key,label lines")
        return self


class TransferTraining(Section):
    """Training the whole network on another data set, every setting of a grid (SimCLR, B.8)."""

    duration: Duration
    batch_size: Count
    lr_grid: Annotated[
        list[Positive],
        BeforeValidator(_spaced, json_schema_input_type=list[Positive] | LogSpaced),
        Field(min_length=1, description="learning rates, a list or {from, to, n}"),
    ]
    weight_decay_grid: Annotated[
        list[Positive],
        BeforeValidator(_spaced, json_schema_input_type=list[Positive] | LogSpaced),
        Field(description="weight decays, a list or {from, to, n}"),
    ] = []
    no_weight_decay: Annotated[bool, Field(description="try none as well")] = False
    decay_over_lr: Annotated[
        bool, Field(description="divide each weight decay by the learning rate it is tried with")
    ] = False
    views: LabelledViewParams = LabelledViewParams()
    precision: Precision = "float32"

    @model_validator(mode="after")
    def _some_decay_is_tried(self) -> Self:
        if not self.weight_decay_grid and not self.no_weight_decay:
            raise ValueError("weight_decay_grid is empty: name some, or no_weight_decay: true")
        return self


class TransferParams(Section):
    """Other data sets: frozen features by a linear probe and kNN, and fine-tuning (SimCLR, B.8)."""

    datasets: Annotated[
        list[TransferName | TransferDataset],
        Field(description="names, or descriptions; what is not on disk is skipped and told"),
    ]
    root: Annotated[
        str, Field(min_length=1, description="folder that holds those of torchvision")
    ] = "data/transfer"
    l2_grid: L2Grid
    max_iterations: Count = 500
    refit: Annotated[
        bool, Field(description="learn again from training and validation at the chosen strength")
    ] = False
    train: Annotated[
        list[Literal["finetune", "supervised", "scratch"]],
        AfterValidator(_no_doubles),
        Field(
            description="whole networks to train: finetune, the pretrained; supervised, the "
            "baseline's by the same settings; scratch, untrained"
        ),
    ] = []
    finetune: Annotated[
        TransferTraining | None, Field(description="of the pretrained network, where train has it")
    ] = None
    scratch: Annotated[
        TransferTraining | None, Field(description="of the same untrained, where train has it")
    ] = None
    seed: int = 0

    @model_validator(mode="after")
    def _trainings_have_their_settings(self) -> Self:
        for name in self.train:
            settings = "scratch" if name == "scratch" else "finetune"
            if getattr(self, settings) is None:
                raise ValueError(
                    f"train names {name}: write {settings}: duration, batch_size, lr_grid"
                )
        return self

    @model_validator(mode="after")
    def _each_name_once(self) -> Self:
        names = [entry if isinstance(entry, str) else entry.name for entry in self.datasets]
        _no_doubles(names)
        return self


class ReportParams(Section):
    """The report's pictures."""

    title: str = "SimCLRv2: what were the unlabelled images worth?"
    map_images: Annotated[int, Field(ge=10, description="points on the map of embeddings")] = 2000
    neighbour_queries: Count = 8
    view_images: Count = 8
    seed: int = 0


class RuntimeParams(Section):
    """Where it runs; nothing here may change a result beyond float rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: Annotated[
        Count, Field(description="pretraining processes on each host; 1 or a divisor of the batch")
    ] = 1
    hosts: Annotated[
        Count, Field(description="that pretrain together in one shared folder; see many_hosts.md")
    ] = 1
    launcher: Annotated[
        Literal["rendezvous", "slurm"],
        Field(description="of several hosts: the same command on each of them, or srun"),
    ] = "rendezvous"
    meet_at: Annotated[
        str | None,
        Field(
            pattern=r"^\S+:\d+$",
            description="host:port of one of the hosts, where those of a rendezvous meet",
        ),
    ] = None
    slurm_options: Annotated[
        list[str], Field(description="more words for srun, like --gpus-per-node=8")
    ] = []
    threads: Annotated[int, Field(ge=0, description="CPU threads; 0: all cores")] = 0
    trainings_at_once: Annotated[
        int,
        Field(ge=0, description="small trainings of a stage, each on one core; 0: one per core"),
    ] = 1
    micro_batch: Annotated[
        Count | Literal["auto"] | None,
        Field(
            description="pretraining images of a process that go through the network at once, in "
            "multiples of pretrain.batch_norm_images; auto: as many as fit on the GPU; null: all"
        ),
    ] = None
    recompute: Annotated[
        Literal["none", "groups", "blocks"],
        Field(description="pretraining activations computed again backwards instead of kept"),
    ] = "none"
    channels_last: Annotated[
        bool | Literal["auto"], Field(description="memory layout; auto: true")
    ] = "auto"
    compile: Annotated[
        Literal["auto", "none", "default", "reduce-overhead", "max-autotune"],
        Field(description="torch.compile's mode for what is trained; auto: none"),
    ] = "auto"
    fused_optimizer: Annotated[
        bool | Literal["auto"], Field(description="of adamw; auto: on a GPU")
    ] = "auto"
    views_on: Annotated[
        Literal["auto", "cpu", "gpu"],
        Field(description="where training's views are made; auto: where it runs"),
    ] = "auto"
    loader_threads: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=0, le=64)],
        Field(
            description="batches made at once, ahead of the step; 0: none is made ahead; auto: "
            "2 for a GPU, else 1"
        ),
    ] = "auto"
    save_every_seconds: Positive = 60.0
    log_every_steps: Count = 50
    tensorboard: Annotated[
        str | None,
        Field(min_length=1, description="folder of TensorBoard's event files; null: none"),
    ] = None
    shard_workers: Annotated[
        int, Field(ge=0, description="processes of the stage shard; 0: a process per core")
    ] = 0
    dask_scheduler: Annotated[
        str | None,
        Field(description="tcp://host:8786 of a Dask cluster for the stage shard; null: this host"),
    ] = None
    cache_folder: Annotated[
        str, Field(min_length=1, description="where shards of data.shards_at are kept")
    ] = "data/cache"
    cache_gigabytes: Annotated[Positive, Field(description="that they may take on disk")] = 50.0

    @property
    def world_size(self) -> int:
        """Processes that pretrain together, over all hosts."""
        return self.processes * self.hosts

    @model_validator(mode="after")
    def _what_is_compiled_is_not_recomputed(self) -> Self:
        if self.compile not in {"auto", "none"} and self.recompute != "none":
            raise ValueError(
                f"compile: {self.compile} and recompute: {self.recompute} don't go together; "
                "the compiler chooses what to recompute"
            )
        return self

    @model_validator(mode="after")
    def _hosts_know_where_to_meet(self) -> Self:
        if self.hosts > 1 and self.launcher == "rendezvous" and self.meet_at is None:
            raise ValueError(
                f"hosts is {self.hosts} and launcher rendezvous, so meet_at must name one of them "
                "and a port, like host-0:29500"
            )
        return self


# Of pretraining, what only watches: it decides nothing before a run has gone wrong, and what it
# did then is in the run's state. So a run continues when one of them changes.
WATCHING = ("online_probe", "on_non_finite", "rollback", "on_collapse")


class Params(Section):
    """All of params.yaml."""

    profile: Annotated[str, Field(description="the profile these values started from")]
    data: DataParams
    pretrain: PretrainParams
    evaluation: EvaluationParams = EvaluationParams()
    probe: ProbeParams
    supervised: SupervisedParams
    finetune: FinetuneParams
    distill: DistillParams
    semisup: SemisupParams = SemisupParams()
    sizes: SizesParams = SizesParams()
    transfer: TransferParams
    report: ReportParams
    runtime: RuntimeParams

    @model_validator(mode="after")
    def _layers_exist(self) -> Self:
        deepest = self.pretrain.head.depth
        if max(self.finetune.layers) > deepest:
            raise ValueError(
                f"finetune.layers names layer {max(self.finetune.layers)}, "
                f"but pretrain.head.depth is {deepest}"
            )
        if self.distill.teacher_layer not in self.finetune.layers:
            raise ValueError(
                f"distill.teacher_layer ({self.distill.teacher_layer}) must be one of "
                f"finetune.layers {self.finetune.layers}"
            )
        for fraction in self.finetune.overrides:
            layers = self.finetune.layers_at(fraction)
            where = f"finetune.overrides.{fraction}.layers {layers}"
            if not set(layers) <= set(self.finetune.layers):
                raise ValueError(f"{where} must be among finetune.layers {self.finetune.layers}")
            if self.distill.teacher_layer not in layers:
                raise ValueError(
                    f"{where} must hold distill.teacher_layer ({self.distill.teacher_layer})"
                )
        for name, student in (("same", self.distill.same), ("small", self.distill.small)):
            if student.seeds is not None and student.seeds > self.finetune.seeds:
                raise ValueError(
                    f"distill.{name}.seeds ({student.seeds}) is above finetune.seeds "
                    f"({self.finetune.seeds}): each student needs its teacher"
                )
        small, same = self.distill.small.seeds, self.distill.same.seeds or self.finetune.seeds
        if (small or self.finetune.seeds) > same:
            raise ValueError(
                f"distill.small needs a self-distilled teacher per seed: {small} seeds asked for, "
                f"distill.same has {same}"
            )
        return self

    @model_validator(mode="after")
    def _decoded_where_views_are_made(self) -> Self:
        if self.pretrain.decode_on == "gpu" and self.runtime.views_on == "cpu":
            raise ValueError("pretrain.decode_on gpu needs the views there: runtime.views_on auto")
        return self

    @model_validator(mode="after")
    def _batch_can_be_split(self) -> Self:
        share = self.pretrain.batch_size // self.runtime.world_size
        together, images = self.pretrain.batch_norm_images, self.runtime.micro_batch
        if together is not None and share % together:
            raise ValueError(
                f"pretrain.batch_norm_images ({together}) must divide the {share} images of a "
                "process's step"
            )
        if not isinstance(images, int) or images >= share:
            return self
        if together is None:
            raise ValueError(
                f"runtime.micro_batch {images} splits a batch of {share} images that batch norm "
                "takes as one: say over how many it is (pretrain.batch_norm_images), or save "
                "memory with runtime.recompute, which keeps it over the whole batch"
            )
        if share % images or images % together:
            raise ValueError(
                f"runtime.micro_batch ({images}) must divide the {share} images of a process's "
                f"step and be a multiple of pretrain.batch_norm_images ({together})"
            )
        return self

    @model_validator(mode="after")
    def _sizes_are_of_this_study(self) -> Self:
        sizes, asked = self.sizes, self.finetune.label_fractions
        for name, seeds in (("semisup", self.semisup.seeds), ("sizes", sizes.seeds)):
            if seeds is not None and seeds > self.finetune.seeds:
                raise ValueError(
                    f"{name}.seeds ({seeds}) is above finetune.seeds ({self.finetune.seeds}): each "
                    "needs its label subset"
                )
        if others := sorted(set(sizes.label_fractions) - set(asked)):
            raise ValueError(
                f"sizes.label_fractions names {', '.join(others)}, not in finetune.label_fractions"
            )
        own = encoder_name(self.pretrain.encoder)
        if own in sizes.encoders:
            raise ValueError(f"sizes.encoders names {own}, which is pretrain.encoder already")
        if sizes.encoders and self.pretrain.init_from is not None:
            raise ValueError(
                "sizes.encoders are pretrained here, and pretrain.init_from takes a network over "
                "instead: write sizes.encoders: []"
            )
        return self

    @model_validator(mode="after")
    def _fractions_are_asked_for(self) -> Self:
        if self.profile.startswith("imagenet"):  # a part of their fractions may be left out
            return self
        # Overrides of other fractions may stay: -S finetune.label_fractions='[0.01]' is one edit.
        for fraction in sorted(set(self.finetune.label_lists) - set(self.finetune.label_fractions)):
            raise ValueError(f"finetune.label_lists names {fraction}, not in label_fractions")
        return self

    @model_validator(mode="after")
    def _images_fill_the_stem(self) -> Self:
        views = {
            "pretrain.views": self.pretrain.views,
            "finetune.views": self.finetune.views,
            "distill.views": self.distill.views,
            **{f"supervised.views_grid.{i}": v for i, v in enumerate(self.supervised.views_grid)},
            **({"probe.sgd.views": self.probe.sgd.views} if self.probe.sgd else {}),
            "semisup.weak_views": self.semisup.weak_views,
            "semisup.strong_views": self.semisup.strong_views,
        }
        sizes = {f"{where}.size": seen.size for where, seen in views.items() if seen.size}
        for name, encoder in (
            ("pretrain.encoder", self.pretrain.encoder),
            ("distill.same.encoder", self.distill.same.encoder),
            ("distill.small.encoder", self.distill.small.encoder),
        ):
            for where, size in {"data.image_size": self.data.image_size, **sizes}.items():
                if encoder and size < SMALLEST_IMAGE[encoder.stem]:
                    raise ValueError(
                        f"{where} ({size} pixels) is too small for {name}: stem {encoder.stem} "
                        f"needs {SMALLEST_IMAGE[encoder.stem]} or more"
                    )
        return self


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check params.yaml.

    Raises:
        UserError: the file is missing, is not YAML, or holds values that can't be used; every
            problem is listed with its key, what was written and what is allowed.
    """
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing here ({path.absolute().parent}).\n"
            "  Run from the project's root, or write one: python -m pipeline profile quick"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    return check_params(written, str(path))


def check_params(written: Any, name: str = "params.yaml") -> Params:
    """Params from parsed YAML, or a UserError that lists every problem in it."""
    try:
        return Params.model_validate(written)
    except ValidationError as error:
        lines = "\n".join(f"  {_line(problem)}" for problem in error.errors())
        raise UserError(f"{name} can't be used:\n{lines}") from None


def _line(problem: ErrorDetails) -> str:
    """One problem in params.yaml: where, what, and what was written."""
    where = ".".join(str(key) for key in problem["loc"]) or "(whole file)"
    if problem["type"] == "extra_forbidden":
        return f"{where}: no such key{_meant(problem['loc'])}"
    if problem["type"] == "missing":
        return f"{where}: is missing"
    shown = problem["input"]
    wrote = "" if isinstance(shown, dict | BaseModel) else f" (you wrote {shown!r})"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}{wrote}"


def _meant(location: Sequence[int | str]) -> str:
    """The keys that the section does know, so that a misspelling is seen at once."""
    section: Any = Params
    for key in location[:-1]:
        fields = getattr(section, "model_fields", {})
        if key not in fields:
            return ""
        section = fields[key].annotation
    known = ", ".join(getattr(section, "model_fields", {}))
    return f"; known here: {known}" if known else ""
