"""NT-Logistic loss, which SimCLR compares NT-Xent with (Table 2, appendix B.10).

Shapes: B images, R anchors asked for (both views of all images: 2B), P width of z.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.losses.margin_triplet import positives_and_negatives, semi_hard_negative
from stages.losses.nt_xent import check_shapes


def nt_logistic(
    z0_BP: Tensor,
    z1_BP: Tensor,
    temperature: float,
    *,
    semi_hard: bool = False,
    rows: slice | None = None,
) -> Tensor:
    """Each pair on its own is called same or other: -log sig(s_p/t) - log sig(-s_n/t).

    s_p is the cosine of an anchor and its partner, s_n of the anchor and a negative. Both views
    of each image are anchors; negatives come from one view only (B.10), the one the anchor is
    not of. The table shows one negative; over many we take the mean, so that positives and
    negatives weigh the same at any B.

    Args:
        z0_BP: projections of each image's first view; scaled to unit length here.
        z1_BP: of its second view.
        temperature: t; SimCLR tried 0.1, 0.2, 0.5 and 1.
        semi_hard: keep one negative per anchor, see `semi_hard_negative`; an anchor with none
            has its positive's term alone.
        rows: range of images whose two views are the anchors, as in `nt_xent`; None: all.

    Returns:
        Scalar in nats, the mean over the anchors.
    """
    check_shapes(z0_BP, z1_BP, None, None)
    with torch.autocast(z0_BP.device.type, enabled=False):
        positive_R1, negative_RB = positives_and_negatives(z0_BP, z1_BP, rows)
        n_negatives = len(z0_BP) - 1
        if semi_hard:
            negative_RB, n_negatives = semi_hard_negative(positive_R1, negative_RB), 1
        on_positives = F.logsigmoid(positive_R1 / temperature).mean()
        on_negatives = F.logsigmoid(-negative_RB / temperature).sum(dim=1).mean() / n_negatives
        return -on_positives - on_negatives
