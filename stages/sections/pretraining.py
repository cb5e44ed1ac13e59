"""Section `pretrain` of params.yaml."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.sections.kinds import Count, Duration, Positive, Precision, Section
from stages.sections.networks import EncoderParams, HeadParams
from stages.sections.optimizer import OptimizerParams
from stages.sections.views import ViewParams


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


# Of pretraining, what only watches: it decides nothing before a run has gone wrong, and what it
# did then is in the run's state. So a run continues when one of them changes.
WATCHING = ("online_probe", "on_non_finite", "rollback", "on_collapse")
