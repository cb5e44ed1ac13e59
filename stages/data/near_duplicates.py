"""Near copies of a picture: saved again, resized, brightened; found by what it looks like.

A picture's look is its luma on 16 x 16 fields. Two are near copies where their looks correlate by
LEAST_CORRELATION or more. Measured on 1,300 photographs of solar cells and their edits: of those
saved again as JPEG (quality 50) or WebP (50), enlarged by half, with less contrast or another
gamma, 99.7 of 100 or more are found; of those halved 95, saved at quality 20 96, brightened until
they clip 83. Of the 3.4 million pairs of all 2,624 cells, alike as they are, 7 are found: one cell
photographed twice, each. Fashion-MNIST has 74 pairs among 70,000, 18 of a test and a training
picture; by eye most are one photograph twice, some the same garment in another shade or print. So
near copies are told, and dropped only if asked. A crop of 2% or a shift by a pixel falls below:
cut-outs are not found.

Pairs are found in a time that grows as N (1.6 s for 70,000): signs of random projections (Charikar
2002) put near looks into the same bucket of some band. A pair at the threshold differs in a sign
with probability acos(0.998)/pi = 0.02, so it shares none of 32 bands of 64 signs 4 times in
100,000. In a crowded bucket each look is compared with the next few only; groups join by chains.
All arithmetic that decides is on whole numbers, so every machine finds the same.

Shapes: N pictures, F fields of a look (SIDE x SIDE).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.data.duplicates import HELD_OUT_FIRST
from stages.data.looks import SIDE
from stages.data.sources import Split

LEAST_CORRELATION = 0.998
_BANDS, _SIGNS = 32, 64
_TRIAL = 6  # bands whose signs are counted before looks are compared
_MOST_DIFFERING = 24  # of their 384 signs; of a pair at the threshold 7.7 differ, 25 once in 10^6
_AT_ONCE = 16_384  # looks projected, or pairs compared
_CROWDED = 32  # looks in a bucket that are all compared with each other
_NEXT = 4  # in a more crowded one, each with so many
_FAINT = 2.0  # levels of deviation; a fainter look says nothing


@dataclass(frozen=True)
class NearCopies:
    """Pictures that look alike, joined by chains of near copies.

    Attributes:
        keys: sorted; at least two.
        sides: on which they stand, as the splits are ordered.
        dropped: of keys, what is left out of training.
        class_names: the labels they have; two or more contradict each other.
    """

    keys: tuple[str, ...]
    sides: tuple[Split, ...]
    dropped: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def as_record(self) -> dict[str, object]:
        """For the index and the report; what is empty is left out."""
        record: dict[str, object] = {"keys": list(self.keys), "sides": list(self.sides)}
        if self.dropped:
            record["dropped"] = list(self.dropped)
        if len(self.class_names) > 1:
            record["class_names"] = list(self.class_names)
        return record


def find_near_copies(
    looks: Mapping[str, bytes],
    contents: Mapping[str, bytes],
    split_of: Mapping[str, Split],
    class_name_of: Mapping[str, str | None],
    *,
    drop: bool,
) -> list[NearCopies]:
    """Groups of pictures that look alike, by their first key; groups of exact copies are none.

    Args:
        looks: by key, of looks.look_of.
        contents: by key, equal for exact copies.
        split_of: by key.
        class_name_of: by key.
        drop: leave out of each group what does not stand on the side held out longest (test
            before validation before train).
    """
    keys = sorted(looks)
    groups: dict[int, list[str]] = {}
    looks_NF = np.frombuffer(b"".join(looks[key] for key in keys), np.uint8)
    for place, first in enumerate(joined(near_pairs(looks_NF.reshape(-1, SIDE**2)), len(keys))):
        groups.setdefault(first, []).append(keys[place])
    found = []
    for group in groups.values():
        if len(group) > 1 and len({contents[key] for key in group}) > 1:
            sides = [side for side in HELD_OUT_FIRST if any(split_of[k] == side for k in group)]
            names = {class_name_of[key] for key in group} - {None}
            found.append(
                NearCopies(
                    keys=tuple(group),
                    sides=tuple(reversed(sides)),
                    dropped=tuple(k for k in group if drop and split_of[k] != sides[0]),
                    class_names=tuple(sorted(str(name) for name in names)),
                )
            )
    return found


def near_pairs(looks_NF: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pairs of places (M, 2) of looks that correlate by LEAST_CORRELATION or more."""
    chunks = [slice(start, start + _AT_ONCE) for start in range(0, len(looks_NF), _AT_ONCE)]
    clear = [_squares(looks_NF[chunk]) >= _FAINT**2 * SIDE**6 for chunk in chunks]
    useful = np.flatnonzero(np.concatenate(clear)) if clear else np.empty(0, dtype=np.int64)
    codes_NB = _codes(looks_NF, useful)
    shared = np.unique(np.concatenate([_sharing(codes_N) for codes_N in codes_NB.T]))
    close = [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, len(shared), _AT_ONCE):
        one, other = np.divmod(shared[start : start + _AT_ONCE], len(useful))
        differing = np.bitwise_count(codes_NB[one, :_TRIAL] ^ codes_NB[other, :_TRIAL])
        likely = differing.sum(axis=1) <= _MOST_DIFFERING
        pairs_M2 = useful[np.stack([one[likely], other[likely]], axis=1)]
        close.append(pairs_M2[_correlation(looks_NF, pairs_M2) >= LEAST_CORRELATION])
    return np.concatenate(close)


