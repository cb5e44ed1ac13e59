"""Random views and evaluation views, as params.yaml describes them."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.sections.kinds import Fraction, Positive, Section

ResizeKernel = Literal["bicubic_tf2", "bicubic_tf1", "bilinear_antialias", "bicubic_antialias"]


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
