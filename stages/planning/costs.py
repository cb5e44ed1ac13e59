"""What a network costs, by arithmetic: operations, weights, and the memory that training takes.

The network is built on the device "meta", which keeps shapes and no values, so that one of billions
of weights costs nothing to ask about. Operations count a multiplication and an addition as two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stages.models.resnet import Recompute
from stages.models.simclr import Classifier, SimCLR, build_classifier, build_encoder, build_simclr
from stages.planning.trainings import Network, Training
from stages.sections.networks import EncoderParams, HeadParams

COUNTED_VIEWS = 32  # what is kept once, whatever the batch, then counts little
FLOAT = 4  # bytes
OPTIMIZER_COPIES = {"lars": 1, "sgd": 1, "adamw": 2}  # of the weights
BATCHES_AHEAD = 3  # of views: the one in use and those made ahead


@dataclass(frozen=True)
class Cost:
    """Of a network.

    Attributes:
        parameters: its weights.
        forward_flops: of one view.
        training_flops: of one view, forward and backward.
        activation_bytes: kept between forward and backward for one view, at most, in float32.
        width: D, of h.
    """

    parameters: int
    forward_flops: float
    training_flops: float
    activation_bytes: float
    width: int


@cache
def cost_of(
    network: Network, image_size: int, channels: int, classes: int, recompute: Recompute = "none"
) -> Cost:
    """Counted on views that hold no values."""
    with torch.device("meta"):
        model = _build(network.encoder, network.head, channels, classes, recompute).train()
        images_BCHW = torch.zeros(COUNTED_VIEWS, channels, image_size, image_size)
    groups = list(model.encoder.groups.children())
    parts = [block for group in groups for block in group.children()]
    parts = groups if recompute == "groups" else parts
    counter = FlopCounterMode(display=False)
    with counter:
        answer, kept = _kept_by(model, images_BCHW, parts)
        forward = counter.get_total_flops()
        answer.sum().backward()
    held = kept.in_all
    if recompute != "none":
        # On the way back a part is there again, when all that came after it is gone.
        model.encoder.recompute = "none"
        again = _kept_by(model, images_BCHW, parts)[1].of_part
        held = max(held, *(sum(pair) for pair in zip(kept.until_part, again, strict=True)))
    return Cost(
        parameters=sum(weight.numel() for weight in model.parameters()),
        forward_flops=forward / COUNTED_VIEWS,
        training_flops=counter.get_total_flops() / COUNTED_VIEWS,
        activation_bytes=held / COUNTED_VIEWS,
        width=model.encoder.feature_dim,
    )


@dataclass
class _Kept:
    """Bytes kept for the way back: of all, of each part, and of all up to the end of each part."""

    in_all: int
    of_part: list[int]
    until_part: list[int]


def _kept_by(
    model: nn.Module, images_BCHW: Tensor, parts: Sequence[nn.Module]
) -> tuple[Tensor, _Kept]:
    """A pass through the network, and what it keeps."""
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    seen: dict[int, int] = {}  # bytes by storage, in the order of the computation
    at_entry, until = [], []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            seen[storage._cdata] = storage.nbytes()
        return tensor

    hooks = [
        part.register_forward_pre_hook(lambda *_: at_entry.append(sum(seen.values())))
        for part in parts
    ]
    hooks += [
        part.register_forward_hook(lambda *_: until.append(sum(seen.values()))) for part in parts
    ]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        answer = model(images_BCHW)
    for hook in hooks:
        hook.remove()
    of_part = [after - before for before, after in zip(at_entry, until, strict=True)]
    return answer, _Kept(sum(seen.values()), of_part, until)


def _build(
    encoder: EncoderParams,
    head: HeadParams | None,
    channels: int,
    classes: int,
    recompute: Recompute,
) -> SimCLR | Classifier:
    f = build_encoder(**encoder.model_dump(), in_channels=channels)
    f.recompute = recompute
    if head is not None:
        return build_simclr(f, **head.model_dump())
    return build_classifier(build_simclr(f), from_layer=0, n_classes=classes)


def step_flops(
    training: Training, cost: Cost, *, memory_keys: int, passes: int, teacher: Cost | None = None
) -> float:
    """Of one step: the network, and the contrastive loss over all pairs.

    Args:
        training: what is trained.
        cost: of its network.
        memory_keys: past keys that join the negatives; a momentum encoder makes them.
        passes: parts in which the batch goes through; more than one means a forward pass more.
        teacher: of the network that looks at every view as well.
    """
    views = training.batch_size * training.views_per_image
    each = cost.training_flops + (passes > 1) * cost.forward_flops
    each += (memory_keys > 0) * cost.forward_flops
    each += teacher.forward_flops if teacher else 0
    if training.network.head is None:
        return views * each
    width = training.network.head.out_dim
    pairs = views * (views + (views if memory_keys else 0) + memory_keys)
    return views * each + 3 * 2 * pairs * width


def training_bytes(
    training: Training,
    cost: Cost,
    *,
    image_size: int,
    channels: int,
    memory_keys: int,
    images: int,
    images_at_once: int,
) -> int:
    """Memory of one net while it trains: weights, gradients, optimizer, activations, views.

    Args:
        training: what is trained.
        cost: of its network.
        image_size: pixels of a view.
        channels: of a view.
        memory_keys: past keys that are kept; a momentum encoder makes them.
        images: of a step, in this process.
        images_at_once: of a pass of it.
    """
    copies = (
        2
        + OPTIMIZER_COPIES[training.optimizer.name]
        + (memory_keys > 0)
        + (training.taught_by is not None)
    )
    weights = copies * cost.parameters * FLOAT
    keys = memory_keys * (training.network.head.out_dim if training.network.head else 0) * FLOAT
    seen = images_at_once * training.views_per_image
    share = 0.5 if training.precision == "bfloat16" else 1.0
    views = BATCHES_AHEAD * images * training.views_per_image
    pixels = image_size**2 * channels * FLOAT
    return round(weights + keys + seen * cost.activation_bytes * share + views * pixels)
