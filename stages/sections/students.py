"""Sections `distill`, `semisup` and `sizes` of params.yaml."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from stages.sections.kinds import (
    Count,
    Duration,
    Fraction,
    LabelFraction,
    Positive,
    Precision,
    Section,
    no_doubles,
)
from stages.sections.networks import EncoderName, EncoderParams
from stages.sections.optimizer import OptimizerParams
from stages.sections.views import LabelledViewParams


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
        AfterValidator(no_doubles),
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
        AfterValidator(no_doubles),
        Field(description="each is pretrained, fine-tuned and trained from scratch; empty: none"),
    ] = []
    students: Annotated[
        list[EncoderName],
        AfterValidator(no_doubles),
        Field(description="each is taught by every net of encoders and by that of pretrain"),
    ] = []
    label_fractions: Annotated[
        list[LabelFraction],
        AfterValidator(no_doubles),
        Field(description="among finetune.label_fractions"),
    ] = []
    label_shares: Annotated[
        list[Annotated[float, Field(ge=0, lt=1)]],
        AfterValidator(no_doubles),
        Field(min_length=1, description="of students: weights of true labels beside soft ones"),
    ] = [0.0]
    seeds: Annotated[int | None, Field(ge=1, description="null: as many as finetune.seeds")] = None
