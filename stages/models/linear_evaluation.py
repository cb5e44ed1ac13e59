"""A linear classifier on h of an encoder that stays as it is (SimCLR, appendix B.6).

Shapes: B images, C H W, D width of h, K classes.
"""

from typing import Self

import torch
from torch import Tensor, nn

from stages.models.heads import LinearClassifier
from stages.models.resnet import ResNet


class LinearEvaluation(nn.Module):
    """Logits from a frozen encoder; only the linear classifier learns.

    The encoder's batch norms use their moving statistics in training, too, and leave them as they
    are (TensorFlow 1's code; TensorFlow 2's moves them by mistake). The classifier starts at zero,
    as in the official commands; the problem is convex.
    """

    def __init__(self, encoder: ResNet, n_classes: int) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.linear = LinearClassifier(encoder.feature_dim, n_classes, zero_init=True)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits of shape BK."""
        with torch.no_grad():
            h_BD = self.encoder(images_BCHW)
        return self.linear(h_BD)
