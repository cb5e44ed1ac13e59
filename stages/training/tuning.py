"""Tuning a baseline: every setting on the first label subset, the best on validation for all.

The test split plays no part in it: what chooses is `Examiner.choose`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from stages.evaluation.classify import import_ahead
from stages.training.classifier import Examiner
from stages.training.outcomes import Trained
from stages.training.progress_file import expect_trainings
from stages.training.runtime import Runtime
from stages.training.seeds import SeedPair
from stages.training.side_by_side import side_by_side

Setting = TypeVar("Setting")


@dataclass(frozen=True)
class Tuned:
    """What tuning leaves: a net per pair of seeds in the best setting, and all that was tried."""

    trained: list[Trained]
    tried: list[dict[str, Any]]


def tune(
    train: Callable[[SeedPair, Setting, int, Runtime], Trained],
    settings: Sequence[Setting],
    describe: Callable[[Setting], dict[str, Any]],
    pairs: Sequence[SeedPair],
    examiner: Examiner,
    runtime: Runtime,
    at_once: int,
) -> Tuned:
    """Train each setting once, keep the best on validation, train it for every other pair.

    Args:
        train: one net; called with its seeds, its setting and the setting's number.
        settings: the grid.
        describe: a setting in plain values, for the record.
        pairs: the first is what is tuned on.
        examiner: chooses.
        runtime: device.
        at_once: trainings side by side, see `side_by_side`.
    """
    expect_trainings(len(settings) + len(pairs) - 1)
    finished = side_by_side(
        [partial(train, pairs[0], setting, number) for number, setting in enumerate(settings)],
        runtime,
        at_once,
        import_ahead,
    )
    tried = [
        {**describe(setting), "validation_accuracy": examiner.choose(one.model)}
        for setting, one in zip(settings, finished, strict=True)
    ]
    best = max(range(len(tried)), key=lambda number: tried[number]["validation_accuracy"])
    rest = side_by_side(
        [partial(train, pair, settings[best], best) for pair in pairs[1:]], runtime, at_once
    )
    return Tuned([finished[best], *rest], tried)
