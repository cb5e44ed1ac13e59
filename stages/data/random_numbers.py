"""Random numbers that belong to a sample, not to the process that happens to draw them.

A stream is a 64-bit state made from (seed, epoch, key, view); draw number j of a stream is a mix
of state and j (SplitMix64, Steele et al. 2014). So any draw can be computed at any time, in any
order, by any worker or rank, and nothing has to be saved to resume a run.

Shapes: B streams, N draws.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def key_hash(key: str) -> int:
    """A 64-bit number for a sample's key, the same on every machine and in every Python."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def key_hashes(keys: Iterable[str]) -> NDArray[np.uint64]:
    """`key_hash` of many keys, (B,) uint64; worth doing once per data set."""
    return np.fromiter((key_hash(key) for key in keys), dtype=np.uint64)


@dataclass(frozen=True)
class Streams:
    """B independent streams of uniform numbers, addressed by draw number."""

    state: NDArray[np.uint64]  # (B,)

    @classmethod
    def of(cls, seed: int, epoch: int, key_hashes_B: NDArray[np.uint64], view: int) -> "Streams":
        """The streams of one view of B samples. Seed, epoch and view may be any integers."""
        run = np.zeros(1, dtype=np.uint64)
        for number in (seed, epoch, view):
            run = _mix(run + _STEP + np.uint64(number & _MASK))
        return cls(_mix(np.asarray(key_hashes_B, dtype=np.uint64) ^ run))

    def __len__(self) -> int:
        return len(self.state)

    def select(self, rows: NDArray[np.intp]) -> "Streams":
        """The streams at these positions."""
        return Streams(self.state[rows])

    def uniform(self, first: int, n_draws: int) -> NDArray[np.float64]:
        """Draws first .. first + n_draws - 1 of each stream, (B, N) in [0, 1), multiples of 2^-53.

        The same numbers whether they are asked for at once or in parts.
        """
        count_N = np.arange(first + 1, first + n_draws + 1, dtype=np.uint64)
        bits_BN = _mix(self.state[:, None] + count_N * _STEP)
        return (bits_BN >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniform(
    seed: int, epoch: int, key_hashes_B: NDArray[np.uint64], view: int, n_draws: int
) -> NDArray[np.float64]:
    """The first `n_draws` numbers of one view of B samples, (B, N) in [0, 1)."""
    return Streams.of(seed, epoch, key_hashes_B, view).uniform(0, n_draws)


def join(streams: Iterable[Streams]) -> Streams:
    """Several groups of streams as one, in order."""
    return Streams(np.concatenate([group.state for group in streams]))


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection in which every bit moves every other."""
    bits = (bits ^ (bits >> np.uint64(30))) * _MIX_1
    bits = (bits ^ (bits >> np.uint64(27))) * _MIX_2
    return bits ^ (bits >> np.uint64(31))
