"""Images that need no shards, for tests of loops and steps."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.data.order import EpochOrder


@dataclass
class InMemory:
    """The part of an image store that a loader needs."""

    pixels: Tensor
    n_images: int
    key_hashes: np.ndarray

    def order(self, seed: int) -> EpochOrder:
        return EpochOrder(self.n_images, seed)

    def read_ahead(self, shards: list[int]) -> None:
        assert shards == []

    def images(self, positions: np.ndarray) -> Tensor:
        return self.pixels[torch.from_numpy(positions)]

    def class_tensor(self, positions: np.ndarray) -> None:
        return None
