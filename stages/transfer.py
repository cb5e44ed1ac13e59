"""Are the features of use elsewhere (SimCLR, section B.8)? Other data sets, linear and fine-tuned.

On each data set a linear classifier and kNN on h of the pretrained encoder, beside the same on a
randomly initialised one, on the supervised net's and on raw pixels; and where params ask for it the
whole network fine-tuned, beside the supervised net and the same from scratch. Validation chooses,
test reports, and a permutation test says whether two methods differ at all.
"""

import copy
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.data.evaluation_views import EvaluationRecipe
from stages.errors import run_stage
from stages.evaluation.classify import import_ahead
from stages.evaluation.features import EVALUATION_BATCH, frozen, state_digest
from stages.evaluation.knn import knn_logits
from stages.evaluation.linear_probe import refitted, regularisation_path
from stages.evaluation.other_datasets import LabelledImages, NotHere, Suite
from stages.evaluation.transfer_scores import compared, examined, score
from stages.models.heads import LinearClassifier
from stages.models.resnet import ResNet
from stages.models.simclr import Classifier, SimCLR
from stages.params import Params, load_params
from stages.records import write_record
from stages.training.products import build_from, read_card, read_product, seeded
from stages.training.recipes import evaluation_recipe
from stages.training.runtime import Runtime
from stages.training.transfer_tuning import Tuning

PRETRAINED, SUPERVISED = Path("artifacts/pretrain"), Path("artifacts/supervised")
LARGEST_RAW = 32  # pixels; of a larger picture the raw pixels are averaged to it
PAIRS = (  # whose difference is tested: the first named is ours
    ("linear_probe", "random_linear"),
    ("linear_probe", "supervised_linear"),
    ("linear_probe", "raw_pixels_linear"),
    ("finetune", "scratch"),
    ("finetune", "supervised_finetune"),
    ("finetune", "linear_probe"),
)


@dataclass(frozen=True)
class Networks:
    """Whose features are compared.

    Attributes:
        pretrained: f and g as learnt without labels.
        untrained: the same, of random weights.
        supervised: the encoder of the baseline with the most labels; None where it was not trained.
        supervised_from: its folder.
    """

    pretrained: SimCLR
    untrained: SimCLR
    supervised: ResNet | None
    supervised_from: str | None

    @classmethod
    def read(cls, params: Params) -> "Networks":
        pretrained, card = read_product(PRETRAINED)
        seeded(params.transfer.seed)
        untrained = build_from(card["architecture"])
        assert isinstance(pretrained, SimCLR)
        assert isinstance(untrained, SimCLR)
        folder = supervised_folder(params)
        supervised = None if folder is None else read_product(folder)[0].encoder
        return cls(pretrained, untrained, supervised, None if folder is None else str(folder))


def supervised_folder(params: Params) -> Path | None:
    """The baseline's product of the most labels and the first seed."""
    products = [
        (read_card(card.parent)["facts"]["labels"], str(card.parent))
        for fraction in params.finetune.label_fractions
        for card in sorted((SUPERVISED / fraction).glob("*/card.json"))[:1]
    ]
    return Path(max(products)[1]) if products else None


def main() -> None:
    begun = time.perf_counter()
    params = load_params()
    import_ahead()
    runtime = Runtime.start(params.runtime.device, params.runtime.threads)
    networks = Networks.read(params)
    suite = Suite(
        Path(params.transfer.root),
        params.data.channels,
        params.data.image_size,
        params.data.max_pixels,
        params.transfer.seed,
    )
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    tests: list[dict[str, Any]] = []
    for wanted in params.transfer.datasets:
        name = wanted if isinstance(wanted, str) else wanted.name
        try:
            images = suite.read(wanted)
        except NotHere as reason:
            skipped.append({"dataset": name, "reason": str(reason)})
            print(f"transfer: {name} skipped: {reason}", flush=True)
            continue
        found, logits = frozen_features(images, networks, params, runtime)
        tuned, tuned_logits = fine_tuned(images, networks, params, runtime)
        rows += [*found, *tuned]
        compared_here = compared(images, logits | tuned_logits, PAIRS)
        tests += [{"dataset": name, **test} for test in compared_here]
    numbers: dict[str, Any] = {"seconds": round(time.perf_counter() - begun, 2)}
    for row in rows:
        numbers.setdefault(row["dataset"], {})[row["method"]] = row["score"]
    write_record(
        "transfer",
        numbers,
        {
            "rows": rows,
            "tests": tests,
            "skipped": skipped,
            "params": params.transfer.model_dump(),
            "pretrained_sha256": read_card(PRETRAINED)["weights_sha256"],
            "supervised_from": networks.supervised_from,
        },
    )
    shutil.rmtree("runs/transfer", ignore_errors=True)


Found = tuple[list[dict[str, Any]], dict[str, Tensor]]  # rows, and test logits by method


def frozen_features(
    images: LabelledImages, networks: Networks, params: Params, runtime: Runtime
) -> Found:
    """The linear classifier on each kind of features, and kNN on the pretrained ones."""
    rows, logits = [], {}
    for method, encoder in (
        ("raw_pixels_linear", None),
        ("random_linear", networks.untrained.encoder),
        ("supervised_linear", networks.supervised),
        ("linear_probe", networks.pretrained.encoder),
    ):
        if encoder is None and method != "raw_pixels_linear":
            continue
        started = time.perf_counter()
        features_ND = embed(encoder, images, params, runtime)
        logits[method], row = linear(features_ND, images, params, runtime.device)
        seconds = round(time.perf_counter() - started, 2)
        rows.append({**facts(images), "method": method, **row, "seconds": seconds})
        if method == "linear_probe" and images.has_one_class_each:
            logits["knn"], row = knn(features_ND, images, params)
            rows.append({**facts(images), "method": "knn", **row})
    return rows, logits


