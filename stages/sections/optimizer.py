"""An optimizer and its schedule, as params.yaml describes them."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.sections.kinds import Positive, Section


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
