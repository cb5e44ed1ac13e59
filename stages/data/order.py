"""Which image stands at which place of an epoch: arithmetic, no list, no state.

The order of an epoch is a permutation of 0..n-1 computed place by place: a Feistel network on the
grid (a, b) with a * b just above n, whose rounds add a mix of seed, epoch and round number. What
falls outside 0..n-1 is sent through again until it falls inside ("cycle walking"; Black and
Rogaway 2002), which keeps the map one-to-one. So any worker, rank or resumed run computes the
places it needs, and ten million images cost no more to start with than ten.

Shapes: P places.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8  # pairs of half rounds; more than enough for diversity, and this is no cipher
_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class Order(ABC):
    """Which image stands at which place: epoch after epoch, each a permutation of its own.

    Attributes:
        n_images: n, at least 1.
    """

    n_images: int

    @abstractmethod
    def positions(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Positions (P,) of the images that stand at places start..stop-1 of an epoch."""

    def steps_per_epoch(self, batch_size: int) -> int:
        """Whole batches in an epoch, at least 1; the few images left over wait for another."""
        return max(self.n_images // batch_size, 1)

    def global_batch(self, step: int, batch_size: int) -> tuple[int, NDArray[np.int64]]:
        """Epoch and positions of the batch of one step, over all processes.

        A rank takes its rows by slicing. When there are fewer images than batch_size, the batch is
        the whole set in the epoch's order.

        Args:
            step: counted from 0 over all epochs.
            batch_size: images per step over all processes.
        """
        epoch, place = divmod(step, self.steps_per_epoch(batch_size))
        start = place * batch_size
        return epoch, self.positions(epoch, start, min(start + batch_size, self.n_images))

    def shards_ahead(self, step: int, batch_size: int) -> list[int]:
        """Numbers of the shards that the steps from here on read, as far as that is told."""
        return []

    def check_places(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.n_images:
            raise ValueError(
                f"places {start}..{stop} of an epoch of {self.n_images} images do not exist"
            )


@dataclass(frozen=True)
class EpochOrder(Order):
    """The order that shuffles all images.

    Attributes:
        seed: any integer; another seed, another order.
    """

    seed: int

    def __post_init__(self) -> None:
        if self.n_images < 1:
            raise ValueError(f"an order needs at least one image, found {self.n_images}")

    def positions(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Positions (P,) of the images that stand at places start..stop-1 of an epoch.

        Raises:
            ValueError: the places are not within 0..n_images.
        """
        self.check_places(start, stop)
        places_P = np.arange(start, stop, dtype=np.uint64)
        columns = math.isqrt(self.n_images - 1) + 1
        rows = -(-self.n_images // columns)
        keys = _round_keys(self.seed, epoch)
        found_P = _permute(places_P, rows, columns, keys)
        outside_P = found_P >= self.n_images
        while outside_P.any():
            found_P[outside_P] = _permute(found_P[outside_P], rows, columns, keys)
            outside_P = found_P >= self.n_images
        return found_P.astype(np.int64)


def _permute(
    numbers_P: NDArray[np.uint64], rows: int, columns: int, keys: list[np.uint64]
) -> NDArray[np.uint64]:
    """One-to-one on 0..rows*columns-1: each half is turned by a mix of the other half."""
    row_P, column_P = np.divmod(numbers_P, np.uint64(columns))
    for key_1, key_2 in zip(keys[::2], keys[1::2], strict=True):
        row_P = (row_P + _mix(column_P ^ key_1) % np.uint64(rows)) % np.uint64(rows)
        column_P = (column_P + _mix(row_P ^ key_2) % np.uint64(columns)) % np.uint64(columns)
    return row_P * np.uint64(columns) + column_P


def _round_keys(seed: int, epoch: int) -> list[np.uint64]:
    state = np.zeros(1, dtype=np.uint64)
    for number in (seed, epoch):
        state = _mix(state + np.uint64((number + _STEP) & _MASK))
    counts = np.arange(1, 2 * _ROUNDS + 1, dtype=np.uint64)
    return list(_mix(state + counts * np.uint64(_STEP)))


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele et al. 2014)."""
    bits = (bits ^ (bits >> np.uint64(30))) * _MIX_1
    bits = (bits ^ (bits >> np.uint64(27))) * _MIX_2
    return bits ^ (bits >> np.uint64(31))
