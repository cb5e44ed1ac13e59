"""A product as other programs hold it: torchvision's or timm's ResNet, or f alone.

    python -m stages.export PRODUCT --as timm|torchvision|encoder --into FILE.safetensors

The file's metadata carries, under "recipe", the Python that builds the network the weights
belong in. It is printed as well, and it matters: stock networks load most of these weights too,
but pad the stem's max-pool at other sides and so compute something else.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from stages.errors import UserError, run_stage
from stages.exporting.foreign_names import foreign_state
from stages.exporting.foreign_recipes import build_recipe
from stages.models.simclr import Classifier, SimCLR
from stages.training.products import CARD, WEIGHTS, read_product

SUFFIX = ".safetensors"
IMPORT = "from safetensors.torch import load_file\n"
LOAD = "net.load_state_dict(load_file(path))  # path: of this file\nnet.eval()\n"


@dataclass(frozen=True)
class Export:
    """Weights for another program.

    Attributes:
        state: the state dict.
        recipe: Python that leaves `net` with these weights, given the file's `path`.
        gives: what `net` makes of images.
    """

    state: dict[str, Tensor]
    recipe: str
    gives: str


def main() -> None:
    arguments = parse_arguments()
    product, file = arguments.product, arguments.into
    check_arguments(product, file)
    network, card = read_product(product)
    exported = export(network, card["architecture"], arguments.kind)
    write_export(file, exported, card)
    megabytes = file.stat().st_size / 1e6
    print(
        f"{product} -> {file}: {len(exported.state)} tensors, {megabytes:.1f} MB. "
        f"It {exported.gives}.\n"
        f"Input: {input_of(card['architecture'])}.\n"
        'To load it (also in its metadata, under "recipe"):\n\n'
        f"{exported.recipe}"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages.export", description=__doc__.split("\n")[0]
    )
    parser.add_argument("product", type=Path, help=f"a folder with {WEIGHTS} and {CARD}")
    parser.add_argument(
        "--as",
        dest="kind",
        required=True,
        choices=["torchvision", "timm", "encoder"],
        help="encoder: f alone, under our own names",
    )
    parser.add_argument("--into", type=Path, required=True, help=f"a file to write, {SUFFIX}")
    return parser.parse_args()


def check_arguments(product: Path, file: Path) -> None:
    """Refuse what holds no product, and a file that could not be loaded or is a product's.

    Raises:
        UserError: see above.
    """
    if not (product / CARD).is_file():
        deeper = [str(card.parent) for card in sorted(product.glob(f"**/{CARD}"))]
        among = f"one of those in it: {', '.join(deeper[:4])}" if deeper else "a product's folder"
        raise UserError(f"{product} is no product: it has no {CARD}.\n  Name {among}.")
    if file.suffix != SUFFIX or file.is_dir():
        raise UserError(
            f"--into {file}: exports are safetensors files.\n  Name a file that ends in {SUFFIX}."
        )
    if file.name == WEIGHTS and (file.parent / CARD).exists():
        raise UserError(
            f"--into {file} is a product's own weights, which this would overwrite.\n"
            "  Name another file."
        )


def export(network: SimCLR | Classifier, architecture: Mapping[str, Any], kind: str) -> Export:
    """Weights and recipe in another form.

    Args:
        network: of a product.
        architecture: from its card.
        kind: torchvision, timm or encoder.

    Raises:
        UserError: that form has no such network; the message names one that has.
    """
    if kind == "encoder":
        state = {name: value.clone() for name, value in network.encoder.state_dict().items()}
        recipe = IMPORT + encoder_recipe(architecture) + LOAD
        return Export(state, recipe, "gives h; left out is all that sits on f")
    library = "timm" if kind == "timm" else "torchvision"
    recipe = IMPORT + build_recipe(network, library) + LOAD
    if isinstance(network, SimCLR):
        return Export(foreign_state(network), recipe, "gives h; left out is the projection head g")
    return Export(foreign_state(network), recipe, f"gives logits of {architecture['classes']}")


def encoder_recipe(architecture: Mapping[str, Any]) -> str:
    """Python that builds f with this project's code."""
    arguments = architecture["encoder"] | {"in_channels": architecture["channels"]}
    listed = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"from stages.models.simclr import build_encoder\nnet = build_encoder({listed})\n"


def input_of(architecture: Mapping[str, Any]) -> str:
    """What the network expects; other libraries' pipelines take out a mean and a deviation."""
    colours = {1: "one grey channel", 3: "RGB"}[architecture["channels"]]
    return f"{colours} in [0, 1], with no mean and deviation taken out"


def write_export(file: Path, exported: Export, card: Mapping[str, Any]) -> None:
    """Write the file whole or not at all.

    Raises:
        UserError: it can't be written there; the message has the system's reason.
    """
    metadata = {
        "format": "pt",  # what loaders of other libraries look for
        "recipe": exported.recipe,
        "input": input_of(card["architecture"]),
        "architecture": json.dumps(card["architecture"]),
        "product_sha256": card["weights_sha256"],
        "commit": card["run"]["commit"],
    }
    partial = file.with_name(f"{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(exported.state, partial, metadata=metadata)
        partial.replace(file)
    except (OSError, SafetensorError) as error:  # a full disk comes as either
        raise UserError(
            f"--into {file} can't be written: {error}.\n  Name a file in another folder, or make "
            "room there."
        ) from None


if __name__ == "__main__":
    run_stage(main)
