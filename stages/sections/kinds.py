"""What values of params.yaml are made of: shares, counts, durations, label fractions, grids."""

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]

Precision = Annotated[
    Literal["float32", "bfloat16"],
    Field(description="of the network while it trains; weights and losses are float32 always"),
]

_DURATION = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?) (epochs|steps|images)")
_PER_CLASS = re.compile(r"[1-9]\d*_per_class")


def _check_duration(text: Any) -> Any:
    match = _DURATION.fullmatch(str(text))  # of a number alone, too, the unit is what lacks
    if match is None:
        raise ValueError("write a number and a unit, like '60 epochs', '500 steps', '2e6 images'")
    if float(match[1]) <= 0:
        raise ValueError("must be longer than nothing")
    return text


Duration = Annotated[
    str,
    BeforeValidator(_check_duration, json_schema_input_type=str),
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


def no_doubles(values: list[Any]) -> list[Any]:
    doubles = sorted({str(value) for value in values if values.count(value) > 1})
    if doubles:
        raise ValueError(f"named twice: {', '.join(doubles)}")
    return values


HeadLayers = Annotated[
    list[Annotated[int, Field(ge=0, le=4)]],
    AfterValidator(no_doubles),
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


def spaced(written: Any) -> Any:
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
    BeforeValidator(spaced, json_schema_input_type=list[Positive] | LogSpaced),
    Field(
        min_length=1,
        description="strengths of the penalty per image, a list or {from, to, n} at equal ratios; "
        "the best on validation is kept",
    ),
]
