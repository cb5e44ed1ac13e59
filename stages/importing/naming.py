"""The ways in which the official code's files name variables, brought to one: name to key.

TF1 names (`base_model/conv2d/kernel`), paths of the TF2 object graph
(`model/resnet_model/.../kernel`), the TF2 variable names that a SavedModel's object graph keeps,
and, where it keeps none that fit, the numbers of its lists.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from stages.errors import UserError
from stages.importing.bundle import Bundle
from stages.importing.object_graph import full_names
from stages.importing.wire import Damaged
from stages.models.official_names import OfficialVariable, in_tracking_order

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
LARGEST_GRAPH_BYTES = 64 << 20
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
EMA = "ema_model/"
TRAINABLE = "trainable_variables_list/"

Expected = Callable[[Sequence[OfficialVariable]], dict[str, OfficialVariable]]


@dataclass(frozen=True)
class Naming:
    """One reading of a file's names.

    Attributes:
        title: for messages and the card.
        keys: the file's key of each variable, by name; what belongs to training is left out.
        expected: the variables of a network by the same names.
        of_ema: names whose values come from the EMA copy.
    """

    title: str
    keys: Mapping[str, str]
    expected: Expected
    of_ema: frozenset[str] = frozenset()


def readings(bundle: Bundle, *, ema: bool, ignore: Iterable[str] = ()) -> list[Naming]:
    """The namings that may be meant, the likeliest first.

    Args:
        bundle: the checkpoint.
        ema: take the EMA copy where there are two of a variable (TF1).
        ignore: patterns (* and ?) of keys to leave out.

    Raises:
        UserError: no naming of the official code is seen, or there is no EMA copy.
    """
    keys = [
        key
        for key in bundle.entries
        if not _belongs_to_training(key) and not any(fnmatchcase(key, p) for p in ignore)
    ]
    if any(key.startswith("base_model/") for key in keys):
        return [_tf1(keys, ema, bundle.prefix)]
    if ema:
        raise UserError(
            f"{bundle.prefix} has no EMA copy (no variable named {EMA}...).\n"
            "  Import it without --ema; only TF1's released checkpoints may hold one."
        )
    if any(key.startswith("model/resnet_model/") and "/variables/" not in key for key in keys):
        return [Naming("TF2 checkpoint keys", {key: key for key in keys}, _by_tf2_key)]
    if any(key.startswith(TRAINABLE) for key in keys):
        return [*_by_full_names(bundle, keys), _by_lists(keys)]
    shown = ", ".join(sorted(bundle.entries)[:5]) or "none"
    raise UserError(
        f"{bundle.prefix} holds no network of the official SimCLR code: neither base_model/... "
        "(TF1), model/resnet_model/... (TF2) nor trainable_variables_list/... (SavedModel).\n"
        f"  Its first variables: {shown}"
    )


def _belongs_to_training(key: str) -> bool:
    return (
        key == OBJECT_GRAPH
        or "/.OPTIMIZER_SLOT/" in key
        or key.endswith("/Momentum")
        or key.split("/")[0] in {"global_step", "optimizer", "save_counter"}
    )


def _tf1(keys: Sequence[str], ema: bool, prefix: Path) -> Naming:
    plain = {key: key for key in keys if not key.startswith(EMA)}
    if not ema:
        return Naming("TF1 names", plain, _by_tf1_name)
    copies = {key.removeprefix(EMA): key for key in keys if key.startswith(EMA)}
    if not copies:
        raise UserError(
            f"{prefix} has no EMA copy (no variable named {EMA}...).\n  Import it without --ema."
        )
    # The copy is of f and g; the supervised head has none.
    whole = {name: key for name, key in plain.items() if name.startswith("head_supervised/")}
    return Naming("TF1 names", {**whole, **copies}, _by_tf1_name, frozenset(copies))


def _by_tf1_name(variables: Sequence[OfficialVariable]) -> dict[str, OfficialVariable]:
    return {variable.tf1_name: variable for variable in variables}


def _by_tf2_key(variables: Sequence[OfficialVariable]) -> dict[str, OfficialVariable]:
    return {variable.tf2_key: variable for variable in variables}


def _by_full_names(bundle: Bundle, keys: Sequence[str]) -> list[Naming]:
    """The SavedModel's variable names, if its object graph has one for every variable."""
    if OBJECT_GRAPH not in bundle.entries:
        return []
    graph = bundle.read_text(OBJECT_GRAPH, LARGEST_GRAPH_BYTES)
    try:
        named = full_names(graph)
    except Damaged as fault:
        raise UserError(
            f"the object graph of {bundle.prefix} can't be read: {fault}.\n"
            "  Fetch or copy the checkpoint once more; nothing was written."
        ) from None
    names = [named.get(key, "").removesuffix(":0") for key in keys]
    renumbered = _renumbered(names)
    if "" in names or len(set(renumbered)) < len(keys):
        return []

    def expected(variables: Sequence[OfficialVariable]) -> dict[str, OfficialVariable]:
        official = _renumbered([variable.tf2_name for variable in variables])
        return dict(zip(official, variables, strict=True))

    return [Naming("TF2 variable names", dict(zip(renumbered, keys, strict=True)), expected)]


_NUMBERED = re.compile(
    r"(?P<kind>conv2d_fixed_padding|conv2d|batch_norm_relu|dense|sk__conv2d|"
    r"bottleneck_block|residual_block|(?:sync_)?batch_normalization)(?:_(?P<number>\d{1,9}))?"
)


def _renumbered(names: Sequence[str]) -> list[str]:
    """Names numbered from 0 within each kind of layer.

    A second model of one process goes on where the first one stopped, so numbers count only by
    their order. Synchronised batch norms and others are one kind.
    """
    split = [[_layer(part) for part in name.split("/")] for name in names]
    used: dict[str, set[int]] = defaultdict(set)
    for kind, number in (layer for parts in split for layer in parts):
        used[kind].add(number)
    rank = {
        (kind, number): place
        for kind, numbers in used.items()
        for place, number in enumerate(sorted(numbers))
    }
    return [
        "/".join(kind if number < 0 else f"{kind}_{rank[kind, number]}" for kind, number in parts)
        for parts in split
    ]


def _layer(part: str) -> tuple[str, int]:
    found = _NUMBERED.fullmatch(part)
    if found is None:
        return part, -1
    return found["kind"].removeprefix("sync_"), int(found["number"] or 0)


def _by_lists(keys: Sequence[str]) -> Naming:
    """Trainable variables by their place in one list, moving statistics by that in their part's."""
    names, moving = {}, defaultdict(list)
    for key in keys:
        name = key.removesuffix(VALUE)
        found = re.fullmatch(r"model/([^/]+)/variables/(\d{1,9})", name)
        if found:
            moving[found[1]].append((int(found[2]), key))
        else:
            names[name] = key
    for part, numbered in moving.items():
        for place, (_, key) in enumerate(sorted(numbered)):
            names[f"{part}/moving/{place}"] = key
    return Naming("SavedModel list order", names, _list_places)


def _list_places(variables: Sequence[OfficialVariable]) -> dict[str, OfficialVariable]:
    places, trainable, moving = {}, 0, defaultdict(int)
    for variable in in_tracking_order(list(variables)):
        if variable.trainable:
            places[f"{TRAINABLE}{trainable}"] = variable
            trainable += 1
        else:
            part = variable.path.split("/")[0]
            places[f"{part}/moving/{moving[part]}"] = variable
            moving[part] += 1
    return places