def joined(pairs_M2: NDArray[np.int64], count: int) -> list[int]:
    """For each of `count` places the first place of its group."""
    first = list(range(count))

    def root(place: int) -> int:
        while first[place] != place:
            first[place] = first[first[place]]
            place = first[place]
        return place

    for one, other in pairs_M2.tolist():
        low, high = sorted((root(one), root(other)))
        first[high] = low
    return [root(place) for place in range(count)]


def _centred(looks_NF: NDArray[np.uint8]) -> NDArray[np.int32]:
    """F times each field's difference from the mean: whole numbers up to 65,280."""
    wide_NF = looks_NF.astype(np.int32)
    return SIDE**2 * wide_NF - wide_NF.sum(axis=1, keepdims=True)


def _squares(looks_NF: NDArray[np.uint8]) -> NDArray[np.float64]:
    """F^3 times the variance of each look, exact."""
    return (_centred(looks_NF).astype(np.float64) ** 2).sum(axis=1)


def _correlation(looks_NF: NDArray[np.uint8], pairs_M2: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of each pair (M,), from exact sums: products of whole numbers, below 2^53 together."""
    one_MF, other_MF = (_centred(looks_NF[places]).astype(np.float64) for places in pairs_M2.T)
    squares = (one_MF**2).sum(axis=1) * (other_MF**2).sum(axis=1)
    return (one_MF * other_MF).sum(axis=1) / np.sqrt(squares)


def _codes(looks_NF: NDArray[np.uint8], places: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64 signs of each look in each band (N, B): of some fields' sum less that of the others.

    Exact in float32, in whatever order it is added, as no sum passes 2^24.
    """
    rng = np.random.Generator(np.random.PCG64(998))
    ways_FS = (rng.integers(0, 2, (SIDE**2, _BANDS * _SIGNS)) * 2 - 1).astype(np.float32)
    codes_NB = np.empty((len(places), _BANDS), dtype=np.uint64)
    for start in range(0, len(places), _AT_ONCE):
        some_NF = _centred(looks_NF[places[start : start + _AT_ONCE]]).astype(np.float32)
        for band in range(_BANDS):
            bits = some_NF @ ways_FS[:, band * _SIGNS : (band + 1) * _SIGNS] > 0
            packed = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
            codes_NB[start : start + _AT_ONCE, band] = packed
    return codes_NB


def _sharing(codes_N: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Pairs with the same code, each as one * N + other, one before other."""
    count = len(codes_N)
    order = np.argsort(codes_N, kind="stable")
    codes = codes_N[order]
    _, sizes = np.unique(codes, return_counts=True)
    crowded = np.repeat(sizes > _CROWDED, sizes)
    pairs = [np.empty(0, dtype=np.int64)]
    for step in range(1, min(int(sizes.max(initial=1)), _CROWDED)):
        same = codes[step:] == codes[:-step]
        if step > _NEXT:
            same &= ~crowded[step:]
        pairs.append(order[:-step][same] * count + order[step:][same])  # stable: one before other
    return np.concatenate(pairs)
