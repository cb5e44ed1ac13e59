"""Frozen features against a label fraction: a linear classifier and nearest neighbours on h.

The same is asked of a randomly initialised encoder, so that what the architecture alone gives
is not put down to learning.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.data.store import ImageStore
from stages.errors import run_stage
from stages.evaluation.classify import accuracy, import_ahead, scores
from stages.evaluation.features import frozen, outputs, state_digest
from stages.evaluation.knn import knn_logits
from stages.evaluation.linear_probe import regularisation_path
from stages.models.heads import LinearClassifier
from stages.models.linear_evaluation import LinearEvaluation
from stages.models.resnet import ResNet
from stages.models.simclr import SimCLR
from stages.params import Params, load_params
from stages.records import write_results
from stages.sections.labels import ProbeParams
from stages.training.classifier import Schooling, labelled_keys, open_split
from stages.training.fingerprint import fingerprint
from stages.training.products import build_from, read_product, seeded
from stages.training.recipes import evaluation_recipe, start_runtime
from stages.training.runtime import Runtime
from stages.training.steps import classify_step

PRETRAINED = Path("artifacts/pretrain")


def main() -> None:
    begun = time.perf_counter()
    fraction = parse_arguments().fraction
    params = load_params()
    import_ahead()
    runtime = start_runtime(params)
    pretrained, card = read_product(PRETRAINED)
    assert isinstance(pretrained, SimCLR)
    validation, test = open_split("validation", params), open_split("test", params)
    pretrained_sets = [
        with_features(runtime.place(pretrained.encoder), store, params, runtime)
        for store in (validation, test)
    ]
    rows: list[dict[str, Any]] = []
    for seed in range(params.finetune.seeds):
        labelled = open_split("train", params, keys=labelled_keys(fraction, seed))
        seeded(seed)
        untrained = build_from(card["architecture"])
        assert isinstance(untrained, SimCLR)
        untrained_sets = [
            with_features(runtime.place(untrained.encoder), store, params, runtime)
            for store in (validation, test)
        ]
        common = {"label_fraction": fraction, "labels": labelled.n_images, "seed": seed}
        for encoder, examined_on, linear, knn in (
            (untrained.encoder, untrained_sets, "random_linear", "random_knn"),
            (pretrained.encoder, pretrained_sets, "linear_probe", "knn"),
        ):
            sets = [with_features(encoder, labelled, params, runtime), *examined_on]
            begun_linear = time.perf_counter()
            if params.probe.method == "sgd":
                name = f"probe/{fraction}/{linear}-seed-{seed}"
                classifier = learn_by_sgd(name, encoder, labelled, params, seed, runtime)
                scored = linear_scores(classifier, *sets[1:], params.probe)
            else:
                scored = linear_probe(*sets, params.probe, runtime.device)
            seconds = round(time.perf_counter() - begun_linear, 2)
            rows += [
                {"method": linear, **common, **scored, "seconds": seconds},
                {"method": knn, **common, **nearest_neighbours(*sets, params.probe), "seconds": 0},
            ]
    write_results(
        f"probe/{fraction}",
        rows,
        seconds=time.perf_counter() - begun,
        params=params.probe.model_dump(),
        data_fingerprint=test.fingerprint,
    )
    shutil.rmtree(f"runs/probe/{fraction}", ignore_errors=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.probe", description=__doc__)
    parser.add_argument("--fraction", required=True, help="one of finetune.label_fractions")
    return parser.parse_args()


Labelled = tuple[Tensor, Tensor, int]  # features (N, D), classes (N,), number of classes


def with_features(
    encoder: nn.Module, store: ImageStore, params: Params, runtime: Runtime
) -> Labelled:
    """Features and classes of a store, from an encoder that must not change on the way."""
    with frozen(encoder):
        features_ND = outputs(encoder, store, evaluation_recipe(params), runtime.device)
    return features_ND, torch.from_numpy(store.classes), len(store.class_names)


def linear_probe(
    labelled: Labelled,
    validation: Labelled,
    test: Labelled,
    recipe: ProbeParams,
    device: torch.device,
) -> dict[str, Any]:
    """The regularisation that is best on validation, scored on test.

    It is not fitted again with the validation labels: they are more than the fraction allows.
    """
    features_ND, classes_N, n_classes = labelled
    path = regularisation_path(
        features_ND, classes_N, n_classes, recipe.l2_grid, recipe.max_iterations, device=device
    )
    chosen = max(path, key=lambda probe: accuracy(probe(validation[0]), validation[1]))
    return examined(
        chosen(validation[0]),
        validation[1],
        chosen(test[0]),
        test[1],
        {"l2": chosen.l2, "converged": chosen.converged},
    )


def learn_by_sgd(
    name: str, encoder: ResNet, labelled: ImageStore, params: Params, seed: int, runtime: Runtime
) -> LinearClassifier:
    """A linear classifier on random crops, as the papers train theirs (SimCLR, B.6)."""
    recipe = params.probe.sgd
    assert recipe is not None
    schooling = Schooling(
        recipe.duration, recipe.warmup, recipe.batch_size, recipe.views, recipe.optimizer, seed
    )
    model = runtime.place(LinearEvaluation(encoder, len(labelled.class_names)))
    with frozen(encoder):
        schooling.train(
            name,
            model,
            labelled,
            classify_step(runtime, head_decay=schooling.head_decay),
            params,
            runtime,
            Path("runs") / name,
            fingerprint(
                schooling=str(schooling),
                data=labelled.fingerprint,
                shuffle_shards=params.data.shuffle_shards,
                keys=labelled.keys,
                encoder=state_digest(encoder),
                image_size=params.data.image_size,
            ),
        )
    return model.linear.cpu()


def linear_scores(
    classifier: LinearClassifier, validation: Labelled, test: Labelled, recipe: ProbeParams
) -> dict[str, Any]:
    """A finished classifier on features; nothing was left to choose on validation."""
    assert recipe.sgd is not None
    with torch.inference_mode():
        on_validation, on_test = classifier(validation[0]), classifier(test[0])
    settings = {"base_lr": recipe.sgd.optimizer.base_lr, "duration": recipe.sgd.duration}
    return examined(on_validation, validation[1], on_test, test[1], settings)


def nearest_neighbours(
    labelled: Labelled, validation: Labelled, test: Labelled, recipe: ProbeParams
) -> dict[str, Any]:
    """The votes of the labelled images that are nearest."""
    features_ND, classes_N, n_classes = labelled
    k = min(recipe.knn_k, len(features_ND))
    on_validation, on_test = (
        knn_logits(queries_MD, features_ND, classes_N, n_classes, k, recipe.knn_temperature)
        for queries_MD in (validation[0], test[0])
    )
    return examined(on_validation, validation[1], on_test, test[1], {"k": k})


def examined(
    validation_logits: Tensor,
    validation_classes: Tensor,
    test_logits: Tensor,
    test_classes: Tensor,
    chosen: dict[str, Any],
) -> dict[str, Any]:
    on_test = scores(test_logits, test_classes, (validation_logits, validation_classes))
    return {
        "test_accuracy": on_test.pop("accuracy"),
        "validation_accuracy": accuracy(validation_logits, validation_classes),
        **on_test,
        "chosen": chosen,
    }


if __name__ == "__main__":
    run_stage(main)
