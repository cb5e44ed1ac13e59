"""Frozen features on another data set: are they of use elsewhere (SimCLR, section B.8)?

A linear classifier and kNN on h of the pretrained encoder, beside the same on a randomly
initialised one and on raw pixels. Train, validation and test are stratified parts; validation
chooses the regularisation, test reports.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stages.errors import run_stage
from stages.evaluation.classify import accuracy, import_ahead, scores
from stages.evaluation.features import EVALUATION_BATCH, frozen
from stages.evaluation.knn import knn_logits
from stages.evaluation.linear_probe import regularisation_path
from stages.evaluation.other_datasets import LabelledImages, NotHere, read_digits, read_elpv
from stages.models.simclr import SimCLR
from stages.params import Params, load_params
from stages.records import write_record
from stages.training.products import build_from, read_card, read_product, seeded
from stages.training.recipes import evaluation_recipe
from stages.training.runtime import Runtime

PRETRAINED = Path("artifacts/pretrain")
READERS: dict[str, Callable[[], LabelledImages]] = {"digits": read_digits, "elpv": read_elpv}


def main() -> None:
    begun = time.perf_counter()
    params = load_params()
    import_ahead()
    runtime = Runtime.start(params.runtime.device, params.runtime.threads)
    pretrained, card = read_product(PRETRAINED)
    seeded(params.transfer.seed)
    untrained = build_from(card["architecture"])
    assert isinstance(pretrained, SimCLR)
    assert isinstance(untrained, SimCLR)
    rows, skipped = [], []
    for name in params.transfer.datasets:
        try:
            images = READERS[name]()
        except NotHere as reason:
            skipped.append({"dataset": name, "reason": str(reason)})
            print(f"transfer: {name} skipped: {reason}", flush=True)
            continue
        for method, encoder in (
            ("raw_pixels_linear", None),
            ("random_linear", untrained.encoder),
            ("linear_probe", pretrained.encoder),
        ):
            started = time.perf_counter()
            features_ND = embed(encoder, images, params, runtime)
            part = split(images.classes_N, params.transfer.seed)
            common = {"dataset": name, "classes": images.n_classes, "images": len(features_ND)}
            row = linear(features_ND, images, part, params)
            seconds = round(time.perf_counter() - started, 2)
            rows.append({**common, "method": method, **row, "seconds": seconds})
            if encoder is pretrained.encoder:
                rows.append({**common, "method": "knn", **knn(features_ND, images, part, params)})
    numbers: dict[str, Any] = {"seconds": round(time.perf_counter() - begun, 2)}
    for row in rows:
        numbers.setdefault(row["dataset"], {})[row["method"]] = row["test_accuracy"]
    write_record(
        "transfer",
        numbers,
        {
            "rows": rows,
            "skipped": skipped,
            "params": params.transfer.model_dump(),
            "pretrained_sha256": read_card(PRETRAINED)["weights_sha256"],
        },
    )


@dataclass(frozen=True)
class Split:
    """Positions of the training (60%), validation (15%) and test (25%) images."""

    train: Tensor
    validation: Tensor
    test: Tensor


def split(classes_N: Tensor, seed: int) -> Split:
    """A stratified split, a pure function of classes and seed."""
    rng = np.random.default_rng(seed)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for number in classes_N.unique().tolist():
        members = rng.permutation(torch.nonzero(classes_N == number).flatten().numpy())
        first, second = round(0.6 * len(members)), round(0.75 * len(members))
        for part, chunk in zip(parts, np.split(members, [first, second]), strict=True):
            part.extend(chunk.tolist())
    return Split(*(torch.tensor(sorted(part)) for part in parts))


def embed(
    encoder: nn.Module | None, images: LabelledImages, params: Params, runtime: Runtime
) -> Tensor:
    """Features (N, D) of the encoder, or the pixels themselves where there is none."""
    seen_as = evaluation_recipe(params)
    shown = images.as_channels(params.data.channels)
    pixels_NCHW = torch.cat(
        [
            seen_as(shown[start : start + EVALUATION_BATCH])
            for start in range(0, len(shown), EVALUATION_BATCH)
        ]
    )
    if encoder is None:
        return pixels_NCHW.flatten(1)
    encoder = runtime.place(encoder).eval()
    with frozen(encoder), torch.inference_mode():
        return torch.cat(
            [
                encoder(chunk.to(runtime.device)).float().cpu()
                for chunk in pixels_NCHW.split(EVALUATION_BATCH)
            ]
        )


def linear(
    features_ND: Tensor, images: LabelledImages, part: Split, params: Params
) -> dict[str, Any]:
    """Logistic regression, its l2 chosen on validation."""
    classes_N = images.classes_N
    path = regularisation_path(
        features_ND[part.train],
        classes_N[part.train],
        images.n_classes,
        params.transfer.l2_grid,
        params.transfer.max_iterations,
    )
    chosen = max(
        path,
        key=lambda probe: accuracy(probe(features_ND[part.validation]), classes_N[part.validation]),
    )
    return _scored(chosen(features_ND[part.test]), classes_N[part.test]) | {
        "chosen": {"l2": chosen.l2}
    }


def knn(features_ND: Tensor, images: LabelledImages, part: Split, params: Params) -> dict[str, Any]:
    """Votes of the nearest training images."""
    logits_MK = knn_logits(
        features_ND[part.test],
        features_ND[part.train],
        images.classes_N[part.train],
        images.n_classes,
        params.probe.knn_k,
        params.probe.knn_temperature,
    )
    return _scored(logits_MK, images.classes_N[part.test]) | {"seconds": 0.0}


def _scored(logits_MK: Tensor, classes_M: Tensor) -> dict[str, Any]:
    scored = scores(logits_MK, classes_M)
    return {"test_accuracy": scored.pop("accuracy"), **scored, "test_images": len(classes_M)}


if __name__ == "__main__":
    run_stage(main)
