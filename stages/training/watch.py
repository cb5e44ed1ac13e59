"""What is watched while a network learns, and what would show a collapse.

Shapes: A vectors, B images, P width of z.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.losses.nt_xent import contrastive_accuracy_and_entropy
from stages.models.momentum import NegativeQueue
from stages.training.loop import Watched
from stages.training.state import TrainState

COLLAPSED_SPREAD = 0.1  # of z_std, where 1 is spread evenly
COLLAPSED_RANK = 2.0  # of the effective rank
COLLAPSED_ROWS = 3  # in a row, so that one odd batch is no alarm


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


def has_collapsed(rows: Sequence[Mapping[str, float]], out_dim: int) -> bool:
    """Whether the last rows of a curve all show that every image gets about the same z.

    A row does if z_std is under a tenth of 1/sqrt(P), or the effective rank under 2.
    """
    last = rows[-COLLAPSED_ROWS:]
    return len(last) == COLLAPSED_ROWS and all(
        row["z_std"] * out_dim**0.5 < COLLAPSED_SPREAD or row["effective_rank"] < COLLAPSED_RANK
        for row in last
    )


class UpdateWatch:
    """Norms of gradient, weights and last update; taken for logged steps only.

    The weights before such a step are copied; that memory is given back after it.
    """

    def __init__(self) -> None:
        self._before: list[Tensor] = []

    def before_step(self, state: TrainState) -> None:
        self._before = [weight.detach().clone() for weight in state.model.parameters()]

    def after_step(self, state: TrainState) -> dict[str, float]:
        """grad_norm; param_norm; update_ratio (norm of the update over that of the weights).

        Where a queue of negatives is kept also queue_age, the mean steps since its keys were made.
        """
        weights = [weight.detach() for weight in state.model.parameters()]
        gradients = [weight.grad for weight in state.model.parameters() if weight.grad is not None]
        facts = {
            "grad_norm": _norm(gradients or [torch.zeros_like(weights[0])]),
            "param_norm": _norm(weights),
        }
        if self._before:
            before = _norm(self._before).clamp(min=1e-12)
            torch._foreach_sub_(self._before, weights)
            facts["update_ratio"] = _norm(self._before) / before
            self._before = []
        queue = state.beside.get("queue")
        if isinstance(queue, NegativeQueue):
            facts["queue_age"] = queue.mean_age()
        values = torch.stack([value.float() for value in facts.values()]).tolist()  # one transfer
        return dict(zip(facts, values, strict=True))


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(list(tensors))).norm()
