"""Take over weights of the official SimCLR and SimCLRv2 code, without TensorFlow.

    python -m stages.import_weights CHECKPOINT --into FOLDER
    python -m stages.import_weights verify FOLDER OUTPUTS.npz

CHECKPOINT is a TF1 or TF2 checkpoint or a SavedModel: its folder, its .index file or the name its
files begin with. FOLDER becomes a product like any stage's. A pretrained one can take the place
of pretraining: pretrain.init_from in params.yaml. `verify` compares a product with stored outputs
of the official network.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from stages.errors import UserError, run_stage
from stages.importing.imported import KINDS, import_checkpoint
from stages.importing.verify import TOLERANCE, compare_with_file
from stages.training.products import read_product, write_product

LEFT_OUT_SHOWN = 5


def main(words: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    if words[:1] == ["verify"]:
        verify(words[1:])
    else:
        take_over(words)


def take_over(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages.import_weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="folder, .index file, prefix, or SavedModel")
    parser.add_argument("--into", type=Path, required=True, help="the product's folder")
    parser.add_argument(
        "--kind",
        choices=KINDS,
        help="pretrained: f and g; the others: a classifier (default: by folder name and contents)",
    )
    parser.add_argument(
        "--from-layer",
        type=int,
        help="of g, on which the classifier sits; 0 is h (default: 1 for finetuned, else 0)",
    )
    parser.add_argument("--ema", action="store_true", help="the EMA copy of f and g (TF1)")
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="PATTERN", help="variables to leave out"
    )
    wanted = parser.parse_args(words)
    imported = import_checkpoint(
        wanted.checkpoint,
        kind=wanted.kind,
        from_layer=wanted.from_layer,
        ema=wanted.ema,
        ignore=wanted.ignore,
    )
    write_product(
        wanted.into,
        imported.module,
        imported.architecture,
        stage="import_weights",
        **imported.card,
        finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    _say("\n".join(imported.told))
    _say(f"written: {wanted.into} ({imported.card['kind']})")


def verify(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages.import_weights verify",
        description="Compare a product with stored outputs of the official network.",
    )
    parser.add_argument("product", type=Path)
    parser.add_argument("outputs", type=Path, help=".npz with an input and named outputs")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        help="of the largest value (default %(default)g)",
    )
    wanted = parser.parse_args(words)
    module, _ = read_product(wanted.product)
    comparison = compare_with_file(module, wanted.outputs)
    for name, difference in comparison.differences.items():
        _say(f"{name}: {difference:.2g}")
    if comparison.left_out:
        shown = ", ".join(comparison.left_out[:LEFT_OUT_SHOWN])
        more = len(comparison.left_out) - LEFT_OUT_SHOWN
        _say(f"not compared: {shown}{f' and {more} more' if more > 0 else ''}")
    beyond = comparison.beyond(wanted.tolerance)
    if beyond:
        raise UserError(
            f"{wanted.product} differs from {wanted.outputs} by more than {wanted.tolerance:g} of "
            f"the largest value in: {', '.join(beyond)}.\n"
            "  These are outputs of other weights, of another input, or of a net in training mode."
        )
    _say(f"equal to within {wanted.tolerance:g} of the largest value")


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    run_stage(main)
