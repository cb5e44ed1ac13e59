"""Shuffling in blocks of shards, for shards that are far away: arithmetic, like the order itself.

An epoch takes the shards in an order of its own, a few at a time, and shuffles the images of each
such block among themselves. So a run reads each shard once an epoch and needs two blocks on disk,
the one it reads and the one that comes. Shards hold images by the hash of their key, each a sample
of the whole; what a block can't give is a batch from more shards than it has (`mixing`).

Shapes: N images, P places, S shards.
"""

from dataclasses import dataclass
from math import lgamma

import numpy as np
from numpy.typing import NDArray

from stages.data.order import EpochOrder, Order

_BLOCK_BITS = 24  # of a number that tells the blocks of an epoch apart


@dataclass(frozen=True)
class BlockOrder(Order):
    """The endless order of a data set, in blocks of shards.

    Attributes:
        by_shard_N: positions of all images, those of a shard side by side.
        shards_S: numbers of the shards that hold any.
        sizes_S: images of each of these.
        seed: any integer.
        shards_per_block: at least 1; as many as there are is one shuffle over everything.
    """

    by_shard_N: NDArray[np.int64]
    shards_S: NDArray[np.int64]
    sizes_S: NDArray[np.int64]
    seed: int
    shards_per_block: int

    @classmethod
    def of(cls, shard_N: NDArray[np.integer], seed: int, shards_per_block: int) -> "BlockOrder":
        """The order of N images, of which each stands in the shard of this number."""
        if shards_per_block < 1 or not len(shard_N):
            raise ValueError("a block order needs images, and at least one shard per block")
        counts = np.bincount(shard_N)  # by number, no sort of all images
        shards_S = np.flatnonzero(counts)
        return cls(
            len(shard_N),
            _by_shard(shard_N, len(counts)),
            shards_S.astype(np.int64),
            counts[shards_S].astype(np.int64),
            seed,
            shards_per_block,
        )

    def positions(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Positions (P,) of the images that stand at places start..stop-1 of an epoch."""
        self.check_places(start, stop)
        order_S = self._shard_order(epoch)
        ends_S = np.cumsum(self.sizes_S[order_S])
        starts_S = np.cumsum(self.sizes_S) - self.sizes_S  # of each shard in by_shard_N
        found = [np.empty(0, dtype=np.int64)]
        for block in self._blocks_between(ends_S, start, stop):
            shards = order_S[block * self.shards_per_block : (block + 1) * self.shards_per_block]
            block_ends = np.cumsum(self.sizes_S[shards])
            first = int(ends_S[block * self.shards_per_block] - self.sizes_S[shards[0]])
            inside = EpochOrder(int(block_ends[-1]), self.seed).positions(
                (epoch << _BLOCK_BITS) + block + 1,
                max(start - first, 0),
                min(stop - first, int(block_ends[-1])),
            )
            which = np.searchsorted(block_ends, inside, side="right")
            within = inside - (block_ends - self.sizes_S[shards])[which]
            found.append(self.by_shard_N[starts_S[shards[which]] + within])
        return np.concatenate(found)

    def shards_ahead(self, step: int, batch_size: int) -> list[int]:
        """Numbers of the shards of a step's block, and of the one after it."""
        epoch, place = divmod(step, self.steps_per_epoch(batch_size))
        order_S = self._shard_order(epoch)
        ends_S = np.cumsum(self.sizes_S[order_S])
        start = place * batch_size
        stop = min(start + batch_size, self.n_images)
        blocks = self._blocks_between(ends_S, start, stop)
        ahead = order_S[blocks.start * self.shards_per_block :][
            : (len(blocks) + 1) * self.shards_per_block
        ]
        if blocks.stop * self.shards_per_block >= len(order_S):
            ahead = [*ahead, *self._shard_order(epoch + 1)[: self.shards_per_block]]
        return list(dict.fromkeys(self.shards_S[ahead].tolist()))

    def _shard_order(self, epoch: int) -> NDArray[np.int64]:
        """Places in shards_S, in the order of an epoch."""
        n_shards = len(self.shards_S)
        return EpochOrder(n_shards, self.seed).positions(epoch << _BLOCK_BITS, 0, n_shards)

    def _blocks_between(self, ends_S: NDArray[np.int64], start: int, stop: int) -> range:
        """The blocks that hold places start..stop-1."""
        if start == stop:
            return range(0)
        first, last = np.searchsorted(ends_S, [start, stop - 1], side="right").tolist()
        return range(first // self.shards_per_block, last // self.shards_per_block + 1)


def _by_shard(shard_N: NDArray[np.integer], n_numbers: int) -> NDArray[np.int64]:
    """Positions with those of a shard side by side; images in an index mostly stand so already."""
    if bool((shard_N[1:] >= shard_N[:-1]).all()):
        return np.arange(len(shard_N))
    small = shard_N.astype(np.uint16) if n_numbers <= 2**16 else shard_N  # numpy's radix sort
    return np.argsort(small, kind="stable")


@dataclass(frozen=True)
class Mixing:
    """How diverse the batches of an order are, measured on some of them.

    Attributes:
        shards_per_batch: shards that a batch is drawn from, the mean.
        of_full_shuffle: that mean over its expectation when all images are shuffled; 1 is best.
    """

    shards_per_batch: float
    of_full_shuffle: float


def mixing(
    order: Order, shard_N: NDArray[np.integer], batch_size: int, n_batches: int = 64
) -> Mixing:
    """Measure on batches that are spread evenly over the first epoch.

    Args:
        order: of N images.
        shard_N: the shard of each.
        batch_size: images per step over all processes.
        n_batches: at most.
    """
    n_steps = order.steps_per_epoch(batch_size)
    steps = np.unique(np.linspace(0, n_steps - 1, n_batches).astype(int)).tolist()
    counts = [len(np.unique(shard_N[order.global_batch(s, batch_size)[1]])) for s in steps]
    found = sum(counts) / len(counts)
    expected = _shards_when_shuffled(np.unique(shard_N, return_counts=True)[1], batch_size)
    return Mixing(round(found, 2), round(found / expected, 4))


def _shards_when_shuffled(sizes_S: NDArray[np.int64], batch_size: int) -> float:
    """The shards that a batch drawn from all images without replacement touches, on average."""
    n_images = int(sizes_S.sum())
    drawn = min(batch_size, n_images)

    def log_choose(n: int) -> float:
        return lgamma(n + 1) - lgamma(drawn + 1) - lgamma(n - drawn + 1)

    every = log_choose(n_images)
    missed = [
        np.exp(log_choose(n_images - size) - every) if n_images - size >= drawn else 0.0
        for size in sizes_S.tolist()
    ]
    return len(sizes_S) - float(sum(missed))
