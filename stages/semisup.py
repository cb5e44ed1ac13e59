"""Semi-supervised neighbours: the same net from scratch, on labels and its own pseudo-labels.

What else the unlabelled images could have been used for. Tuned as the supervised baseline is:
every setting of the grid on the first label subset, the best on validation for all.
"""

import argparse
import time
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from stages.errors import UserError, run_stage
from stages.params import Params, load_params
from stages.sections.kinds import duration_in_steps
from stages.training.classifier import Examiner, Schooling, labelled_keys, open_split
from stages.training.fingerprint import fingerprint
from stages.training.images import open_images
from stages.training.outcomes import Trained, conclude, taught_by_labels
from stages.training.products import build_from, seeded
from stages.training.recipes import architecture_of, start_runtime, view_recipe
from stages.training.runtime import Runtime
from stages.training.seeds import SeedPair, seed_pairs
from stages.training.semisup import beside, fixmatch_step, pseudo_label_step
from stages.training.sole import sole_trainer
from stages.training.tuning import tune


def main() -> None:
    begun = time.perf_counter()
    arguments = parse_arguments()
    params = load_params()
    if arguments.method not in params.semisup.methods:
        raise UserError(
            f"{arguments.method} is not asked for.\n"
            f"  semisup.methods in params.yaml names: {', '.join(params.semisup.methods) or 'none'}"
        )
    runtime = start_runtime(params)
    examiner = Examiner.open(params, runtime)
    item = f"semisup/{arguments.method}/{arguments.fraction}"
    with sole_trainer(Path("runs") / item, runtime):
        tuned = tune(
            partial(train, item, params, arguments.method, arguments.fraction),
            grid(params),
            settings_of,
            seed_pairs(params.semisup.seeds or params.finetune.seeds, 1),
            examiner,
            runtime,
            params.runtime.trainings_at_once,
        )
        conclude(
            item,
            tuned.trained,
            examiner,
            begun=begun,
            params=params.semisup.model_dump(),
            grid=tuned.tried,
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.semisup", description=__doc__)
    parser.add_argument("--method", required=True, help="one of semisup.methods")
    parser.add_argument("--fraction", required=True, help="one of finetune.label_fractions")
    return parser.parse_args()


def grid(params: Params) -> list[Schooling]:
    """Every setting to try."""
    recipe = params.semisup
    return [
        Schooling(
            duration=duration,
            warmup=recipe.warmup,
            batch_size=recipe.batch_size,
            views=recipe.weak_views,
            optimizer=recipe.optimizer.model_copy(update={"base_lr": lr}),
            seed=0,
        )
        for lr, duration in product(recipe.lr_grid, recipe.duration_grid)
    ]


def settings_of(setting: Schooling) -> dict[str, Any]:
    return {"base_lr": setting.optimizer.base_lr, "duration": setting.duration}


def train(
    item: str,
    params: Params,
    method: str,
    fraction: str,
    pair: SeedPair,
    setting: Schooling,
    number: int,
    runtime: Runtime,
) -> Trained:
    """Train one network from scratch; `number` is the setting's place in the grid."""
    recipe, size = params.semisup, params.data.image_size
    labelled = open_split("train", params, keys=labelled_keys(fraction, pair.subset))
    unlabelled = open_images(params, "train", with_labels=False)
    setting = replace(setting, seed=pair.seed)
    architecture = {
        **architecture_of(params),
        "from_layer": 0,
        "classes": len(labelled.class_names),
    }
    seeded(pair.seed)
    classifier = runtime.place(build_from(architecture))
    batch_size = min(setting.batch_size, labelled.n_images)
    if method == "fixmatch":
        step = fixmatch_step(runtime, recipe.threshold, recipe.unlabelled_weight, recipe.precision)
        strong = view_recipe(recipe.strong_views, size)
    else:
        total = duration_in_steps(setting.duration, labelled.n_images, batch_size)
        step = pseudo_label_step(
            runtime, recipe.unlabelled_weight, recipe.ramp, total, recipe.precision
        )
        strong = None
    weak = view_recipe(recipe.weak_views, size)
    state = setting.train(
        f"{item} setting {number} {pair.folder}",
        classifier,
        labelled,
        step,
        params,
        runtime,
        Path("runs") / item / f"setting-{number}-{pair.folder}",
        fingerprint(
            method=method,
            schooling=str(setting),
            recipe=recipe.model_dump(),
            data=labelled.fingerprint,
            shuffle_shards=params.data.shuffle_shards,
            keys=labelled.keys,
            architecture=architecture,
            image_size=size,
        ),
        beside(unlabelled, recipe.unlabelled_ratio, weak, strong, pair.seed),
    )
    return taught_by_labels(
        classifier,
        architecture,
        state,
        pair,
        method=method,
        fraction=fraction,
        labels=labelled.n_images,
        folder=pair.folder,
        images=unlabelled.n_images,
        chosen=settings_of(setting),
    )


if __name__ == "__main__":
    run_stage(main)