def fine_tuned(
    images: LabelledImages, networks: Networks, params: Params, runtime: Runtime
) -> Found:
    """The whole network learnt, from each of the weights that params ask for."""
    rows, logits = [], {}
    recipes = params.transfer
    for asked, method, encoder, recipe in (
        ("finetune", "finetune", networks.pretrained.encoder, recipes.finetune),
        ("supervised", "supervised_finetune", networks.supervised, recipes.finetune),
        ("scratch", "scratch", networks.untrained.encoder, recipes.scratch),
    ):
        if asked not in recipes.train or encoder is None or recipe is None:
            continue
        started = time.perf_counter()
        tuning = Tuning(
            f"transfer/{images.name}/{method}",
            images,
            partial(beginning, encoder, images.n_classes, recipes.seed),
            recipe,
            state_digest(encoder),
            evaluation_recipe(params),
            params,
            runtime,
        )
        logits[method], details = tuning.run()
        scored = examined(images, logits[method], images.split["test"])
        seconds = round(time.perf_counter() - started, 2)
        rows.append({**facts(images), "method": method, **scored, **details, "seconds": seconds})
    return rows, logits


def beginning(encoder: ResNet, n_classes: int, seed: int) -> Classifier:
    """A copy of an encoder with a new classifier on h."""
    seeded(seed)
    linear = LinearClassifier(encoder.feature_dim, n_classes)
    return Classifier(copy.deepcopy(encoder).cpu(), nn.Sequential(), linear)


def facts(images: LabelledImages) -> dict[str, Any]:
    return {"dataset": images.name, "classes": images.n_classes, "images": len(images.keys)}


def whole_side(params: Params) -> EvaluationRecipe:
    """What an image is embedded as here: all of its shorter side, and of that the middle (B.8)."""
    return replace(evaluation_recipe(params), keep=1.0)


def embed(
    encoder: nn.Module | None, images: LabelledImages, params: Params, runtime: Runtime
) -> Tensor:
    """Features (N, D) of the encoder, or the pixels themselves where there is none."""
    if encoder is None:
        return _each_batch(images, whole_side(params), _raw)
    encoder = runtime.place(encoder).eval()
    with frozen(encoder), torch.inference_mode():
        return _each_batch(
            images,
            whole_side(params),
            lambda shown: encoder(shown.to(runtime.device)).float().cpu(),
        )


def _each_batch(
    images: LabelledImages, seen_as: EvaluationRecipe, made: Callable[[Tensor], Tensor]
) -> Tensor:
    places = range(len(images.keys))
    starts = places[::EVALUATION_BATCH]
    return torch.cat(
        [made(seen_as(images.at(places[start : start + EVALUATION_BATCH]))) for start in starts]
    )


def _raw(shown_BCHW: Tensor) -> Tensor:
    if shown_BCHW.shape[-1] > LARGEST_RAW:
        shown_BCHW = F.adaptive_avg_pool2d(shown_BCHW, LARGEST_RAW)
    return shown_BCHW.flatten(1)


def linear(
    features_ND: Tensor, images: LabelledImages, params: Params, device: torch.device
) -> tuple[Tensor, dict[str, Any]]:
    """Logistic regression, its l2 chosen on validation."""
    train_N, validation_N, test_N = (images.split[side] for side in ("train", "validation", "test"))
    recipe = params.transfer
    path = regularisation_path(
        features_ND[train_N],
        images.targets[train_N],
        images.n_classes,
        recipe.l2_grid,
        recipe.max_iterations,
        device=device,
    )
    on_validation = features_ND[validation_N]
    chosen = max(path, key=lambda probe: score(images, probe(on_validation), validation_N))
    logits_VK = chosen(on_validation)
    validation = (logits_VK, images.targets[validation_N])
    details = {
        "validation_score": score(images, logits_VK, validation_N),
        "chosen": {"l2": chosen.l2, "converged": chosen.converged},
    }
    if recipe.refit:
        validation = None  # it learns from them now: nothing is left to fit a temperature on
        both_N = torch.cat([train_N, validation_N])
        chosen = refitted(
            chosen.l2,
            len(train_N),
            features_ND[both_N],
            images.targets[both_N],
            images.n_classes,
            recipe.max_iterations,
            device,
        )
    logits_MK = chosen(features_ND[test_N])
    return logits_MK, examined(images, logits_MK, test_N, validation) | details


def knn(
    features_ND: Tensor, images: LabelledImages, params: Params
) -> tuple[Tensor, dict[str, Any]]:
    """Votes of the nearest training images."""
    train_N, test_N = images.split["train"], images.split["test"]
    logits_MK = knn_logits(
        features_ND[test_N],
        features_ND[train_N],
        images.targets[train_N],
        images.n_classes,
        params.probe.knn_k,
        params.probe.knn_temperature,
    )
    return logits_MK, examined(images, logits_MK, test_N) | {"seconds": 0.0}


if __name__ == "__main__":
    run_stage(main)
