"""Images named one by one, to be trained on like a store of shards.

Shapes: N images, B asked for, C H W.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.data.order import EpochOrder, Order
from stages.data.random_numbers import key_hashes

KEPT_BYTES = 2**30  # of decoded images


class ListedImages:
    """A list of images and their classes; what is decoded is kept as far as memory is allowed.

    Attributes:
        keys: of the N images.
        key_hashes: (N,) uint64, which decide their views.
        n_images: N.
    """

    def __init__(
        self,
        keys: Sequence[str],
        decode: Callable[[int], Tensor],
        classes_N: Tensor | None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        """List images.

        Args:
            keys: their names.
            decode: from a place in the list to its pixels, uint8 (C, H, W).
            classes_N: None where an image has several, which the caller then knows by position.
            kept_bytes: of decoded images.
        """
        self.keys = keys
        self.key_hashes = key_hashes(list(keys))
        self._decode = decode
        self._classes_N = classes_N
        self._kept: dict[int, Tensor] = {}
        self._room = kept_bytes
        self._lock = threading.Lock()  # batches are made in several threads

    @property
    def n_images(self) -> int:
        return len(self.keys)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(thread_name_prefix="decode")

    def images(self, positions_B: NDArray[np.int64]) -> Tensor | list[Tensor]:
        """(B, C, H, W) where all have one size, else a list of (C, H_i, W_i)."""
        missing = sorted({*positions_B.tolist()} - self._kept.keys())
        fresh = dict(zip(missing, self._pool.map(self._decode, missing), strict=True))
        found = [
            fresh[place] if place in fresh else self._kept[place] for place in positions_B.tolist()
        ]
        with self._lock:
            for place, pixels_CHW in fresh.items():
                if place not in self._kept and pixels_CHW.nbytes <= self._room:
                    self._kept[place] = pixels_CHW
                    self._room -= pixels_CHW.nbytes
        return torch.stack(found) if len({image.shape for image in found}) == 1 else found

    def class_tensor(self, positions_B: NDArray[np.int64]) -> Tensor | None:
        return None if self._classes_N is None else self._classes_N[torch.from_numpy(positions_B)]

    def order(self, seed: int) -> Order:
        return EpochOrder(self.n_images, seed)

    def read_ahead(self, shards: Iterable[int]) -> None:
        """Nothing is read ahead: the files are on this disk."""
