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
from stages.evaluation.classify import import_ahead
from stages.params import Params, SupervisedOverride, load_params
from stages.training.classifier import Examiner, Schooling, labelled_keys, open_split
from stages.training.fingerprint import fingerprint
from stages.training.outcomes import Trained, conclude
from stages.training.products import build_from, seeded
from stages.training.recipes import architecture_of, start_runtime
from stages.training.runtime import Runtime
from stages.training.side_by_side import side_by_side
from stages.training.steps import classify_step


def main() -> None:
    begun = time.perf_counter()
    fraction = parse_arguments().fraction
    params = load_params()
    runtime = start_runtime(params)
    examiner = Examiner.open(params, runtime)
    item = f"supervised/{fraction}"
    settings, at_once = grid(params, fraction), params.runtime.trainings_at_once
    finished = side_by_side(
        [
            partial(train, item, params, fraction, 0, setting, number)
            for number, setting in enumerate(settings)
        ],
        runtime,
        at_once,
        import_ahead,
    )
    tried = [
        {**settings_of(setting), "validation_accuracy": examiner.choose(trained.model)}
        for setting, trained in zip(settings, finished, strict=True)
    ]
    best = max(range(len(tried)), key=lambda number: tried[number]["validation_accuracy"])
    rest = side_by_side(
        [
            partial(train, item, params, fraction, seed, settings[best], best)
            for seed in range(1, params.finetune.seeds)
        ],
        runtime,
        at_once,
    )
    conclude(
        item,
        [finished[best], *rest],
        examiner,
        begun=begun,
        params=params.supervised.model_dump(),
        grid=tried,
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.supervised", description=__doc__)
    parser.add_argument("--fraction", required=True, help="one of finetune.label_fractions")
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
    seed: int,
    setting: Schooling,
    number: int,
    runtime: Runtime,
) -> Trained:
    """Train one network from scratch; `number` is the setting's place in the grid."""
    labelled = open_split("train", params, keys=labelled_keys(fraction, seed))
    setting = replace(setting, seed=seed)
    architecture = {
        **architecture_of(params),
        "from_layer": 0,
        "classes": len(labelled.class_names),
    }
    seeded(seed)
    classifier = runtime.place(build_from(architecture))
    state = setting.train(
        f"{item} setting {number} seed {seed}",
        classifier,
        labelled,
        classify_step(runtime, params.supervised.precision, head_decay=setting.head_decay),
        params,
        runtime,
        Path("runs") / item / f"setting-{number}-seed-{seed}",
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
    return Trained(
        classifier,
        architecture,
        state.curve,
        {
            "method": "supervised",
            "label_fraction": fraction,
            "labels": labelled.n_images,
            "seed": seed,
            "seconds": round(state.seconds, 2),
            "parameters": sum(parameter.numel() for parameter in classifier.parameters()),
            "chosen": settings_of(setting),
        },
        folder=f"seed-{seed}",
    )


if __name__ == "__main__":
    run_stage(main)
