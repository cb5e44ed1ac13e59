"""Choosing images by the hash of their key: repeatable anywhere, whatever else is in the set.

Both choices below are orders of which a prefix is taken, so a smaller choice always lies inside a
larger one. Shapes: N images.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def hash_ranks(names: Sequence[str], seed: int, purpose: str) -> NDArray[np.uint64]:
    """A 64-bit number (N,) for each name, independent between seeds and between purposes."""
    salt = hashlib.blake2b(f"{purpose}:{seed}".encode(), digest_size=16).digest()
    digests = b"".join(
        hashlib.blake2b(name.encode(), digest_size=8, key=salt).digest() for name in names
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def even_order(
    keys: Sequence[str], classes_N: NDArray[np.int64], seed: int, purpose: str
) -> NDArray[np.int64]:
    """All N positions, so ordered that any prefix holds equally many of each class.

    Round after round each class gives its next image, in an order of classes drawn anew for each
    seed; a class that has run out gives none.
    """
    rank_N, class_turn_N = _ranks_in_class(keys, classes_N, seed, purpose)
    return np.lexsort((class_turn_N, rank_N))


def proportional_order(
    keys: Sequence[str], classes_N: NDArray[np.int64], seed: int, purpose: str
) -> NDArray[np.int64]:
    """All N positions, so ordered that any prefix holds each class in its share of the whole.

    The divisor rule of J. Q. Adams: every class gives one image before any gives its second, so
    no class is left out of a small prefix. Classes of equal size are dealt out evenly.
    """
    rank_N, class_turn_N = _ranks_in_class(keys, classes_N, seed, purpose)
    sizes_N = np.bincount(classes_N + 1)[classes_N + 1]
    return np.lexsort((class_turn_N, rank_N / sizes_N))


def _ranks_in_class(
    keys: Sequence[str], classes_N: NDArray[np.int64], seed: int, purpose: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each image: its place in its class by hash, and the turn of its class."""
    by_class = np.lexsort((np.asarray(keys), hash_ranks(keys, seed, purpose), classes_N))
    found, starts, counts = np.unique(classes_N[by_class], return_index=True, return_counts=True)
    rank_N = np.empty(len(keys), dtype=np.int64)
    rank_N[by_class] = np.arange(len(keys)) - np.repeat(starts, counts)
    turn_of_class = np.argsort(
        np.argsort(hash_ranks([f"class {number}" for number in found], seed, purpose))
    )
    return rank_N, turn_of_class[np.searchsorted(found, classes_N)]
