"""The encoder f: a ResNet with any width, selective kernels and the official padding.

SimCLRv2, section 3. The official code (and so the released weights) differs from torchvision's
ResNet in these points: the first block of every group has a projection shortcut; the stem's
max-pool pads like TensorFlow's SAME; with selective kernels the stem and the shortcuts are those
of ResNet-D, whose stride-1 average leaves padding out and whose stride-2 average counts it as 0;
convolutions start as a truncated normal over the fan-in.

Shapes: B images, C channels, H W pixels, D width of h.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stages.errors import UserError
from stages.models.batch_norm import BatchNorm, frozen_moving_statistics
from stages.models.blocks import BasicBlock, Bottleneck, Conv, relu_

Stem = Literal["imagenet", "small", "small_stride2"]
Recompute = Literal["none", "groups", "blocks"]

BLOCKS_PER_GROUP: dict[int, tuple[int, int, int, int]] = {
    10: (1, 1, 1, 1),  # ours: the smallest, for CPUs
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
FIRST_BOTTLENECK_DEPTH = 50
GROUP_WIDTHS = (64, 128, 256, 512)
# Pixels per position of the last feature map; a smaller image would be mostly padding.
STRIDE: dict[Stem, int] = {"imagenet": 32, "small": 8, "small_stride2": 16}


class ResNet(nn.Module):
    """The encoder f.

    Attributes:
        feature_dim: D, the width of h.
        recompute: "groups" or "blocks": of the stem and of each of these keep only the input for
            the backward pass and compute the rest again there: a third more time, a fraction of
            the memory, the same numbers. Batch norm sees the whole batch as ever.
    """

    def __init__(
        self,
        depth: int,
        width_multiplier: float = 1.0,
        sk_ratio: float = 0.0,
        stem: Stem = "imagenet",
        in_channels: int = 3,
        *,
        recompute: Recompute = "none",
    ) -> None:
        """Make an encoder.

        Args:
            depth: 18, 34, 50, 101, 152, 200 as in the paper, or 10.
            width_multiplier: times every width, fractions too (widths are rounded down).
            sk_ratio: 0: plain; above: selective kernels in bottleneck blocks and ResNet-D
                everywhere; the paper's is 0.0625.
            stem: "imagenet": 7x7 stride 2 and max-pool (ResNet-D's three 3x3 with selective
                kernels); "small": 3x3 stride 1, officially for images up to 32 pixels;
                "small_stride2": 3x3 stride 2, ours.
            in_channels: C of the images.
            recompute: see the class.

        Raises:
            UserError: depth or stem is unknown.
        """
        super().__init__()
        if depth not in BLOCKS_PER_GROUP:
            raise UserError(
                f"there is no ResNet of depth {depth}.\n"
                f"  Choose one of {', '.join(map(str, BLOCKS_PER_GROUP))}."
            )
        if stem not in STRIDE:
            raise UserError(f"there is no stem {stem!r}.\n  Choose one of {', '.join(STRIDE)}.")
        self.stem_name: Stem = stem
        self.recompute: Recompute = recompute
        n_in = _scaled(64, width_multiplier)
        self.stem = _Stem(in_channels, n_in, stem, _scaled(32, width_multiplier), sk_ratio > 0)
        groups: list[nn.Sequential] = []
        for index, width in enumerate(GROUP_WIDTHS):
            blocks: list[nn.Module] = []
            for number in range(BLOCKS_PER_GROUP[depth][index]):
                stride = 2 if number == 0 and index > 0 else 1
                kind = Bottleneck if depth >= FIRST_BOTTLENECK_DEPTH else BasicBlock
                block = kind(
                    n_in, _scaled(width, width_multiplier), stride, sk_ratio, first=number == 0
                )
                blocks.append(block)
                n_in = block.n_out
            groups.append(nn.Sequential(*blocks))
        self.groups = nn.ModuleList(groups)
        self.feature_dim = n_in

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Representations h_BD of images in [0, 1] (no mean and deviation taken out).

        Raises:
            UserError: the images are smaller than the stem allows.
        """
        self._check_size(images_BCHW)
        x = images_BCHW
        for part in self._parts():
            x = self._run(part, x)
        return x.mean(dim=(2, 3))

    def features(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Outputs along the way.

        Returns:
            "stem_conv" (the stem's last convolution, before its batch norm), "stem", "group1" to
            "group4", all BCHW, and "h", h_BD.
        """
        self._check_size(images_BCHW)
        stem_conv = self.stem.convolve(images_BCHW)
        x = self.stem.finish(stem_conv)
        outputs = {"stem_conv": stem_conv, "stem": x}
        for number, group in enumerate(self.groups, start=1):
            x = group(x)
            outputs[f"group{number}"] = x
        return outputs | {"h": x.mean(dim=(2, 3))}

    def _parts(self) -> Iterator[nn.Module]:
        """What is run one after the other, and recomputed as one."""
        yield self.stem
        for group in self.groups:
            if self.recompute == "blocks":
                yield from group.children()
            else:
                yield group

    def _run(self, part: nn.Module, x: Tensor) -> Tensor:
        if self.recompute == "none" or not (self.training and torch.is_grad_enabled()):
            return part(x)
        # The second pass must not move the moving statistics a second time.
        contexts: Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]
        contexts = partial(_recompute_contexts, part)
        return checkpoint(
            part, x, use_reentrant=False, context_fn=contexts, preserve_rng_state=False
        )

    def _check_size(self, images_BCHW: Tensor) -> None:
        height, width = images_BCHW.shape[-2:]
        smallest = STRIDE[self.stem_name]
        if min(height, width) < smallest:
            fitting = [name for name, stride in STRIDE.items() if stride <= min(height, width)]
            advice = f"stem: {' or '.join(fitting)}, or larger images" if fitting else "larger ones"
            raise UserError(
                f"images of {height} x {width} pixels are too small for the encoder: stem "
                f"{self.stem_name} needs {smallest} x {smallest} or more.\n  Use {advice}."
            )


class _Stem(nn.Module):
    """From the image to the first feature map, a quarter (imagenet), all or half of its size."""

    def __init__(self, n_in: int, n_out: int, stem: Stem, n_middle: int, resnet_d: bool) -> None:
        super().__init__()
        self.pools = stem == "imagenet"
        if stem == "imagenet" and resnet_d:
            convs = [
                Conv(n_in, n_middle, 3, 2),
                Conv(n_middle, n_middle, 3),
                Conv(n_middle, n_out, 3),
            ]
        elif stem == "imagenet":
            convs = [Conv(n_in, n_out, 7, 2)]
        else:
            convs = [Conv(n_in, n_out, 3, 1 if stem == "small" else 2)]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(BatchNorm(conv.out_channels) for conv in convs)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.finish(self.convolve(images_BCHW))

    def convolve(self, images_BCHW: Tensor) -> Tensor:
        """Up to the last convolution."""
        x = images_BCHW
        for conv, norm in zip(self.convs[:-1], self.norms[:-1], strict=True):
            x = relu_(norm(conv(x)))
        return self.convs[-1](x)

    def finish(self, x_BCHW: Tensor) -> Tensor:
        """From the last convolution's batch norm on."""
        x = relu_(self.norms[-1](x_BCHW))
        return max_pool_same(x) if self.pools else x


def max_pool_same(x_BCHW: Tensor) -> Tensor:
    """3x3 max-pool with stride 2, padded like TensorFlow's SAME.

    An even size is padded at the bottom and right only (torchvision pads top and left too, so
    its windows start a pixel earlier), an odd one on both sides.
    """
    height, width = x_BCHW.shape[-2:]
    return F.max_pool2d(x_BCHW, 3, 2, padding=(height % 2, width % 2), ceil_mode=True)


def _scaled(width: int, multiplier: float) -> int:
    return max(int(width * multiplier), 1)


def _recompute_contexts(
    part: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), frozen_moving_statistics(part)
