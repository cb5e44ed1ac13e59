"""Python that builds, in torchvision or timm, the network that our exported weights fit.

A stock ResNet of theirs is not the official one. Where they differ without weights, the recipe
puts another module in the place: the stem's max-pool and ResNet-D's average pools, which pad as
TensorFlow does. Where they differ by weights (the projection in group 1 of ResNet-18 and 34, a
stem of another size, a classifier on a middle layer of g), it puts in modules of torch of the
right shape. What can't be had so is refused, with the library that can.
"""

from dataclasses import dataclass
from typing import Literal

from stages.errors import UserError
from stages.models.blocks import BasicBlock, Bottleneck, Conv, SelectiveKernel
from stages.models.heads import HeadLayer
from stages.models.resnet import BLOCKS_PER_GROUP, FIRST_BOTTLENECK_DEPTH, ResNet
from stages.models.simclr import Classifier, SimCLR

Library = Literal["torchvision", "timm"]

# Of both libraries' stock networks.
STEM_WIDTH, WIDTHS = 64, [64, 128, 256, 512]
STOCK_DEPTHS = {"torchvision": (18, 34, 50, 101, 152), "timm": (18, 34, 50, 101, 152, 200)}

SQUEEZED = 32  # asked of timm for every group; others get their attention put in

MAX_POOL = '''
class MaxPoolSame(nn.Module):
    """Pads as TensorFlow does: an even size at the bottom and right only."""

    def forward(self, x):
        padding = [size % 2 for size in x.shape[-2:]]
        return nn.functional.max_pool2d(x, 3, 2, padding, ceil_mode=True)

'''
# Stride 1 leaves padding out of the average, stride 2 counts it as 0.
AVERAGE_STRIDE_1 = "nn.Sequential(nn.ReplicationPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, 1))"
AVERAGE_STRIDE_2 = "nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2))"


def build_recipe(network: SimCLR | Classifier, library: Library) -> str:
    """Python that leaves `net`, freshly initialised, of the names and shapes of `foreign_state`.

    Raises:
        UserError: the library has no such network.
    """
    shape = _Shape.of(network.encoder)
    _check_fits(shape, library)
    on_h = isinstance(network, Classifier) and not len(network.head)
    n_classes = network.linear.out_features if on_h else None
    imports, lines = _stock_network(shape, library, n_classes)
    lines += _other_parts(shape, library)
    if isinstance(network, SimCLR):
        lines.append("net.fc = nn.Identity()  # net gives h")
    elif not on_h:
        lines.append(f"net.fc = nn.Sequential({', '.join(_classifier(network))})")
    head = [*imports, "from torch import nn", "", *([MAX_POOL] if shape.pools else [])]
    return "\n".join([*head, *lines]) + "\n"


@dataclass(frozen=True)
class _Shape:
    """What a recipe has to know of an encoder."""

    stem: list[Conv]
    pools: bool
    groups: list[list[BasicBlock | Bottleneck]]

    @classmethod
    def of(cls, encoder: ResNet) -> "_Shape":
        groups = [
            [block for block in group.children() if isinstance(block, BasicBlock | Bottleneck)]
            for group in encoder.groups
        ]
        stem = [conv for conv in encoder.stem.convs if isinstance(conv, Conv)]
        return cls(stem, encoder.stem.pools, groups)

    @property
    def first(self) -> BasicBlock | Bottleneck:
        return self.groups[0][0]

    @property
    def depth(self) -> int:
        return next(
            depth
            for depth, counts in BLOCKS_PER_GROUP.items()
            if list(counts) == self.counts
            and (depth >= FIRST_BOTTLENECK_DEPTH) == self.has_bottlenecks
        )

    @property
    def counts(self) -> list[int]:
        return [len(group) for group in self.groups]

    @property
    def widths(self) -> list[int]:
        return [group[0].conv1.out_channels for group in self.groups]

    @property
    def stem_width(self) -> int:
        return self.stem[-1].out_channels

    @property
    def channels(self) -> int:
        return self.stem[0].in_channels

    @property
    def has_bottlenecks(self) -> bool:
        return isinstance(self.first, Bottleneck)

    @property
    def selective_kernels(self) -> list[SelectiveKernel]:
        """The first of each group, or none."""
        units = [group[0].conv2 for group in self.groups]
        return [unit for unit in units if isinstance(unit, SelectiveKernel)]

    @property
    def is_resnet_d(self) -> bool:
        return self.first.shortcut is not None and self.first.shortcut.pool_stride is not None

    @property
    def has_deep_stem(self) -> bool:
        return len(self.stem) > 1


def _check_fits(shape: _Shape, library: Library) -> None:
    if library == "torchvision" and shape.selective_kernels:
        raise UserError(
            "torchvision has no ResNet with selective kernels, and this product has them.\n"
            "  timm has one: --as timm. Or keep f as it is: --as encoder."
        )
    if library == "torchvision" and (shape.widths, shape.stem_width) != (WIDTHS, STEM_WIDTH):
        raise UserError(
            f"torchvision's ResNets have a stem of {STEM_WIDTH} and groups of {WIDTHS} channels; "
            f"this product has {shape.stem_width} and {shape.widths} (width_multiplier is not 1; "
            "their wide_resnet widens the 3x3 alone).\n"
            "  timm's take any width: --as timm. Or keep f as it is: --as encoder."
        )
    if shape.is_resnet_d and not shape.selective_kernels:
        raise UserError(
            "neither library has ResNet-D's stem and shortcuts in this product's arrangement "
            "(sk_ratio with basic blocks).\n  Keep f as it is: --as encoder."
        )
    if shape.has_deep_stem and shape.stem_width != 2 * shape.stem[0].out_channels:
        raise UserError(
            f"timm's deep stem ends twice as wide as it begins; this product's begins with "
            f"{shape.stem[0].out_channels} channels and ends with {shape.stem_width} "
            "(width_multiplier times 32 and 64, rounded down).\n  Keep f as it is: --as encoder."
        )


