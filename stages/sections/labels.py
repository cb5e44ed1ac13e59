"""Sections of params.yaml that train on labels: `probe`, `supervised`, `finetune`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from stages.sections.kinds import (
    LABEL_LISTS,
    Count,
    Duration,
    HeadLayers,
    L2Grid,
    LabelFraction,
    Positive,
    Precision,
    Section,
    no_doubles,
)
from stages.sections.optimizer import OptimizerParams
from stages.sections.views import LabelledViewParams


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

    label_fractions: Annotated[list[LabelFraction], AfterValidator(no_doubles), Field(min_length=1)]
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
