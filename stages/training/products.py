"""What a training stage leaves: weights in safetensors, and a card that rebuilds the module.

A product folder holds `model.safetensors` and `card.json`, and needs no other file: no params,
no data. The next stage reads products only, and so can anybody who has this code:

    model, card = read_product(Path("finetuned/layer-1/seed-0"))

which checks the digest and does no more than this, for a folder of that name:

    import json
    from safetensors.torch import load_file
    from stages.training.products import build_from
    model = build_from(json.load(open(f"{folder}/card.json"))["architecture"])
    model.load_state_dict(load_file(f"{folder}/model.safetensors"))

The result is a plain torch.nn.Module (call `eval` on it) that takes images in [0, 1] and gives z or
logits. For programs without this code there is `python -m stages.export`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from stages.errors import UserError
from stages.models.simclr import (
    Classifier,
    SimCLR,
    build_classifier,
    build_encoder,
    build_simclr,
)
from stages.records import provenance, read_json, write_json
from stages.training.fingerprint import file_digest

WEIGHTS, CARD = "model.safetensors", "card.json"
CARD_FORMAT = 1


def write_product(
    folder: Path, module: nn.Module, architecture: Mapping[str, Any], **card: Any
) -> None:
    """Write weights and card; the card comes last, so a folder with a card is whole.

    Args:
        folder: made if it is not there.
        module: its whole state dict is kept.
        architecture: plain arguments that rebuild it; see `build_from`.
        card: params, metrics, data fingerprint: anything JSON can hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).unlink(missing_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    partial = folder / f"{WEIGHTS}.partial"
    save_file({name: tensor.cpu() for name, tensor in weights.items()}, partial)
    partial.replace(folder / WEIGHTS)
    write_json(
        folder / CARD,
        {
            "format": CARD_FORMAT,
            "architecture": dict(architecture),
            "weights_sha256": file_digest(folder / WEIGHTS),
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
            **card,
            "run": provenance(),
        },
    )


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a product.

    Raises:
        UserError: there is no whole product in the folder.
    """
    try:
        return read_json(folder / CARD)
    except (FileNotFoundError, ValueError):
        raise UserError(
            f"{folder} holds no whole product ({CARD} is missing or damaged).\n"
            "  Make it with: dvc repro, or fetch it with: dvc pull"
        ) from None


def read_product(folder: Path) -> tuple[SimCLR | Classifier, dict[str, Any]]:
    """The module of a product, rebuilt from its card alone, and the card.

    Raises:
        UserError: missing, or the weights are not the ones the card was written for.
    """
    card = read_card(folder)
    weights = folder / WEIGHTS
    if not weights.exists() or file_digest(weights) != card["weights_sha256"]:
        raise UserError(
            f"{weights} is missing or is not the file its card was written for.\n"
            f"  Delete {folder} and make it again with dvc repro, or fetch it with dvc pull."
        )
    module = build_from(card["architecture"])
    module.load_state_dict(load_file(weights))
    return module, card


def build_from(architecture: Mapping[str, Any]) -> SimCLR | Classifier:
    """An untrained module of the architecture a card describes.

    `architecture` is {"encoder": {...}, "channels": n, "head": {...}} for f and g, and has
    {"from_layer": k, "classes": K} more for a classifier.
    """
    encoder = build_encoder(**architecture["encoder"], in_channels=architecture["channels"])
    simclr = build_simclr(encoder, **architecture["head"])
    if "classes" not in architecture:
        return simclr
    return build_classifier(
        simclr, from_layer=architecture["from_layer"], n_classes=architecture["classes"]
    )


def seeded(seed: int) -> None:
    """Seed torch's generator, which draws nothing but initial weights here."""
    torch.manual_seed(seed)
