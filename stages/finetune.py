"""A classifier on a layer of g, the whole network trained on a label fraction (section 2)."""

import argparse
import time
from functools import partial
from pathlib import Path

from stages.errors import UserError, run_stage
from stages.evaluation.classify import import_ahead
from stages.models.simclr import SimCLR, build_classifier
from stages.params import Params, load_params
from stages.sections.labels import FinetuneOverride
from stages.training.classifier import Examiner, Schooling, labelled_keys, open_split
from stages.training.fingerprint import fingerprint
from stages.training.outcomes import Trained, conclude, taught_by_labels
from stages.training.products import read_card, read_product, seeded
from stages.training.progress_file import expect_trainings
from stages.training.recipes import start_runtime
from stages.training.runtime import Runtime
from stages.training.seeds import SeedPair, seed_pairs
from stages.training.side_by_side import side_by_side
from stages.training.sizes import item_of, layers_of, of_size, pretrained_of, subsets_of
from stages.training.sole import sole_trainer
from stages.training.steps import classify_step


def main() -> None:
    begun = time.perf_counter()
    arguments = parse_arguments()
    fraction, size = arguments.fraction, arguments.size
    params = of_size(load_params(), size)
    runtime = start_runtime(params)
    examiner = Examiner.open(params, runtime)
    item = item_of("finetune", fraction, size)
    pairs = seed_pairs(subsets_of(params, size), params.finetune.initialisations)
    tasks = [
        partial(finetune, item, params, fraction, pretrained_of(size), layer, pair)
        for layer in layers_of(params, fraction, size)
        for pair in pairs
    ]
    expect_trainings(len(tasks))
    with sole_trainer(Path("runs") / item, runtime):
        trained = side_by_side(tasks, runtime, params.runtime.trainings_at_once, import_ahead)
        conclude(item, trained, examiner, begun=begun, params=params.finetune.model_dump())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.finetune", description=__doc__)
    parser.add_argument("--fraction", required=True, help="one of finetune.label_fractions")
    parser.add_argument("--size", help="one of sizes.encoders (default: pretrain.encoder)")
    return parser.parse_args()


def finetune(
    item: str,
    params: Params,
    fraction: str,
    product: Path,
    layer: int,
    pair: SeedPair,
    runtime: Runtime,
) -> Trained:
    """Train one classifier from the pretrained f and the first `layer` layers of g."""
    labelled = open_split("train", params, keys=labelled_keys(fraction, pair.subset))
    pretrained, card = read_product(product)
    assert isinstance(pretrained, SimCLR)
    origin = card.get("origin", {})
    if layer > 0 and origin.get("fresh_head"):
        raise UserError(
            f"finetune.layers names layer {layer} of g, and the network of pretrain.init_from "
            f"({origin['init_from']}) came without g: its layers are untrained.\n"
            "  Write finetune.layers: [0] and distill.teacher_layer: 0."
        )
    seeded(pair.seed)
    n_classes = len(labelled.class_names)
    classifier = runtime.place(
        build_classifier(
            pretrained,
            from_layer=layer,
            n_classes=n_classes,
            zero_init=params.finetune.zero_init,
        )
    )
    schooling = schooling_for(params, fraction, pair.seed)
    state = schooling.train(
        f"{item} layer {layer} {pair.folder}",
        classifier,
        labelled,
        classify_step(runtime, params.finetune.precision, head_decay=schooling.head_decay),
        params,
        runtime,
        Path("runs") / item / f"layer-{layer}-{pair.folder}",
        fingerprint(
            schooling=str(schooling),
            data=labelled.fingerprint,
            shuffle_shards=params.data.shuffle_shards,
            keys=labelled.keys,
            layer=layer,
            zero_init=params.finetune.zero_init,
            precision=params.finetune.precision,
            pretrained=read_card(product)["weights_sha256"],
            image_size=params.data.image_size,
        ),
    )
    return taught_by_labels(
        classifier,
        {**card["architecture"], "from_layer": layer, "classes": n_classes},
        state,
        pair,
        method=f"finetune_layer_{layer}",
        fraction=fraction,
        labels=labelled.n_images,
        folder=f"layer-{layer}/{pair.folder}",
    )


def schooling_for(params: Params, fraction: str, seed: int) -> Schooling:
    """The recipe for a label fraction, its overrides applied."""
    recipe = params.finetune
    override = recipe.overrides.get(fraction, FinetuneOverride())
    optimizer = recipe.optimizer
    if override.base_lr is not None:
        optimizer = optimizer.model_copy(update={"base_lr": override.base_lr})
    return Schooling(
        duration=override.duration or recipe.duration,
        warmup=recipe.warmup,
        batch_size=override.batch_size or recipe.batch_size,
        views=recipe.views,
        optimizer=optimizer,
        seed=seed,
    )


if __name__ == "__main__":
    run_stage(main)
