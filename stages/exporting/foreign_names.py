"""Our weights under the names that torchvision's and timm's ResNets give them.

Both libraries call the parts of a ResNet alike. What torchvision lacks, selective kernels and
ResNet-D, has timm's names. How to build the network that takes these names is in
`foreign_recipes`.
"""

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stages.models.batch_norm import BatchNorm
from stages.models.blocks import SelectiveKernel, Shortcut
from stages.models.heads import HeadLayer
from stages.models.resnet import ResNet
from stages.models.simclr import Classifier, SimCLR

_IN_STEM = re.compile(r"stem\.(convs|norms)\.(\d+)")
_IN_BLOCK = re.compile(r"groups\.(\d+)\.(\d+)\.(.+)")
# Of a bottleneck with selective kernels. One layer of ours makes both streams, theirs are two.
_WITH_SELECTIVE_KERNELS = {
    "conv1": "conv1.conv",
    "norm1": "conv1.bn",
    "conv2.conv": "conv2.paths.{stream}.conv",
    "conv2.norm": "conv2.paths.{stream}.bn",
    "conv2.squeeze": "conv2.attn.fc_reduce",
    "conv2.squeeze_norm": "conv2.attn.bn",
    "conv2.select": "conv2.attn.fc_select",
    "conv3": "conv3.conv",
    "norm3": "conv3.bn",
}


def foreign_state(network: SimCLR | Classifier) -> dict[str, Tensor]:
    """A state dict of f and, of a classifier, of all that stands between h and the logits (`fc`).

    Of a SimCLR, f alone: the projection head has no place in those networks. Values are copies.
    """
    state: dict[str, Tensor] = {}
    for theirs, layer in [*_encoder_layers(network.encoder), *_classifier_layers(network)]:
        if "{stream}" in theirs:
            for stream in (0, 1):
                state |= _tensors(theirs.format(stream=stream), layer, stream)
        else:
            state |= _tensors(theirs, layer)
    return state


def _encoder_layers(encoder: ResNet) -> Iterator[tuple[str, nn.Module]]:
    """Each layer of f that holds weights, with their name of it."""
    parts = list(encoder.modules())
    is_selective = any(isinstance(part, SelectiveKernel) for part in parts)
    is_resnet_d = any(isinstance(part, Shortcut) and part.pool_stride is not None for part in parts)
    n_stem = len(encoder.stem.convs)
    for name, layer in encoder.named_modules():
        if next(layer.parameters(recurse=False), None) is None:
            continue
        if in_block := _IN_BLOCK.fullmatch(name):
            group, number, part = in_block.groups()
            theirs = _block_part(part, is_selective=is_selective, is_resnet_d=is_resnet_d)
            yield f"layer{int(group) + 1}.{number}.{theirs}", layer
        elif in_stem := _IN_STEM.fullmatch(name):
            yield _stem_part(in_stem[1], int(in_stem[2]), n_stem), layer
        else:
            raise ValueError(f"no other library has a name for {name}")


def _stem_part(kind: str, number: int, n_stem: int) -> str:
    """Theirs are conv1 and bn1; of three convolutions, all but the last norm are in conv1."""
    if kind == "norms" and number == n_stem - 1:
        return "bn1"
    # conv, norm, ReLU, conv, ...
    return "conv1" if n_stem == 1 else f"conv1.{3 * number + (kind == 'norms')}"


def _block_part(part: str, *, is_selective: bool, is_resnet_d: bool) -> str:
    if part in {"shortcut.conv", "shortcut.norm"}:
        place = int(part == "shortcut.norm") + int(is_resnet_d)  # the pool takes a place
        return f"downsample.{place}"
    return _WITH_SELECTIVE_KERNELS[part] if is_selective else part.replace("norm", "bn")


def _classifier_layers(network: SimCLR | Classifier) -> Iterator[tuple[str, nn.Module]]:
    """The kept layers of g and the classifier, all in `fc`; of a SimCLR, nothing."""
    if isinstance(network, SimCLR):
        return
    place = 0
    for layer in network.head:
        assert isinstance(layer, HeadLayer)
        yield f"fc.{place}", layer.dense
        yield f"fc.{place + 1}", layer.norm
        place += 2 if layer.last else 3  # a ReLU takes a place
    yield (f"fc.{place}" if place else "fc"), network.linear


def _tensors(name: str, layer: nn.Module, stream: int | None = None) -> dict[str, Tensor]:
    """A layer's values, or one stream's half; those of a norm as torch's BatchNorm has them."""
    values = dict(layer.state_dict())
    if isinstance(layer, BatchNorm):
        values.setdefault("bias", torch.zeros_like(layer.weight))
    if stream is not None:
        values = {key: value.chunk(2)[stream] for key, value in values.items()}
    if isinstance(layer, BatchNorm):
        values["num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    return {f"{name}.{key}": value.detach().clone() for key, value in values.items()}
