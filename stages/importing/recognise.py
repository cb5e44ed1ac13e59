"""Which network a checkpoint holds.

Every network of the official code is laid beside the file's names; the one that differs least is
meant, and what still differs is told. Nothing is guessed into place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from stages.errors import UserError
from stages.importing.naming import Naming
from stages.importing.network import Network, Shape, Structure, Unmeasurable, network_of
from stages.models.resnet import BLOCKS_PER_GROUP, Stem

DEPTHS = tuple(depth for depth in BLOCKS_PER_GROUP if depth != 10)  # 10 is ours
STEMS: tuple[Stem, ...] = ("imagenet", "small")
DEEPEST_HEAD = 4
LISTED = 20  # names in a message, of each kind


@dataclass(frozen=True)
class Reading:
    """A structure laid beside a file.

    Attributes:
        structure: of the network.
        naming: how the file's names were read.
        keys: the file's key of each of our names.
        missing: names that the network has and the file has not.
        extra: keys that no variable of the network has.
        other_shape: a line for each variable of another shape.
        network: the structure with its widths; None where they can't be told.
    """

    structure: Structure
    naming: Naming
    keys: dict[str, str]
    missing: list[str]
    extra: list[str]
    other_shape: list[str]
    network: Network | None

    @property
    def faults(self) -> int:
        return len(self.missing) + len(self.extra) + len(self.other_shape)


def recognise(
    namings: Sequence[Naming], shapes: Mapping[str, Shape], file: Path
) -> tuple[Network, Reading]:
    """The network whose variables are exactly the file's, and where they lie.

    Args:
        namings: ways to read the names, the likeliest first.
        shapes: of the file's variables by key, in the official layout.
        file: for messages.

    Raises:
        UserError: there is none; lists what is missing, extra and of another shape in the
            nearest one.
    """
    best = min((_nearest(naming, shapes) for naming in namings), key=lambda found: found.faults)
    if best.network is None or best.faults:
        raise UserError(_what_differs(best, file))
    return best.network, best


def _nearest(naming: Naming, shapes: Mapping[str, Shape]) -> Reading:
    names = naming.keys.keys()

    def distance(structure: Structure) -> int:
        return len(naming.expected(structure.variables).keys() ^ names)

    # Names first, the encoder before the heads; what names leave open, shapes decide.
    encoders = _least(
        [Structure(*parts) for parts in product(DEPTHS, (False, True), STEMS)], distance
    )
    heads = [(0, True), *product(range(1, DEEPEST_HEAD + 1), (True, False))]
    structures = _least(
        [
            replace(encoder, head_layers=layers, whole_head=whole, supervised=supervised)
            for encoder in encoders
            for (layers, whole), supervised in product(heads, (True, False))
        ],
        distance,
    )
    readings = [_read(structure, naming, shapes) for structure in structures]
    return min(readings, key=lambda reading: (reading.network is None, reading.faults))


def _least(structures: list[Structure], distance: Callable[[Structure], int]) -> list[Structure]:
    distances = [distance(structure) for structure in structures]
    nearest = min(distances)
    return [s for s, far in zip(structures, distances, strict=True) if far == nearest]


def _read(structure: Structure, naming: Naming, shapes: Mapping[str, Shape]) -> Reading:
    expected = naming.expected(structure.variables)
    keys = {
        variable.ours: naming.keys[name]
        for name, variable in expected.items()
        if name in naming.keys
    }
    found = {ours: shapes[key] for ours, key in keys.items()}
    network, other_shape = None, []
    try:
        network = network_of(structure, found)
    except Unmeasurable:
        pass
    else:
        wanted = network.official_shapes()
        other_shape = [
            f"{keys[ours]}: {list(shape)}, expected {list(wanted[ours])}"
            for ours, shape in found.items()
            if shape != wanted[ours]
        ]
    return Reading(
        structure,
        naming,
        keys,
        sorted(expected.keys() - naming.keys.keys()),
        sorted(naming.keys[name] for name in naming.keys.keys() - expected.keys()),
        other_shape,
        network,
    )


def _what_differs(reading: Reading, file: Path) -> str:
    parts = [
        f"{file} holds none of the official networks.\n"
        f"  The nearest is: {reading.structure} (read by {reading.naming.title})."
    ]
    for title, names in (
        ("missing", reading.missing),
        ("not part of it", reading.extra),
        ("of another shape", reading.other_shape),
    ):
        if names:
            parts.append(f"  {title} ({len(names)}):")
            parts += [f"    {name}" for name in names[:LISTED]]
            if len(names) > LISTED:
                parts.append(f"    and {len(names) - LISTED} more")
    if reading.network is None:
        parts.append("  Its widths can't be told: a variable that shows them is missing or odd.")
    parts.append(
        "  Fetch the checkpoint again if it is cut short; --ignore 'PATTERN' leaves variables out."
    )
    return "\n".join(parts)
