"""Margin triplet loss, which SimCLR compares NT-Xent with (Table 2, appendix B.10).

Shapes: B images, A anchors (both views: 2B), P width of z.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.losses.nt_xent import check_shapes, unit_or_as_is


def margin_triplet(
    z0_BP: Tensor, z1_BP: Tensor, margin: float, *, semi_hard: bool = False
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

    Returns:
        Scalar, the mean over the 2B anchors.
    """
    check_shapes(z0_BP, z1_BP, None, None)
    with torch.autocast(z0_BP.device.type, enabled=False):
        positive_A1, negative_AB = positives_and_negatives(z0_BP, z1_BP)
        n_negatives = len(z0_BP) - 1
        if semi_hard:
            negative_AB, n_negatives = semi_hard_negative(positive_A1, negative_AB), 1
        hinge_AB = F.relu(negative_AB - positive_A1 + margin)
        return hinge_AB.sum(dim=1).mean() / n_negatives


def positives_and_negatives(z0_BP: Tensor, z1_BP: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of each of the 2B anchors with its partner, and with the other view of all images.

    Returns:
        Shapes (2B, 1) and (2B, B); in the second, -inf stands where the partner is.
    """
    similarity_BB = unit_or_as_is(z0_BP, True) @ unit_or_as_is(z1_BP, True).T
    own_BB = torch.eye(len(similarity_BB), dtype=torch.bool, device=similarity_BB.device)
    negative_AB = torch.cat([similarity_BB, similarity_BB.T])
    negative_AB = negative_AB.masked_fill(own_BB.repeat(2, 1), -torch.inf)
    return similarity_BB.diagonal().repeat(2)[:, None], negative_AB


def semi_hard_negative(positive_A1: Tensor, negative_AB: Tensor) -> Tensor:
    """The negative nearest to the anchor among those further away than the positive.

    FaceNet's rule (Schroff et al. 2015, section 3.2), which SimCLR cites. Whether it also stands
    within the margin is left to the hinge.

    Returns:
        Its cosine, shape (A, 1); -inf where every negative is as near as the positive.
    """
    further_AB = negative_AB.masked_fill(negative_AB >= positive_A1, -torch.inf)
    return further_AB.max(dim=1, keepdim=True).values