def _stock_network(
    shape: _Shape, library: Library, n_classes: int | None
) -> tuple[list[str], list[str]]:
    """Imports, and the library's own network that is nearest (its classifier replaced later)."""
    block = "Bottleneck" if shape.has_bottlenecks else "BasicBlock"
    is_stock = shape.widths == WIDTHS and shape.depth in STOCK_DEPTHS[library]
    if library == "torchvision":
        classes = "" if n_classes is None else f"num_classes={n_classes}"
        if is_stock:
            line = f"net = torchvision.models.resnet{shape.depth}({classes})"
            return ["import torchvision"], [line]
        arguments = ", ".join(filter(None, [block, str(shape.counts), classes]))
        imports = [f"from torchvision.models.resnet import {block}, ResNet"]
        return imports, [f"net = ResNet({arguments})"]
    common = f"num_classes={n_classes or 0}, in_chans={shape.channels}"
    if shape.selective_kernels:
        return _network_with_selective_kernels(shape, common)
    if is_stock:
        return ["import timm"], [f'net = timm.create_model("resnet{shape.depth}", {common})']
    imports = [f"from timm.models.resnet import {block}, ResNet"]
    return imports, [f"net = ResNet({block}, {shape.counts}, {common}, channels={shape.widths})"]


def _network_with_selective_kernels(shape: _Shape, common: str) -> tuple[list[str], list[str]]:
    """As `_stock_network`; ResNet-D's averages in groups 2 to 4 get the official padding here."""
    imports = [
        "from timm.models.resnet import ResNet",
        "from timm.models.sknet import SelectiveKernelBottleneck",
    ]
    deep = f', stem_type="deep", stem_width={shape.stem[0].out_channels}'
    lines = [
        f"units = dict(kernel_size=[3, 3], split_input=False, rd_channels={SQUEEZED})",
        f"net = ResNet(SelectiveKernelBottleneck, {shape.counts}, {common},",
        f"             channels={shape.widths}, block_args=dict(sk_kwargs=units),",
        f"             avg_down=True{deep if shape.has_deep_stem else ''})",
    ]
    attention = "SelectiveKernelAttn"
    for number, unit in enumerate(shape.selective_kernels, start=1):
        if unit.squeeze.out_channels != SQUEEZED:
            widths = f"{unit.squeeze.in_channels}, 2, {unit.squeeze.out_channels}"
            lines += [
                f"for block in net.layer{number}:",
                f"    block.conv2.attn = {attention}({widths})",
            ]
    if any(attention in line for line in lines):
        imports.insert(0, f"from timm.layers.selective_kernel import {attention}")
    lines += [
        "for group in (net.layer2, net.layer3, net.layer4):",
        f"    group[0].downsample[0] = {AVERAGE_STRIDE_2}",
    ]
    return imports, lines


def _other_parts(shape: _Shape, library: Library) -> list[str]:
    """What the nearest network has otherwise in stem and group 1."""
    first = shape.first
    other_stem_width = shape.stem_width != STEM_WIDTH and not shape.has_deep_stem
    other_channels = shape.channels != 3 and library == "torchvision"  # timm has an argument for it
    lines = []
    if other_stem_width or other_channels or not shape.pools:
        lines.append(f"net.conv1 = {_conv(shape.stem[0])}")
    if other_stem_width:
        place = "conv1.conv" if shape.selective_kernels else "conv1"
        lines.append(f"net.bn1 = nn.BatchNorm2d({shape.stem_width})")
        lines.append(f"net.layer1[0].{place} = {_conv(first.conv1)}")
    assert first.shortcut is not None
    pool = AVERAGE_STRIDE_1 if shape.selective_kernels else ""
    if other_stem_width or not shape.has_bottlenecks:
        projection = [pool, _conv(first.shortcut.conv), f"nn.BatchNorm2d({first.n_out})"]
        layers = ", ".join(filter(None, projection))
        lines.append(f"net.layer1[0].downsample = nn.Sequential({layers})")
    elif pool:
        lines.append(f"net.layer1[0].downsample[0] = {pool}")
    lines.append(f"net.maxpool = {'MaxPoolSame()' if shape.pools else 'nn.Identity()'}")
    return lines


def _classifier(classifier: Classifier) -> list[str]:
    """The kept layers of g, and the classifier."""
    parts = []
    for layer in classifier.head:
        assert isinstance(layer, HeadLayer)
        n_in, n_out = layer.dense.in_features, layer.dense.out_features
        parts += [f"nn.Linear({n_in}, {n_out}, bias=False)", f"nn.BatchNorm1d({n_out})"]
        parts += [] if layer.last else ["nn.ReLU()"]
    linear = classifier.linear
    return [*parts, f"nn.Linear({linear.in_features}, {linear.out_features})"]


def _conv(conv: Conv) -> str:
    sizes = [conv.kernel_size[0], conv.stride[0], conv.padding[0]]
    shape = ", ".join(map(str, [conv.in_channels, conv.out_channels, *sizes]))
    return f"nn.Conv2d({shape}, bias=False)"
