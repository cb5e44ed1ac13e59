"""A network that takes the place of pretraining: `pretrain.init_from`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.errors import UserError
from stages.importing.imported import import_checkpoint
from stages.models.simclr import Classifier, SimCLR, build_simclr
from stages.training.products import CARD, read_product, seeded

COLOURS = {1: "grey", 3: "RGB"}
KEPT_OF_A_CARD = ("stage", "kind", "source", "input", "weights_sha256", "metrics")


@dataclass(frozen=True)
class Start:
    """What stands where pretraining would.

    Attributes:
        model: f and g.
        origin: where they come from, for the card.
        fresh_head: g is newly drawn, as the network had none.
    """

    model: SimCLR
    origin: dict[str, Any]
    fresh_head: bool


def network_to_start_from(folder: Path, architecture: Mapping[str, Any], seed: int) -> Start:
    """Read a product, or a checkpoint of the official code, as f and g.

    A classifier on h, such as the first paper's released networks, gives its f; g then is drawn
    anew, and nothing but layer 0 of it is worth fine-tuning from.

    Args:
        folder: of the product or the checkpoint.
        architecture: that params.yaml asks for.
        seed: of a g drawn anew.

    Raises:
        UserError: nothing usable is there, or it is another network; every difference is listed.
    """
    try:
        if (folder / CARD).exists():
            module, card = read_product(folder)
            found = card["architecture"]
            origin = {name: card[name] for name in KEPT_OF_A_CARD if name in card}
        else:
            imported = import_checkpoint(folder)
            module, found, origin = imported.module, imported.architecture, imported.card
    except UserError as error:
        raise UserError(f"pretrain.init_from: {error}") from None
    if isinstance(module, Classifier) and len(module.head) > 0:
        raise UserError(
            f"pretrain.init_from: {folder} holds a classifier on layer {len(module.head)} of g, "
            "not all of g.\n  Name the pretrained network that it was fine-tuned from."
        )
    fresh_head = isinstance(module, Classifier)
    _check_same(found, architecture, folder, with_head=not fresh_head)
    if isinstance(module, SimCLR):
        model = module
    else:
        seeded(seed)
        model = build_simclr(module.encoder, **architecture["head"])
    return Start(model, {"init_from": folder.as_posix(), **origin}, fresh_head)


def _check_same(
    found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path, *, with_head: bool
) -> None:
    parts = ["encoder", *(["head"] if with_head else [])]
    there = {f"pretrain.{part}.{k}": v for part in parts for k, v in found[part].items()}
    here = {f"pretrain.{part}.{k}": v for part in parts for k, v in wanted[part].items()}
    lines = [
        f"  {name}: {there.get(name)} there, {here.get(name)} in params.yaml"
        for name in here | there
        if there.get(name) != here.get(name)
    ]
    if found["channels"] != wanted["channels"]:
        lines.append(
            f"  data.channels: {_channels(found['channels'])} there, "
            f"{_channels(wanted['channels'])} in params.yaml"
        )
    if lines:
        raise UserError(
            f"pretrain.init_from: {folder} holds another network than params.yaml asks for:\n"
            + "\n".join(lines)
            + "\n  Write its values into params.yaml, or name another folder."
        )


def _channels(number: int) -> str:
    return f"{number} ({COLOURS[number]})" if number in COLOURS else str(number)
