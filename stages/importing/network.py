"""What a checkpoint's network is: its structure, told by names, and its widths, told by shapes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from stages.models.heads import LinearClassifier
from stages.models.official_names import OfficialVariable, official_variables
from stages.models.resnet import Stem
from stages.models.simclr import build_encoder, build_simclr

USUAL_HEAD = 3
USUAL_OUT_DIM = 128
PAPERS_SK_RATIO = 0.0625
SMALLEST_SQUEEZE = 32
LAST_GROUP_WIDTH = 512
LARGEST_MULTIPLIER = 64
LARGEST_DIMENSION = 1 << 24

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Structure:
    """What names alone tell of a network.

    Attributes:
        depth: of the ResNet.
        sk: whether it has selective kernels.
        stem: "imagenet" or "small".
        head_layers: layers of g that the file holds, the first ones.
        whole_head: whether the last of them is g's last.
        supervised: whether there is a linear classifier.
    """

    depth: int
    sk: bool
    stem: Stem
    head_layers: int = USUAL_HEAD
    whole_head: bool = True
    supervised: bool = True

    @property
    def variables(self) -> list[OfficialVariable]:
        return _variables(self)

    def __str__(self) -> str:
        kernels = " with selective kernels" if self.sk else ""
        stem = "" if self.stem == "imagenet" else f" ({self.stem} stem)"
        head = f"{self.head_layers} layers of g" if self.head_layers else "no g"
        classifier = "a classifier" if self.supervised else "no classifier"
        return f"ResNet-{self.depth}{kernels}{stem}, {head}, {classifier}"


@lru_cache(maxsize=64)  # as many as one search looks at
def _variables(structure: Structure) -> list[OfficialVariable]:
    everything = official_variables(
        structure.depth,
        sk=structure.sk,
        stem=structure.stem,
        head_depth=structure.head_layers + (not structure.whole_head),
        supervised_head=structure.supervised,
    )
    left_out = () if structure.whole_head else (f"head.{structure.head_layers}.",)
    return [variable for variable in everything if not variable.ours.startswith(left_out)]


@dataclass(frozen=True)
class Network:
    """A structure with its widths.

    Attributes:
        structure: what names tell.
        encoder: arguments of `build_encoder` but for the channels.
        channels: of its images.
        head: arguments of g; where the file holds no whole g, those of one with its layers.
        head_widths: of h, layer 1, ... as far as the file has layers.
        classes: of the linear classifier; None without.
        classifier_width: what the classifier takes in.
    """

    structure: Structure
    encoder: dict[str, Any]
    channels: int
    head: dict[str, Any]
    head_widths: list[int]
    classes: int | None
    classifier_width: int | None

    def official_shapes(self) -> dict[str, Shape]:
        """The shape that each variable should have, in the official layout, by our name."""
        with torch.device("meta"):  # no memory for weights
            encoder = build_encoder(**self.encoder, in_channels=self.channels)
            state = dict(build_simclr(encoder, **self.head).state_dict())
            if self.classes is not None:
                fits = self.classifier_width in self.head_widths
                width = self.classifier_width if fits else None
                linear = LinearClassifier(width or self.head_widths[0], self.classes)
                state |= {f"linear.{name}": value for name, value in linear.state_dict().items()}
        return {
            variable.ours: tuple(variable.to_official(state[variable.ours]).shape)
            for variable in self.structure.variables
        }


class Unmeasurable(Exception):
    """A variable that tells a width is missing, or tells one that no network has."""


def network_of(structure: Structure, shapes: Mapping[str, Shape]) -> Network:
    """The widths of a structure.

    Args:
        structure: what names tell.
        shapes: of the variables that there are, in the official layout, by our name.

    Raises:
        Unmeasurable: no widths can be told.
    """
    try:
        return _measured(structure, shapes)
    except (KeyError, IndexError):
        raise Unmeasurable from None


def _measured(structure: Structure, shapes: Mapping[str, Shape]) -> Network:
    # The last group's widths are the widest, so a fraction of them is the most precise.
    multiplier = _size(shapes["encoder.groups.3.0.conv1.weight"][3]) / LAST_GROUP_WIDTH
    if multiplier > LARGEST_MULTIPLIER:
        raise Unmeasurable
    encoder = {
        "depth": structure.depth,
        "width_multiplier": multiplier,
        "sk_ratio": _sk_ratio(shapes) if structure.sk else 0.0,
        "stem": structure.stem,
    }
    channels = _size(shapes["encoder.stem.convs.0.weight"][2])
    with torch.device("meta"):
        feature_dim = build_encoder(**encoder, in_channels=channels).feature_dim
    n_layers = structure.head_layers
    widths = [_size(shapes[f"head.{number}.dense.weight"][1]) for number in range(n_layers)]
    head = {
        "depth": max(n_layers + (not structure.whole_head), 1),
        "hidden_width": 1.0,
        "out_dim": USUAL_OUT_DIM,
    }
    if n_layers and structure.whole_head:
        head["out_dim"] = widths[-1]
    if n_layers > 1 or not structure.whole_head:
        head["hidden_width"] = widths[0] / feature_dim
    classes = classifier_width = None
    if structure.supervised:
        classifier_width, classes = map(_size, shapes["linear.weight"][:2])
    return Network(
        structure, encoder, channels, head, [feature_dim, *widths], classes, classifier_width
    )


def _size(size: int) -> int:
    if not 1 <= size <= LARGEST_DIMENSION:
        raise Unmeasurable
    return size


def _sk_ratio(shapes: Mapping[str, Shape]) -> float:
    """The ratio that gives the squeezed widths; the paper's, where they leave it open."""
    squeeze = shapes.get("encoder.groups.3.0.conv2.squeeze.weight")
    if squeeze is None:  # basic blocks have none
        return PAPERS_SK_RATIO
    width, squeezed = _size(squeeze[2]), _size(squeeze[3])
    if squeezed == max(int(width * PAPERS_SK_RATIO), SMALLEST_SQUEEZE):
        return PAPERS_SK_RATIO
    ratio = squeezed / width
    return ratio if int(width * ratio) == squeezed else (squeezed + 0.5) / width
