"""The networks that are trained: f and g, and f with the kept layers of g and a classifier.

Both name their parts alike (`encoder`, `head.0`, `head.1`, ...), so the state dict of one fits
the other but for the layers of g left out and the classifier.

Shapes: B images, C H W, P width of z, K classes.
"""

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from stages.models.heads import LinearClassifier, ProjectionHead
from stages.models.resnet import ResNet, Stem


class SimCLR(nn.Module):
    """z = g(f(image)), for contrastive pretraining."""

    def __init__(self, encoder: ResNet, head: ProjectionHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Projections z_BP, not yet of unit length."""
        return self.head(self.encoder(images_BCHW))


class Classifier(nn.Module):
    """Logits from f, the first layers of g (none, one or more), and a linear classifier."""

    def __init__(self, encoder: ResNet, head: nn.Sequential, linear: LinearClassifier) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.linear = linear

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits of shape BK."""
        return self.linear(self.head(self.encoder(images_BCHW)))


def build_encoder(
    depth: int,
    width_multiplier: float = 1.0,
    sk_ratio: float = 0.0,
    stem: Stem = "imagenet",
    in_channels: int = 3,
) -> ResNet:
    """An encoder with fresh weights; see `ResNet` for the arguments."""
    return ResNet(depth, width_multiplier, sk_ratio, stem, in_channels)


def build_simclr(
    encoder: ResNet, depth: int = 3, hidden_width: float = 1.0, out_dim: int = 128
) -> SimCLR:
    """Put a fresh projection head on an encoder.

    Args:
        encoder: taken over, not copied.
        depth: layers of g.
        hidden_width: width of g's hidden layers, times that of h (rounded, at least 1).
        out_dim: width of z.
    """
    hidden_dim = max(round(encoder.feature_dim * hidden_width), 1)
    return SimCLR(encoder, ProjectionHead(encoder.feature_dim, hidden_dim, out_dim, depth))


def build_classifier(
    simclr: SimCLR, from_layer: int, n_classes: int, *, zero_init: bool = False
) -> Classifier:
    """A classifier on layer `from_layer` of g, for fine-tuning (SimCLRv2, section 2).

    Args:
        simclr: f and g; copied, so that one pretrained network can start several classifiers.
        from_layer: 0 attaches to h and drops g; k keeps g's first k layers.
        n_classes: K.
        zero_init: start the classifier's weights at 0, as the official fine-tuning does.

    Raises:
        UserError: g has no such layer; the message names those it has.
    """
    kept = simclr.head.first_layers(from_layer)
    linear = LinearClassifier(simclr.head.widths[from_layer], n_classes, zero_init=zero_init)
    device = next(simclr.parameters()).device
    return Classifier(copy.deepcopy(simclr.encoder), copy.deepcopy(kept), linear.to(device))


def kept_state(simclr_state: Mapping[str, Tensor], from_layer: int) -> dict[str, Tensor]:
    """The part of a SimCLR's state dict that a Classifier from that layer takes over.

    Load it with `strict=False`: only `linear.weight` and `linear.bias` will be missing.
    """
    kept = ("encoder.", *(f"head.{number}." for number in range(from_layer)))
    return {name: value for name, value in simclr_state.items() if name.startswith(kept)}
