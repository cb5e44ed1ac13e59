"""Section `transfer` of params.yaml."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from stages.sections.kinds import (
    Count,
    Duration,
    L2Grid,
    LogSpaced,
    Positive,
    Precision,
    Section,
    no_doubles,
    spaced,
)
from stages.sections.views import LabelledViewParams

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
        BeforeValidator(spaced, json_schema_input_type=list[Positive] | LogSpaced),
        Field(min_length=1, description="learning rates, a list or {from, to, n}"),
    ]
    weight_decay_grid: Annotated[
        list[Positive],
        BeforeValidator(spaced, json_schema_input_type=list[Positive] | LogSpaced),
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
        AfterValidator(no_doubles),
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
        no_doubles(names)
        return self
