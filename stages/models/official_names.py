"""The official code's name for each of our weights, and its layout.

The official programs know a variable by three names: its key in a TF2 checkpoint, its TF2 name
(numbered by creation, found in SavedModels), and its TF1 name. All follow from the structure of
the network, so they are derived here from depth, selective kernels, stem and head, never listed.

Layouts: convolutions are HWIO there and OIHW here, dense kernels (in, out) there and (out, in)
here; vectors are the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from stages.models.resnet import BLOCKS_PER_GROUP, FIRST_BOTTLENECK_DEPTH, Stem

Layout = Literal["conv", "dense", "vector"]

# Ours, theirs, and whether it is trained, in the order of creation.
NORM_PARTS = (
    ("weight", "gamma", True),
    ("bias", "beta", True),
    ("running_mean", "moving_mean", False),
    ("running_var", "moving_variance", False),
)


@dataclass(frozen=True)
class OfficialVariable:
    """One weight or moving statistic under all of its names.

    Attributes:
        ours: in the state dict of a SimCLR (`encoder.`, `head.`) or a Classifier (`linear.`).
        path: in the TF2 object graph, without the root and suffix of `tf2_key`.
        tf2_name: TF2 variable name without ":0", for a model built first in its process.
        tf1_name: in a TF1 checkpoint; the EMA copy's has "ema_model/" before it.
        layout: how it is laid out.
        trainable: False for moving statistics.
    """

    ours: str
    path: str
    tf2_name: str
    tf1_name: str
    layout: Layout
    trainable: bool

    @property
    def tf2_key(self) -> str:
        """Key in a TF2 checkpoint."""
        return f"model/{self.path}/.ATTRIBUTES/VARIABLE_VALUE"

    def to_ours(self, official: Tensor) -> Tensor:
        """The official value in our layout (a contiguous copy, or the value itself)."""
        return _turned(official, self.layout, (3, 2, 0, 1))

    def to_official(self, ours: Tensor) -> Tensor:
        """Our value in the official layout (a contiguous copy, or the value itself)."""
        return _turned(ours, self.layout, (2, 3, 1, 0))


def _turned(value: Tensor, layout: Layout, conv_axes: tuple[int, int, int, int]) -> Tensor:
    if layout == "conv":
        return value.permute(conv_axes).contiguous()
    return value.t().contiguous() if layout == "dense" else value


def official_variables(
    depth: int,
    *,
    sk: bool,
    stem: Stem = "imagenet",
    head_depth: int = 3,
    supervised_head: bool = True,
) -> list[OfficialVariable]:
    """Every variable of a network, in the order in which the official code calls them.

    A shortcut comes before the main path of its block.

    Args:
        depth: of the ResNet.
        sk: whether it has selective kernels (sk_ratio above 0).
        stem: "imagenet", or "small" for the official CIFAR stem.
        head_depth: layers of g; 0 for none.
        supervised_head: whether it has a linear classifier.
    """
    names = _Names()
    return [
        *_stem(names, with_three_convs=sk and stem == "imagenet"),
        *_blocks(names, depth, sk),
        *_projection_head(names, head_depth),
        *(_supervised_head(names) if supervised_head else ()),
    ]


def in_tracking_order(variables: list[OfficialVariable]) -> list[OfficialVariable]:
    """The variables in the order of Keras's lists, which a SavedModel's numbers count.

    It follows the attributes of the official classes, not the calls: in a basic block the
    shortcut comes last, in a layer of g the batch norm first. Filter by `trainable` for the list
    of trainable variables, or of moving statistics.
    """
    return sorted(variables, key=_tracked)  # stable: the order of calls decides within a layer


def _tracked(variable: OfficialVariable) -> tuple[int, ...]:
    parts = variable.path.split("/")
    if parts[0] == "resnet_model" and parts[1] == "block_groups":
        shortcut_last = parts[5] == "shortcut_layers"
        return 1, int(parts[2]), int(parts[4]), int(shortcut_last)
    if parts[0] == "_projection_head":
        return 2, int(parts[2]), int(parts[3] == "dense")
    return (0,) if parts[0] == "resnet_model" else (3,)


class _Names:
    """Numbers names by creation, as TF2 (per class) and TF1 (per kind of layer) do."""

    def __init__(self) -> None:
        self.made: dict[str, int] = {}

    def number(self, name: str) -> str:
        """The name, with _1, _2, ... from its second use on."""
        count = self.made.get(name, 0)
        self.made[name] = count + 1
        return f"{name}_{count}" if count else name

    def conv(self, ours: str, path: str, scope: str, padded: bool = True) -> OfficialVariable:
        """A convolution: inside the official padding layer, or alone."""
        wrapper = f"{self.number('conv2d_fixed_padding')}/" if padded else ""
        name = self.number("conv2d")
        path = f"{path}/conv2d" if padded else path
        return OfficialVariable(
            f"{ours}.weight",
            f"{path}/kernel",
            f"{scope}/{wrapper}{name}/kernel",
            f"base_model/{name}/kernel",
            "conv",
            trainable=True,
        )

    def norm(
        self, ours: str, path: str, scope: str, *, head_layer: int | None = None, beta: bool = True
    ) -> Iterator[OfficialVariable]:
        """A batch norm's parameters and moving statistics."""
        wrapper, name = self.number("batch_norm_relu"), self.number("sync_batch_normalization")
        tf1 = f"base_model/{name.removeprefix('sync_')}"
        if head_layer is not None:  # TF1 numbers afresh within each layer of g
            tf1 = f"head_contrastive/nl_{head_layer}/batch_normalization"
        for our_part, part, trainable in NORM_PARTS:
            if part == "beta" and not beta:
                continue
            yield OfficialVariable(
                f"{ours}.{our_part}",
                f"{path}/bn/{part}",
                f"{scope}/{wrapper}/{name}/{part}",
                f"{tf1}/{part}",
                "vector",
                trainable,
            )


