"""The honest baseline: the same network from scratch, on the same labels and nothing else.

Tuned as carefully as ours: every setting of the grid is trained on the first label subset and
the best on validation is kept for all seeds. The test split plays no part in that.
"""

import argparse
import time
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from stages.errors import run_stage
from stages.params import Params, load_params
from stages.sections.labels import SupervisedOverride
from stages.training.classifier import Examiner, Schooling, labelled_keys, open_split
from stages.training.fingerprint import fingerprint
from stages.training.outcomes import Trained, conclude, taught_by_labels
from stages.training.products import build_from, seeded
from stages.training.recipes import architecture_of, start_runtime
from stages.training.runtime import Runtime
from stages.training.seeds import SeedPair, seed_pairs
from stages.training.sizes import item_of, of_size, subsets_of
from stages.training.sole import sole_trainer
from stages.training.steps import classify_step
from stages.training.tuning import tune


def main() -> None:
    begun = time.perf_counter()
    arguments = parse_arguments()
    fraction, size = arguments.fraction, arguments.size
    params = of_size(load_params(), size)
    runtime = start_runtime(params)
    examiner = Examiner.open(params, runtime)
    item = item_of("supervised", fraction, size)
    with sole_trainer(Path("runs") / item, runtime):
        tuned = tune(
            partial(train, item, params, fraction),
            grid(params, fraction),
            settings_of,
            seed_pairs(subsets_of(params, size), params.finetune.initialisations),
            examiner,
            runtime,
            params.runtime.trainings_at_once,
        )
        conclude(
            item,
            tuned.trained,
            examiner,
            begun=begun,
            params=params.supervised.model_dump(),
            grid=tuned.tried,
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.supervised", description=__doc__)
    parser.add_argument("--fraction", required=True, help="one of finetune.label_fractions")
    parser.add_argument("--size", help="one of sizes.encoders (default: pretrain.encoder)")
    return parser.parse_args()


def grid(params: Params, fraction: str) -> list[Schooling]:
    """Every setting to try on a label fraction."""
    recipe = params.supervised
    override = recipe.overrides.get(fraction, SupervisedOverride())
    lrs = override.lr_grid or recipe.lr_grid
    durations = override.duration_grid or recipe.duration_grid
    return [
        Schooling(
            duration=duration,
            warmup=recipe.warmup,
            batch_size=recipe.batch_size,
            views=views,
            optimizer=recipe.optimizer.model_copy(update={"base_lr": lr}),
            seed=0,
        )
        for lr, duration, views in product(lrs, durations, recipe.views_grid)
    ]


def settings_of(setting: Schooling) -> dict[str, Any]:
    return {
        "base_lr": setting.optimizer.base_lr,
        "duration": setting.duration,
        "views": setting.views.model_dump(exclude_defaults=True),
    }


def train(
    item: str,
    params: Params,
    fraction: str,
    pair: SeedPair,
    setting: Schooling,
    number: int,
    runtime: Runtime,
) -> Trained:
    """Train one network from scratch; `number` is the setting's place in the grid."""
    labelled = open_split("train", params, keys=labelled_keys(fraction, pair.subset))
    setting = replace(setting, seed=pair.seed)
    architecture = {
        **architecture_of(params),
        "from_layer": 0,
        "classes": len(labelled.class_names),
    }
    seeded(pair.seed)
    classifier = runtime.place(build_from(architecture))
    state = setting.train(
        f"{item} setting {number} {pair.folder}",
        classifier,
        labelled,
        classify_step(runtime, params.supervised.precision, head_decay=setting.head_decay),
        params,
        runtime,
        Path("runs") / item / f"setting-{number}-{pair.folder}",
        fingerprint(
            schooling=str(setting),
            data=labelled.fingerprint,
            shuffle_shards=params.data.shuffle_shards,
            keys=labelled.keys,
            architecture=architecture,
            precision=params.supervised.precision,
            image_size=params.data.image_size,
        ),
    )
    return taught_by_labels(
        classifier,
        architecture,
        state,
        pair,
        method="supervised",
        fraction=fraction,
        labels=labelled.n_images,
        folder=pair.folder,
        chosen=settings_of(setting),
    )


if __name__ == "__main__":
    run_stage(main)
