"""Contrastive losses: NT-Xent, alone or with a momentum memory, and MoCo's one-sided form.

Shapes: B images, A anchors (both views: 2B), R anchors asked for, P width of z, Q queue,
C candidates (A, and the keys of the memory). Losses are scalars in nats, float32 at least:
autocast does not reach them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_NORM = 1e-6  # official: rsqrt(max(sum of squares, 1e-12))


def nt_xent(
    z0_BP: Tensor,
    z1_BP: Tensor,
    temperature: float,
    *,
    current_keys_AP: Tensor | None = None,
    queue_QP: Tensor | None = None,
    rows: slice | None = None,
    normalize: bool = True,
) -> Tensor:
    """Cross entropy of picking each view's partner among all other views (SimCLR, eq. 1).

    Row i of both inputs comes from image i. The mean over the anchors; the official code adds
    the means of its two halves instead, so its number is twice this one.

    The memory of SimCLRv2 (section 2: outputs of an EMA copy of the network for the current and
    past batches are further negatives of every anchor) is `current_keys_AP` and `queue_QP`. The
    authors' code for it was never released. An image is not its own negative, so the two current
    keys of an anchor's own image don't count.

    Keeps several (R, C) matrices for the backward pass; `streaming_nt_xent` gives the same value
    and gradient with none.

    Args:
        z0_BP: projections of each image's first view.
        z1_BP: of its second view.
        temperature: divides the cosines.
        current_keys_AP: EMA outputs for the same views in the same order, [view 0; view 1];
            unit vectors, no gradient flows into them.
        queue_QP: EMA outputs of past batches, unit vectors; may be empty.
        rows: range of images whose two views are the anchors; None: all. A process that holds
            gathered z of the global batch computes its own images' share; the mean over processes
            is the loss of the global batch.
        normalize: scale z to unit length (officially hidden_norm).

    Raises:
        ValueError: the shapes don't fit each other, or rows name no range of the images.
    """
    check_shapes(z0_BP, z1_BP, current_keys_AP, queue_QP)
    n_images = len(z0_BP)
    with torch.autocast(z0_BP.device.type, enabled=False):
        z_AP = unit_or_as_is(torch.cat([z0_BP, z1_BP]), normalize)
        image_B = torch.arange(*image_range(rows, n_images), device=z_AP.device)
        own_R = torch.cat([image_B, image_B + n_images])
        partner_R = torch.cat([image_B + n_images, image_B])
        anchors_RP = z_AP if len(own_R) == len(z_AP) else z_AP[own_R]
        logits_RA = anchors_RP @ z_AP.T / temperature
        logits_RC = [logits_RA.scatter(1, own_R[:, None], -torch.inf)]
        if current_keys_AP is not None:
            keys_AP = current_keys_AP.detach().to(z_AP)
            own_image_R2 = torch.stack([own_R, partner_R], dim=1)
            logits_RA = anchors_RP @ keys_AP.T / temperature
            logits_RC.append(logits_RA.scatter(1, own_image_R2, -torch.inf))
        if queue_QP is not None:
            logits_RC.append(anchors_RP @ queue_QP.detach().to(z_AP).T / temperature)
        return F.cross_entropy(torch.cat(logits_RC, dim=1), partner_R)


def moco_loss(q_BP: Tensor, k_BP: Tensor, queue_QP: Tensor, temperature: float) -> Tensor:
    """MoCo's loss: tell a query's key from the keys of past batches (MoCo, eq. 1).

    One direction only: queries come from one view, keys from the other by the EMA copy. Other
    images of the batch are not negatives. The mean over the B queries; 0 while the queue is empty.

    Args:
        q_BP: queries; scaled to unit length here.
        k_BP: row i is the positive of query i; unit vectors, no gradient flows into them.
        queue_QP: keys of past batches, the negatives; unit vectors.
        temperature: divides the cosines; 0.07 in MoCo v1, 0.2 in v2.

    Raises:
        ValueError: the shapes don't fit each other.
    """
    check_shapes(q_BP, k_BP, None, queue_QP)
    with torch.autocast(q_BP.device.type, enabled=False):
        queries_BP = unit_or_as_is(q_BP, normalize=True)
        positive_B1 = (queries_BP * k_BP.detach().to(queries_BP)).sum(dim=1, keepdim=True)
        negative_BQ = queries_BP @ queue_QP.detach().to(queries_BP).T
        logits_BC = torch.cat([positive_B1, negative_BQ], dim=1) / temperature
        first_B = torch.zeros(len(logits_BC), dtype=torch.long, device=logits_BC.device)
        return F.cross_entropy(logits_BC, first_B)


@torch.no_grad()
def contrastive_accuracy_and_entropy(
    z0_BP: Tensor, z1_BP: Tensor, temperature: float, *, normalize: bool = True
) -> tuple[Tensor, Tensor]:
    """How often a first view's nearest second view is its own image's, and how sure that is.

    As the official code logs them: candidates are the B second views, not the loss's 2B - 1.

    Returns:
        Accuracy in [0, 1], and the mean entropy of the B-way softmax in nats.
    """
    with torch.autocast(z0_BP.device.type, enabled=False):
        u0_BP, u1_BP = unit_or_as_is(z0_BP, normalize), unit_or_as_is(z1_BP, normalize)
        logits_BB = u0_BP @ u1_BP.T / temperature
        own_B = torch.arange(len(logits_BB), device=logits_BB.device)
        accuracy = (logits_BB.argmax(dim=1) == own_B).to(logits_BB).mean()
        p_BB = logits_BB.softmax(dim=1)
        return accuracy, -(p_BB * (p_BB + 1e-8).log()).sum(dim=1).mean()


def unit_or_as_is(z_AP: Tensor, normalize: bool) -> Tensor:
    """Rows of unit length if asked for, in float32 (float64 stays)."""
    z_AP = z_AP.to(torch.promote_types(z_AP.dtype, torch.float32))
    return F.normalize(z_AP, dim=1, eps=SMALLEST_NORM) if normalize else z_AP


def image_range(rows: slice | None, n_images: int) -> tuple[int, int]:
    """First and last-plus-one of the images asked for."""
    start, stop, step = (rows or slice(None)).indices(n_images)
    if step != 1 or start >= stop:
        raise ValueError(f"rows ({rows}) must be a range of one or more of the {n_images} images")
    return start, stop


def check_shapes(
    z0_BP: Tensor, z1_BP: Tensor, current_keys_AP: Tensor | None, queue_QP: Tensor | None
) -> None:
    """Refuse inputs that would broadcast into a loss of something else."""
    n_images, width = z0_BP.shape
    if z1_BP.shape != z0_BP.shape:
        raise ValueError(f"the views differ in shape: {tuple(z0_BP.shape)}, {tuple(z1_BP.shape)}")
    if current_keys_AP is not None and current_keys_AP.shape != (2 * n_images, width):
        raise ValueError(
            f"current keys of shape {tuple(current_keys_AP.shape)} can't be those of both views of "
            f"{n_images} images, {(2 * n_images, width)}"
        )
    if queue_QP is not None and (queue_QP.ndim != 2 or queue_QP.shape[1] != width):
        raise ValueError(f"a queue of shape {tuple(queue_QP.shape)} for z of width {width}")
