"""What is watched while a representation is learnt, and what would show a collapse.

Shapes: A vectors, B images, P width of z.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.losses.nt_xent import contrastive_accuracy_and_entropy
from stages.training.loop import Watched


def effective_rank(z_AP: Tensor) -> float:
    """exp(entropy) of the normalised singular values: 1 for a collapse, up to P (Roy 2007)."""
    singular = torch.linalg.svdvals((z_AP - z_AP.mean(dim=0)).float())
    shares = singular / singular.sum().clamp(min=1e-12)
    entropy = -(shares * shares.clamp(min=1e-12).log()).sum()
    return float(entropy.exp())


def contrastive_watch(watched: Watched, temperature: float) -> dict[str, float]:
    """Loss, contrastive accuracy and the signs of collapse, from one batch's projections.

    alignment is the mean squared distance of positives, uniformity the log of the mean Gaussian
    potential of all pairs (Wang and Isola 2020), both on the unit sphere; z_std is the mean
    deviation of a feature of the normalised z (1/sqrt(P) when spread evenly, 0 in a collapse).
    """
    z0_BP, z1_BP = watched["z0"].float(), watched["z1"].float()
    accuracy, entropy = contrastive_accuracy_and_entropy(z0_BP, z1_BP, temperature)
    u0_BP, u1_BP = F.normalize(z0_BP, dim=1), F.normalize(z1_BP, dim=1)
    sample_AP = u0_BP[:1024]  # pairs grow with the square
    return {
        "loss": float(watched["loss"]),
        "contrastive_accuracy": float(accuracy),
        "contrastive_entropy": float(entropy),
        "z_std": float(u0_BP.std(dim=0).mean()),
        "effective_rank": effective_rank(torch.cat([u0_BP, u1_BP])),
        "alignment": float((u0_BP - u1_BP).square().sum(dim=1).mean()),
        "uniformity": float(torch.pdist(sample_AP).square().mul(-2).exp().mean().log()),
    }


def loss_watch(watched: Watched) -> dict[str, float]:
    """The loss alone."""
    return {"loss": float(watched["loss"])}
