"""Networks as params.yaml names them: encoder f and projection head g."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from stages.sections.kinds import Positive, Section

# Pixels that a stem needs at least; `stages.models.resnet.STRIDE`, which this light file can't read
SMALLEST_IMAGE = {"imagenet": 32, "small": 8, "small_stride2": 16}

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