def _stem(names: _Names, *, with_three_convs: bool) -> Iterator[OfficialVariable]:
    # The path counts layers; an identity that only names the last convolution takes a place.
    places = [(0, 1), (2, 3), (4, 6)] if with_three_convs else [(0, 2)]
    layers = "resnet_model/initial_conv_relu_max_pool"
    for number, (conv, norm) in enumerate(places):
        yield names.conv(f"encoder.stem.convs.{number}", f"{layers}/{conv}", "resnet")
        yield from names.norm(f"encoder.stem.norms.{number}", f"{layers}/{norm}", "resnet")


def _blocks(names: _Names, depth: int, sk: bool) -> Iterator[OfficialVariable]:
    bottleneck = depth >= FIRST_BOTTLENECK_DEPTH
    for group, n_blocks in enumerate(BLOCKS_PER_GROUP[depth]):
        for number in range(n_blocks):
            ours = f"encoder.groups.{group}.{number}"
            path = f"resnet_model/block_groups/{group}/layers/{number}"
            kind = names.number("bottleneck_block" if bottleneck else "residual_block")
            scope = f"resnet/block_group{group + 1}/{kind}"
            if number == 0:
                layers = f"{path}/{'projection' if bottleneck else 'shortcut'}_layers"
                # ResNet-D puts a pool before the convolution, and padding before a strided pool.
                first = (2 if group else 1) if sk else 0
                yield names.conv(f"{ours}.shortcut.conv", f"{layers}/{first}", scope)
                yield from names.norm(f"{ours}.shortcut.norm", f"{layers}/{first + 1}", scope)
            if bottleneck:
                yield from _bottleneck(names, ours, f"{path}/conv_relu_dropblock_layers", scope, sk)
            else:
                for layer in (1, 2):
                    place = f"{path}/conv2d_bn_layers/{2 * (layer - 1)}"
                    yield names.conv(f"{ours}.conv{layer}", place, scope)
                    place = f"{path}/conv2d_bn_layers/{2 * layer - 1}"
                    yield from names.norm(f"{ours}.norm{layer}", place, scope)


def _bottleneck(
    names: _Names, ours: str, layers: str, scope: str, sk: bool
) -> Iterator[OfficialVariable]:
    # Placeholders for dropblock take the places that are left out.
    yield names.conv(f"{ours}.conv1", f"{layers}/0", scope)
    yield from names.norm(f"{ours}.norm1", f"{layers}/1", scope)
    if sk:
        yield from _selective_kernel(names, f"{ours}.conv2", f"{layers}/3", scope)
    else:
        yield names.conv(f"{ours}.conv2", f"{layers}/3", scope)
        yield from names.norm(f"{ours}.norm2", f"{layers}/4", scope)
    last = 5 if sk else 6
    yield names.conv(f"{ours}.conv3", f"{layers}/{last}", scope)
    yield from names.norm(f"{ours}.norm3", f"{layers}/{last + 1}", scope)


def _selective_kernel(
    names: _Names, ours: str, path: str, scope: str
) -> Iterator[OfficialVariable]:
    scope = f"{scope}/{names.number('sk__conv2d')}"
    yield names.conv(f"{ours}.conv", f"{path}/conv2d_fixed_padding", scope)
    yield from names.norm(f"{ours}.norm", f"{path}/batch_norm_relu", scope)
    yield names.conv(f"{ours}.squeeze", f"{path}/conv2d_0", scope, padded=False)
    yield from names.norm(f"{ours}.squeeze_norm", f"{path}/batch_norm_relu_1", scope)
    yield names.conv(f"{ours}.select", f"{path}/conv2d_1", scope, padded=False)


def _projection_head(names: _Names, depth: int) -> Iterator[OfficialVariable]:
    for layer in range(depth):
        ours, path = f"head.{layer}", f"_projection_head/linear_layers/{layer}"
        scope = f"projection_head/nl_{layer}"
        yield OfficialVariable(
            f"{ours}.dense.weight",
            f"{path}/dense/kernel",
            f"{scope}/{names.number('dense')}/kernel",
            f"head_contrastive/nl_{layer}/dense/kernel",
            "dense",
            trainable=True,
        )
        yield from names.norm(
            f"{ours}.norm", f"{path}/bn_relu", scope, head_layer=layer, beta=layer < depth - 1
        )


def _supervised_head(names: _Names) -> Iterator[OfficialVariable]:
    dense = names.number("dense")
    parts: tuple[tuple[str, str, Layout], ...] = (
        ("weight", "kernel", "dense"),
        ("bias", "bias", "vector"),
    )
    for our_part, part, layout in parts:
        yield OfficialVariable(
            f"linear.{our_part}",
            f"supervised_head/linear_layer/dense/{part}",
            f"head_supervised/linear_layer/{dense}/{part}",
            f"head_supervised/linear_layer/dense/{part}",
            layout,
            trainable=True,
        )
