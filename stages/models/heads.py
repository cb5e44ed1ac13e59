"""What sits on the encoder: the projection head g, and the linear classifier.

Shapes: B images, D width of h, P width of z, K classes.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from stages.errors import UserError
from stages.models.batch_norm import BatchNorm

WEIGHT_DEVIATION = 0.01


class HeadLayer(nn.Module):
    """A layer of g: dense without bias, batch norm, and ReLU unless it is the last.

    The last one's batch norm has no beta, so z is centred (official code; the papers don't say).
    """

    def __init__(self, n_in: int, n_out: int, *, last: bool) -> None:
        super().__init__()
        self.n_out = n_out
        self.last = last
        self.dense = nn.Linear(n_in, n_out, bias=False)
        nn.init.normal_(self.dense.weight, std=WEIGHT_DEVIATION)
        self.norm = BatchNorm(n_out, center=not last)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dense(x))
        return y if self.last else F.relu(y, inplace=True)


class ProjectionHead(nn.Sequential):
    """The projection head g: z = g(h) (SimCLRv2, section 3).

    Called on h_BD it gives z_BP. Layers are counted from 1; layer 0 is h itself.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, depth: int = 3) -> None:
        """Make a projection head.

        Args:
            in_dim: D.
            hidden_dim: width of the layers before the last; officially D.
            out_dim: P.
            depth: layers; 3 in SimCLRv2, 2 in SimCLR.

        Raises:
            UserError: depth is below 1.
        """
        if depth < 1:
            raise UserError(f"a projection head has at least 1 layer (head.depth is {depth}).")
        widths = [in_dim, *[hidden_dim] * (depth - 1), out_dim]
        super().__init__(
            *(
                HeadLayer(n_in, n_out, last=number == depth)
                for number, (n_in, n_out) in enumerate(pairwise(widths), start=1)
            )
        )
        self.widths = widths

    def taps(self, h_BD: Tensor) -> list[Tensor]:
        """[h, layer 1, ..., z]: what a classifier can be attached to."""
        outputs = [h_BD]
        for layer in self:
            outputs.append(layer(outputs[-1]))
        return outputs

    def first_layers(self, n_layers: int) -> nn.Sequential:
        """The first layers alone, shared with this head; none of them is the identity on h.

        Raises:
            UserError: the head has fewer layers.
        """
        if not 0 <= n_layers <= len(self):
            raise UserError(
                f"the projection head has no layer {n_layers}.\n"
                f"  Choose 0 (h itself) to {len(self)} (its output z); 1 is SimCLRv2's choice for "
                "few labels."
            )
        return nn.Sequential(*list(self)[:n_layers])


class LinearClassifier(nn.Linear):
    """Logits of K classes, with bias; weights start as N(0, 0.01) or at zero, the bias at 0."""

    def __init__(self, in_dim: int, n_classes: int, *, zero_init: bool = False) -> None:
        self.zero_init = zero_init
        super().__init__(in_dim, n_classes)

    def reset_parameters(self) -> None:
        if self.zero_init:
            nn.init.zeros_(self.weight)
        else:
            nn.init.normal_(self.weight, std=WEIGHT_DEVIATION)
        nn.init.zeros_(self.bias)
