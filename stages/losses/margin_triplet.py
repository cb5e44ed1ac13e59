"""Margin triplet loss, which SimCLR compares NT-Xent with (Table 2, appendix B.10).

Shapes: B images, R anchors asked for (both views of all images: 2B), P width of z.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.losses.nt_xent import check_shapes, image_range, unit_or_as_is


def margin_triplet(
    z0_BP: Tensor,
    z1_BP: Tensor,
    margin: float,
    *,
    semi_hard: bool = False,
    rows: slice | None = None,
) -> Tensor:
    """How far negatives come within a margin of the positive: mean of max(s_n - s_p + m, 0).

    s_p is the cosine of an anchor and its partner, s_n of the anchor and a negative. Both views
    of each image are anchors; negatives come from one view only (B.10), the one the anchor is
    not of. The table shows one negative; over many we take the mean, so that the value doesn't
    grow with B.

    Args:
        z0_BP: projections of each image's first view; scaled to unit length here.
        z1_BP: of its second view.
        margin: m, of the cosines; SimCLR tried 0, 0.4, 0.8 and 1.6.
        semi_hard: keep one negative per anchor, see `semi_hard_negative`; an anchor with none
            adds 0.
        rows: range of images whose two views are the anchors, as in `nt_xent`; None: all.

    Returns:
        Scalar, the mean over the anchors.
    """
    check_shapes(z0_BP, z1_BP, None, None)
    with torch.autocast(z0_BP.device.type, enabled=False):
        positive_R1, negative_RB = positives_and_negatives(z0_BP, z1_BP, rows)
        n_negatives = len(z0_BP) - 1
        if semi_hard:
            negative_RB, n_negatives = semi_hard_negative(positive_R1, negative_RB), 1
        hinge_RB = F.relu(negative_RB - positive_R1 + margin)
        return hinge_RB.sum(dim=1).mean() / n_negatives


def positives_and_negatives(
    z0_BP: Tensor, z1_BP: Tensor, rows: slice | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines of each anchor with its partner, and with the other view of all images.

    Returns:
        Shapes (R, 1) and (R, B); in the second, -inf stands where the partner is.
    """
    start, stop = image_range(rows, len(z0_BP))
    u0_BP, u1_BP = unit_or_as_is(z0_BP, True), unit_or_as_is(z1_BP, True)
    similarity_RB = torch.cat([u0_BP[start:stop] @ u1_BP.T, u1_BP[start:stop] @ u0_BP.T])
    own_R1 = torch.arange(start, stop, device=similarity_RB.device).repeat(2)[:, None]
    return similarity_RB.gather(1, own_R1), similarity_RB.scatter(1, own_R1, -torch.inf)


def semi_hard_negative(positive_R1: Tensor, negative_RB: Tensor) -> Tensor:
    """The negative nearest to the anchor among those further away than the positive.

    FaceNet's rule (Schroff et al. 2015, section 3.2), which SimCLR cites. Whether it also stands
    within the margin is left to the hinge.

    Returns:
        Its cosine, shape (R, 1); -inf where every negative is as near as the positive.
    """
    further_RB = negative_RB.masked_fill(negative_RB >= positive_R1, -torch.inf)
    return further_RB.max(dim=1, keepdim=True).values
