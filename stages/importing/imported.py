"""A checkpoint of the official code as one of our modules.

A file holds f, all of g, and a linear classifier whatever it was trained for; which parts are
meant follows from its kind. `pretrained` is f and g; every other kind is a classifier: `linear`,
`supervised` and `distilled` on h unless said otherwise, `finetuned` on layer 1 of g (SimCLRv2's
choice for 1% and 10% of the labels; the released ones for 100% are on h).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from stages.errors import UserError
from stages.importing.bundle import Bundle
from stages.importing.locate import find_prefix
from stages.importing.naming import readings
from stages.importing.network import Network
from stages.importing.recognise import Reading, recognise
from stages.models.simclr import Classifier, SimCLR
from stages.training.fingerprint import file_digest
from stages.training.products import build_from

Kind = Literal["pretrained", "linear", "finetuned", "supervised", "distilled"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Folders in which the official weights are released, and what they hold.
RELEASED: dict[str, tuple[Kind, int | None]] = {
    "pretrained": ("pretrained", None),
    "finetuned_1pct": ("finetuned", 1),
    "finetuned_10pct": ("finetuned", 1),
    "finetuned_100pct": ("finetuned", 0),
    "supervised": ("supervised", 0),
    "distill_1pct": ("distilled", None),
    "distill_10pct": ("distilled", None),
}
# How the official networks see images; the released ones were trained with TF1's resize.
INPUT = {
    "channels": "RGB",
    "range": [0.0, 1.0],
    "mean_and_deviation_taken_out": False,
    "evaluation_convention": "official",
    "evaluation_resize": "bicubic_tf1",
}


@dataclass(frozen=True)
class Imported:
    """What a checkpoint has become.

    Attributes:
        module: with the file's weights.
        architecture: rebuilds it; see `products.build_from`.
        card: where it comes from, for the product's card.
        told: what was found, taken for granted and left out, in sentences.
    """

    module: SimCLR | Classifier
    architecture: dict[str, Any]
    card: dict[str, Any]
    told: list[str]


def import_checkpoint(
    path: Path,
    *,
    kind: Kind | None = None,
    from_layer: int | None = None,
    ema: bool = False,
    ignore: Iterable[str] = (),
) -> Imported:
    """Read a TF1 or TF2 checkpoint, or a SavedModel's variables.

    Args:
        path: see `find_prefix`.
        kind: None: by the folder's name if it is one of the released, else by what is there.
        from_layer: of g, on which the classifier sits; None: by the kind.
        ema: take the EMA copy of f and g.
        ignore: patterns of variables to leave out of the comparison.

    Raises:
        UserError: no such checkpoint, damaged, or not a network of the official code.
    """
    prefix = find_prefix(path)
    bundle = Bundle.open(prefix)
    namings = readings(bundle, ema=ema, ignore=ignore)
    shapes = {key: entry.shape for key, entry in bundle.entries.items()}
    network, reading = recognise(namings, shapes, prefix)
    told = [f"{prefix}: {network.structure}, width {network.encoder['width_multiplier']:g}x"]
    chosen, layer = _choose(network, kind, from_layer, prefix, told)
    architecture: dict[str, Any] = {
        "encoder": network.encoder,
        "channels": network.channels,
        "head": network.head,
    }
    if layer is not None:
        architecture |= {"from_layer": layer, "classes": network.classes}
    with torch.device("meta"):
        module = build_from(architecture)
    _fill(module, reading, bundle)
    left_out = sorted(
        {_part(ours) for ours in reading.keys} - {_part(name) for name in module.state_dict()}
    )
    if left_out:
        told.append(f"left out: {', '.join(left_out)}")
    card = {
        "kind": chosen,
        "source": {
            "files": {
                file.name: {"bytes": file.stat().st_size, "sha256": file_digest(file)}
                for file in bundle.files
            },
            "names": reading.naming.title,
            "weights": "EMA copy of f and g" if ema else "as trained",
        },
        "input": INPUT,
        "notes": told[1:],
    }
    return Imported(module, architecture, card, told)


def _part(ours: str) -> str:
    """What a weight belongs to, in words."""
    part, number = ours.split(".")[:2]
    if part == "head":
        return f"layer {int(number) + 1} of g"
    return "f" if part == "encoder" else "the linear classifier"


def _choose(
    network: Network, kind: Kind | None, from_layer: int | None, prefix: Path, told: list[str]
) -> tuple[Kind, int | None]:
    """The kind, and the layer of g for the classifier (None for f and g themselves)."""
    structure = network.structure
    usual: int | None = None
    has_all_of_g = structure.head_layers > 0 and structure.whole_head
    if kind is None and from_layer is not None:
        kind = "finetuned"
    if kind is None:
        folder = next((part for part in reversed(prefix.parts[:-1]) if part in RELEASED), None)
        if folder is not None:
            kind, usual = RELEASED[folder]
            told.append(f"kind {kind}, by the name of the folder {folder}")
        elif has_all_of_g:
            kind = "pretrained"
            told.append("kind pretrained, as all of g is there; --kind says otherwise")
        else:
            kind = "finetuned" if structure.head_layers else "supervised"
            told.append(f"kind {kind}, as g is not there in whole; --kind says otherwise")
    if kind == "pretrained":
        if from_layer is not None:
            raise UserError(
                f"--from-layer {from_layer} is of a classifier; kind pretrained is f and g alone.\n"
                "  Leave it out, or choose --kind finetuned."
            )
        if not has_all_of_g:
            raise UserError(
                f"{prefix} holds no whole projection head (found: {structure}), so it can't be "
                "imported as kind pretrained.\n"
                "  SimCLR's own released checkpoints have none: import their f with the linear "
                "classifier on it, --kind linear."
            )
        return kind, None
    if not structure.supervised:
        raise UserError(
            f"{prefix} holds no linear classifier (found: {structure}), so it can't be imported "
            f"as kind {kind}.\n  Import f and g: --kind pretrained."
        )
    return kind, _layer(network, kind, from_layer, usual, prefix, told)


def _layer(
    network: Network,
    kind: Kind,
    from_layer: int | None,
    usual: int | None,
    prefix: Path,
    told: list[str],
) -> int:
    fitting = [
        layer
        for layer, width in enumerate(network.head_widths)
        if width == network.classifier_width
    ]
    layers = ", ".join(map(str, fitting))
    if from_layer is not None:
        if from_layer not in fitting:
            raise UserError(
                f"the classifier in {prefix} takes {network.classifier_width} features, and "
                f"layer {from_layer} of g does not give them.\n  --from-layer can be: {layers}"
            )
        return from_layer
    if usual is None:
        usual = 1 if kind == "finetuned" else 0
    layer = usual if usual in fitting else fitting[0]
    if len(fitting) > 1:
        told.append(
            f"the classifier is taken to sit on layer {layer} of g, the usual one of kind {kind}; "
            f"by its width it fits {layers}: --from-layer says which"
        )
    return layer


def _fill(module: nn.Module, reading: Reading, bundle: Bundle) -> None:
    """Put the file's weights into a module that has none yet, one tensor at a time."""
    official = {variable.ours: variable for variable in reading.structure.variables}
    state = {}
    for ours in module.state_dict():
        key = reading.keys[ours]
        value = torch.from_numpy(bundle.read(key))
        if not bool(value.isfinite().all()):
            raise UserError(
                f"{key} in {bundle.prefix} holds values that are not finite.\n"
                "  These weights can't be used; take an earlier checkpoint."
            )
        state[ours] = official[ours].to_ours(value)
    module.load_state_dict(state, assign=True)
    module.requires_grad_()
