"""What a stage that trains classifiers leaves behind: scores, curves, products."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from stages.evaluation.predictions import write_predictions
from stages.records import write_results
from stages.training.classifier import Examiner
from stages.training.products import write_product
from stages.training.seeds import SeedPair
from stages.training.session import write_curve
from stages.training.state import TrainState


@dataclass(frozen=True)
class Trained:
    """One finished classifier.

    Attributes:
        model: in the state it will be reported and kept in.
        architecture: rebuilds it; see `products.build_from`.
        curve: rows logged while it learnt.
        facts: its row of the results before any score: method, seed, labels, seconds.
        folder: of its product, within the stage's.
    """

    model: nn.Module
    architecture: Mapping[str, Any]
    curve: Sequence[Mapping[str, float]]
    facts: Mapping[str, Any]
    folder: str


def taught_by_labels(
    model: nn.Module,
    architecture: Mapping[str, Any],
    state: TrainState,
    pair: SeedPair,
    *,
    method: str,
    fraction: str,
    labels: int,
    folder: str,
    **more: Any,
) -> Trained:
    """A classifier that learnt from one label subset, with what the results say of it.

    Args:
        model: see `Trained`.
        architecture: see `Trained`.
        state: how its training ended.
        pair: its label subset and initialisation.
        method: of the study.
        fraction: of the labels.
        labels: how many that were.
        folder: see `Trained`.
        more: columns of this method alone.
    """
    facts = {
        "method": method,
        "label_fraction": fraction,
        "labels": labels,
        **pair.facts,
        "seconds": round(state.seconds, 2),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **more,
    }
    return Trained(model, architecture, state.curve, facts, folder)


def conclude(
    item: str,
    trained: Sequence[Trained],
    examiner: Examiner,
    *,
    begun: float,
    params: Mapping[str, Any],
    **details: Any,
) -> None:
    """Report every classifier on the test split, once, and write all that the stage leaves.

    Args:
        item: stage and matrix item: "finetune/0.01".
        trained: one for each method and seed.
        examiner: scores them.
        begun: time.perf_counter() at the start of the stage.
        params: what the params file says of this stage.
        details: anything more for metrics/ITEM.run.json.
    """
    examination = examiner.report([one.model for one in trained])
    rows = [{**one.facts, **scores} for one, scores in zip(trained, examination.rows, strict=True)]
    write_predictions(
        Path("artifacts/predictions") / f"{item}.npz",
        examination.test,
        examination.answers,
        rows,
        examiner.seen_as,
    )
    curve = [
        {"method": one.facts["method"], "seed": one.facts["seed"], **row}
        for one in trained
        for row in one.curve
    ]
    write_curve(Path("plots") / f"{item}.csv", curve)
    data_fingerprint = examiner.validation.fingerprint
    for one, row in zip(trained, rows, strict=True):
        write_product(
            Path("artifacts") / item / one.folder,
            one.model,
            one.architecture,
            stage=item.split("/")[0],
            class_names=examiner.validation.class_names,
            params=params,
            data_fingerprint=data_fingerprint,
            metrics={name: row[name] for name in ("test_accuracy", "validation_accuracy")},
            facts=one.facts,
        )
    write_results(
        item,
        rows,
        seconds=time.perf_counter() - begun,
        params=params,
        data_fingerprint=data_fingerprint,
        **details,
    )
    shutil.rmtree(Path("runs") / item, ignore_errors=True)
