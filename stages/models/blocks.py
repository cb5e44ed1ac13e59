"""What the encoder is made of: convolutions, shortcuts, residual blocks, selective kernels.

Shapes: B images, C channels, H W pixels, F width of a block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.batch_norm import BatchNorm

SMALLEST_SQUEEZE = 32
# A normal cut off at two deviations has this deviation; TensorFlow divides by it.
CUT_NORMAL_DEVIATION = 0.87962566103423978


class Conv(nn.Conv2d):
    """Convolution without bias whose output has H / stride positions, rounded up.

    Symmetric padding of (size - 1) / 2: for odd sizes that is the official explicit padding.
    """

    def __init__(self, n_in: int, n_out: int, size: int, stride: int = 1) -> None:
        super().__init__(n_in, n_out, size, stride, padding=(size - 1) // 2, bias=False)

    def reset_parameters(self) -> None:
        """Variance scaling over the fan-in, truncated normal, as TensorFlow does it."""
        fan_in = self.weight[0].numel()
        std = fan_in**-0.5 / CUT_NORMAL_DEVIATION
        nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the first with the stride; no selective kernels."""

    def __init__(self, n_in: int, width: int, stride: int, sk_ratio: float, *, first: bool) -> None:
        super().__init__()
        self.n_out = width
        self.shortcut = Shortcut(n_in, width, stride, sk_ratio > 0) if first else None
        self.conv1 = Conv(n_in, width, 3, stride)
        self.norm1 = BatchNorm(width)
        self.conv2 = Conv(width, width, 3)
        self.norm2 = BatchNorm(width, zero_gamma=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        beside = x_BCHW if self.shortcut is None else self.shortcut(x_BCHW)
        y = relu_(self.norm1(self.conv1(x_BCHW)))
        return relu_(self.norm2(self.conv2(y)).add_(beside))


class Bottleneck(nn.Module):
    """1x1 down, 3x3 with the stride (or selective kernels), 1x1 up to four times the width."""

    def __init__(self, n_in: int, width: int, stride: int, sk_ratio: float, *, first: bool) -> None:
        super().__init__()
        self.n_out = 4 * width
        self.shortcut = Shortcut(n_in, self.n_out, stride, sk_ratio > 0) if first else None
        self.conv1 = Conv(n_in, width, 1)
        self.norm1 = BatchNorm(width)
        if sk_ratio > 0:
            self.conv2 = SelectiveKernel(width, width, stride, sk_ratio)
            self.norm2 = None
        else:
            self.conv2 = Conv(width, width, 3, stride)
            self.norm2 = BatchNorm(width)
        self.conv3 = Conv(width, self.n_out, 1)
        self.norm3 = BatchNorm(self.n_out, zero_gamma=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        beside = x_BCHW if self.shortcut is None else self.shortcut(x_BCHW)
        y = self.conv2(relu_(self.norm1(self.conv1(x_BCHW))))
        if self.norm2 is not None:
            y = relu_(self.norm2(y))
        return relu_(self.norm3(self.conv3(y)).add_(beside))


class SelectiveKernel(nn.Module):
    """Two 3x3 streams mixed per channel by what the whole image holds (SimCLRv2, section 3).

    Both streams are plain 3x3, made by one convolution. The squeezed features have a single
    position, so their batch norm takes its statistics over the batch alone.
    """

    def __init__(self, n_in: int, width: int, stride: int, sk_ratio: float) -> None:
        super().__init__()
        squeezed = max(int(width * sk_ratio), SMALLEST_SQUEEZE)
        self.conv = Conv(n_in, 2 * width, 3, stride)
        self.norm = BatchNorm(2 * width)
        self.squeeze = Conv(width, squeezed, 1)
        self.squeeze_norm = BatchNorm(squeezed)
        self.select = Conv(squeezed, 2 * width, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        streams = relu_(self.norm(self.conv(x_BCHW)))
        first_BFHW, second_BFHW = streams.chunk(2, dim=1)
        image_BF11 = torch.add(*streams.mean(dim=(2, 3), keepdim=True).chunk(2, dim=1))
        scores = self.select(relu_(self.squeeze_norm(self.squeeze(image_BF11))))
        weight_BF11 = torch.sigmoid(torch.sub(*scores.chunk(2, dim=1)))  # softmax over the two
        return torch.lerp(second_BFHW, first_BFHW, weight_BF11)


class Shortcut(nn.Module):
    """The projection beside the first block of a group."""

    def __init__(self, n_in: int, n_out: int, stride: int, resnet_d: bool) -> None:
        super().__init__()
        self.pool_stride = stride if resnet_d else None
        self.conv = Conv(n_in, n_out, 1, 1 if resnet_d else stride)
        self.norm = BatchNorm(n_out)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.pool_stride is not None:
            x_BCHW = average_pool_2x2(x_BCHW, self.pool_stride)
        return self.norm(self.conv(x_BCHW))


def average_pool_2x2(x_BCHW: Tensor, stride: int) -> Tensor:
    """ResNet-D's average over 2x2 pixels, with stride 1 or 2.

    Stride 1 pads at the bottom and right and leaves padding out of the average, for which
    repeating the last row and column does the same. Stride 2 pads there too, but by an explicit
    zero that counts; it is reached where the size is odd.
    """
    if stride == 1:
        x_BCHW = torch.cat([x_BCHW, x_BCHW[:, :, -1:]], dim=2)
        x_BCHW = torch.cat([x_BCHW, x_BCHW[..., -1:]], dim=3)
    elif x_BCHW.shape[-2] % 2 or x_BCHW.shape[-1] % 2:
        x_BCHW = F.pad(x_BCHW, (0, x_BCHW.shape[-1] % 2, 0, x_BCHW.shape[-2] % 2))
    return F.avg_pool2d(x_BCHW, 2, stride)


def relu_(x: Tensor) -> Tensor:
    """ReLU in place, for a batch norm's output: its backward pass needs its input alone."""
    return F.relu(x, inplace=True)
