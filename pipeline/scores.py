"""What metrics/*.json say of a network: its methods' accuracies, chosen by validation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """One method at one label fraction: accuracies in [0, 1], mean and deviation over seeds."""

    method: str
    label_fraction: str
    test: float
    test_deviation: float
    validation: float
    validation_deviation: float

    def __str__(self) -> str:
        return f"{100 * self.test:.1f} ± {100 * self.test_deviation:.1f}"


def scores_in(content: Mapping[str, Any], label_fraction: str) -> list[Score]:
    """Every method of a metrics file that has been tested."""
    return [
        Score(
            method,
            label_fraction,
            numbers["test_accuracy"]["mean"],
            numbers["test_accuracy"]["std"],
            numbers["validation_accuracy"]["mean"],
            numbers["validation_accuracy"]["std"],
        )
        for method, numbers in content.items()
        if isinstance(numbers, Mapping) and "test_accuracy" in numbers
    ]


def chosen(scores: list[Score]) -> Score | None:
    """The one with the best validation accuracy: the test has no part in the choice."""
    return max(scores, key=lambda score: score.validation, default=None)
