"""A contrastive loss by its name in params.yaml.

Shapes: B images, P width of z.
"""

from functools import partial
from typing import Literal, Protocol

from torch import Tensor

from stages.losses.margin_triplet import margin_triplet
from stages.losses.nt_logistic import nt_logistic
from stages.losses.nt_xent import image_range, nt_xent
from stages.losses.streaming_nt_xent import streaming_nt_xent

# Logits from which NT-Xent streams. Where all images are anchors and there is no memory, half of
# the tiles do for all, and streaming wins from 256 images (2**18 logits) on; twice that is surely
# past the crossing on any machine. Elsewhere it takes 1.3 to 1.5 times as long at every size, which
# is worth it from where the matrices that the plain form keeps would take a gigabyte.
# Measured with 128 dimensions on one CPU thread; see tests/benchmarks/bench_losses.py.
STREAMS_FROM = 2**20
STREAMS_FROM_WITHOUT_SYMMETRY = 2**26


class ContrastiveLoss(Protocol):
    """A loss of both views of the global batch; `rows` are the images whose share is wanted."""

    def __call__(self, z0_BP: Tensor, z1_BP: Tensor, *, rows: slice) -> Tensor: ...


def build_loss(
    kind: Literal["nt_xent", "nt_logistic", "margin_triplet"],
    temperature: float,
    margin: float = 0.8,
    semi_hard: bool = False,
) -> ContrastiveLoss:
    """A loss without a memory.

    Args:
        kind: nt_xent: SimCLR's; the others are those it is compared with (Table 2).
        temperature: of nt_xent and nt_logistic.
        margin: of margin_triplet.
        semi_hard: one semi-hard negative per anchor; nt_logistic and margin_triplet.

    Raises:
        ValueError: no loss has that name.
    """
    match kind:
        case "nt_xent":
            return partial(nt_xent_by_size, temperature=temperature)
        case "nt_logistic":
            return partial(nt_logistic, temperature=temperature, semi_hard=semi_hard)
        case "margin_triplet":
            return partial(margin_triplet, margin=margin, semi_hard=semi_hard)
    raise ValueError(f"no loss is called {kind!r}; choose nt_xent, nt_logistic or margin_triplet")


def nt_xent_by_size(
    z0_BP: Tensor,
    z1_BP: Tensor,
    temperature: float,
    *,
    current_keys_AP: Tensor | None = None,
    queue_QP: Tensor | None = None,
    rows: slice | None = None,
) -> Tensor:
    """NT-Xent: the plain form for few logits, the streaming one for many; the same number.

    Arguments are those of `nt_xent`.
    """
    start, stop = image_range(rows, len(z0_BP))
    candidates = [part for part in (z0_BP, z1_BP, current_keys_AP, queue_QP) if part is not None]
    n_logits = 2 * (stop - start) * sum(len(part) for part in candidates)
    is_symmetric = stop - start == len(z0_BP) and len(candidates) == 2
    limit = STREAMS_FROM if is_symmetric else STREAMS_FROM_WITHOUT_SYMMETRY
    return (streaming_nt_xent if n_logits >= limit else nt_xent)(
        z0_BP, z1_BP, temperature, current_keys_AP=current_keys_AP, queue_QP=queue_QP, rows=rows
    )
