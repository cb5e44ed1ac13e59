"""Momentum memory: an EMA copy of the network, and a queue of its past outputs.

SimCLRv2, section 2 and appendix D, which adds MoCo's memory to SimCLR. The authors' memory is
not in their released code; what they wrote about it is followed here: the copy covers f and g,
decays by 0.999 a step, and 64K of its outputs are kept.

Shapes: A keys of a step, P width of z, Q keys in the queue.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.batch_norm import BatchNorm


class MomentumEncoder(nn.Module):
    """A copy of a network whose parameters trail the original's; it has no gradients.

    Only parameters are averaged. Batch norm's moving statistics evolve by themselves, as the
    copy normalises by its own batches (it stays in training mode, as in MoCo).
    """

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        """Copy a network.

        Args:
            network: copied as it is; process groups of its batch norms are shared.
            decay: share of the old average kept at each update.
        """
        super().__init__()
        groups = (m.process_group for m in network.modules() if isinstance(m, BatchNorm))
        shared = {id(group): group for group in groups if group is not None}
        self.network = copy.deepcopy(network, shared).requires_grad_(False)
        self.network.train()
        self.decay = decay

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Tensor:
        return self.network(*inputs)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move every parameter by (1 - decay) of its way to the network's."""
        mine: list[Tensor] = list(self.network.parameters())
        theirs: list[Tensor] = list(network.parameters())
        if len(mine) != len(theirs):
            raise ValueError(
                f"the network has {len(theirs)} parameters, its momentum copy {len(mine)}"
            )
        torch._foreach_lerp_(mine, theirs, 1 - self.decay)


class NegativeQueue(nn.Module):
    """The latest keys, unit vectors, first in first out; all of its state is in its buffers."""

    keys_QP: Tensor
    written_Q: Tensor
    n_enqueued: Tensor
    n_steps: Tensor

    def __init__(self, size: int, dim: int, *, random_start: bool = False) -> None:
        """Make a queue.

        Args:
            size: Q, keys kept.
            dim: P.
            random_start: begin full of random unit vectors, as MoCo does; otherwise empty, and
                only keys that were enqueued are ever negatives.
        """
        super().__init__()
        self.random_start = random_start
        start_QP = F.normalize(torch.randn(size, dim)) if random_start else torch.zeros(size, dim)
        self.register_buffer("keys_QP", start_QP)
        self.register_buffer("written_Q", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("n_enqueued", torch.zeros((), dtype=torch.int64))
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64))
        self._n_enqueued: int | None = 0  # n_enqueued, known without waiting for the device
        self.register_load_state_dict_post_hook(_forget_what_was_known)

    @torch.no_grad()
    def enqueue(self, keys_AP: Tensor) -> None:
        """Add a step's keys in place of the oldest; call it once per step.

        Args:
            keys_AP: of any length (L2-normalised here); beyond Q, the last Q stay.
        """
        size = len(self.keys_QP)
        total = self._total() + len(keys_AP)
        newest_AP = keys_AP[-size:]
        rows_A = torch.arange(total - len(newest_AP), total, device=self.keys_QP.device) % size
        self.n_steps += 1
        self.n_enqueued += len(keys_AP)
        self._n_enqueued = total
        self.keys_QP.index_copy_(0, rows_A, F.normalize(newest_AP.to(self.keys_QP.dtype), dim=1))
        self.written_Q.index_copy_(0, rows_A, self.n_steps.expand(len(rows_A)))

    def negatives(self) -> Tensor:
        """The filled entries, of shape (filled, P), in no particular order.

        A copy: enqueueing between a loss and its backward pass is safe.
        """
        return self.keys_QP[: self.filled].clone()

    def mean_age(self) -> Tensor:
        """Mean over the filled entries of the steps since they were enqueued, 0 for the newest."""
        if self.filled == 0:
            return torch.zeros((), device=self.keys_QP.device)
        return (self.n_steps - self.written_Q[: self.filled]).float().mean()

    @property
    def filled(self) -> int:
        """Entries that hold a key, 0 to Q."""
        size = len(self.keys_QP)
        return size if self.random_start else min(self._total(), size)

    def _total(self) -> int:
        if self._n_enqueued is None:
            self._n_enqueued = int(self.n_enqueued.item())
        return self._n_enqueued


def _forget_what_was_known(queue: nn.Module, _keys: Any) -> None:
    assert isinstance(queue, NegativeQueue)
    queue._n_enqueued = None
