"""Frozen features of a store's images.

Shapes: N images, B a batch of them, C H W, D width of h, K classes.
"""

import hashlib
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from stages.data.evaluation_views import EvaluationRecipe
from stages.data.store import ImageStore
from stages.errors import StageError

EVALUATION_BATCH = 500


def outputs(
    module: nn.Module, store: ImageStore, seen_as: EvaluationRecipe, device: torch.device
) -> Tensor:
    """What a module in inference mode makes of every image of a store, in the store's order.

    Returns:
        (N, D) features of an encoder, or (N, K) logits of a classifier; float32 on the CPU.
    """
    module.eval()
    rows = []
    with torch.inference_mode():
        for start in range(0, store.n_images, EVALUATION_BATCH):
            positions_B = np.arange(start, min(start + EVALUATION_BATCH, store.n_images))
            images_BCHW = seen_as(store.images(positions_B))
            images_BCHW = images_BCHW.to(device, memory_format=torch.channels_last)
            rows.append(module(images_BCHW).float().cpu())
    return torch.cat(rows)


@contextmanager
def frozen(module: nn.Module) -> Generator[None]:
    """Hold a module to its word: parameters and buffers must come out as they went in.

    Raises:
        StageError: something moved, batch-norm statistics included.
    """
    before = state_digest(module)
    yield
    if state_digest(module) != before:
        raise StageError(
            "a frozen encoder changed while it was evaluated; its numbers are void.\n"
            "  This is a fault of the program: please report it."
        )


def state_digest(module: nn.Module) -> str:
    """SHA-256 over every parameter and buffer of a module, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
