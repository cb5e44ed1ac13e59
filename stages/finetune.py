"""A classifier on a layer of g, the whole network trained on a label fraction (section 2)."""

import argparse
import time
from functools import partial
from pathlib import Path

from stages.errors import UserError, run_stage
from stages.evaluation.classify import import_ahead
from stages.models.simclr import SimCLR, build_classifier
from stages.params import FinetuneOverride, Params, load_params
from stages.training.classifier import Examiner, Schooling, labelled_keys, open_split
from stages.training.fingerprint import fingerprint
from stages.training.outcomes import Trained, conclude
from stages.training.products import read_card, read_product, seeded
from stages.training.recipes import start_runtime
from stages.training.runtime import Runtime
from stages.training.side_by_side import side_by_side
from stages.training.steps import classify_step

PRETRAINED = Path("artifacts/pretrain")


def main() -> None:
    begun = time.perf_counter()
    fraction = parse_arguments().fraction
    params = load_params()
    runtime = start_runtime(params)
    examiner = Examiner.open(params, runtime)
    item = f"finetune/{fraction}"
    tasks = [
        partial(finetune, item, params, fraction, layer, seed)
        for layer in params.finetune.layers_at(fraction)
        for seed in range(params.finetune.seeds)
    ]
    trained = side_by_side(tasks, runtime, params.runtime.trainings_at_once, import_ahead)
    conclude(item, trained, examiner, begun=begun, params=params.finetune.model_dump())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.finetune", description=__doc__)
    parser.add_argument("--fraction", required=True, help="one of finetune.label_fractions")
    return parser.parse_args()


def finetune(
    item: str, params: Params, fraction: str, layer: int, seed: int, runtime: Runtime
) -> Trained:
    """Train one classifier from the pretrained f and the first `layer` layers of g."""
    labelled = open_split("train", params, keys=labelled_keys(fraction, seed))
    pretrained, card = read_product(PRETRAINED)
    assert isinstance(pretrained, SimCLR)
    origin = card.get("origin", {})
    if layer > 0 and origin.get("fresh_head"):
        raise UserError(
            f"finetune.layers names layer {layer} of g, and the network of pretrain.init_from "
            f"({origin['init_from']}) came without g: its layers are untrained.\n"
            "  Write finetune.layers: [0] and distill.teacher_layer: 0."
        )
    seeded(seed)
    n_classes = len(labelled.class_names)
    classifier = runtime.place(
        build_classifier(
            pretrained,
            from_layer=layer,
            n_classes=n_classes,
            zero_init=params.finetune.zero_init,
        )
    )
    schooling = schooling_for(params, fraction, seed)
    state = schooling.train(
        f"{item} layer {layer} seed {seed}",
        classifier,
        labelled,
        classify_step(runtime, params.finetune.precision, head_decay=schooling.head_decay),
        params,
        runtime,
        Path("runs") / item / f"layer-{layer}-seed-{seed}",
        fingerprint(
            schooling=str(schooling),
            data=labelled.fingerprint,
            shuffle_shards=params.data.shuffle_shards,
            keys=labelled.keys,
            layer=layer,
            zero_init=params.finetune.zero_init,
            precision=params.finetune.precision,
            pretrained=read_card(PRETRAINED)["weights_sha256"],
            image_size=params.data.image_size,
        ),
    )
    return Trained(
        classifier,
        {**card["architecture"], "from_layer": layer, "classes": n_classes},
        state.curve,
        {
            "method": f"finetune_layer_{layer}",
            "label_fraction": fraction,
            "labels": labelled.n_images,
            "seed": seed,
            "seconds": round(state.seconds, 2),
            "parameters": sum(parameter.numel() for parameter in classifier.parameters()),
        },
        folder=f"layer-{layer}/seed-{seed}",
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
