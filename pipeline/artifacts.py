"""What of a stage's results is shown on a page or a terminal: plain values, no Prefect in here."""

import re
from collections.abc import Mapping
from typing import Any

NOT_ALLOWED = re.compile(r"[^a-z0-9]+")


def slug(*words: str) -> str:
    """A key as Prefect wants it: small letters, digits and dashes."""
    return NOT_ALLOWED.sub("-", "-".join(words).lower()).strip("-")


def table_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a number: {"probe": {"accuracy": {"mean": 0.71234}}} gives accuracy.mean, 0.7123.

    Args:
        metrics: numbers by file; the file is named only where there are several.
    """
    numbers = flat(metrics if len(metrics) > 1 else next(iter(metrics.values()), {}))
    return [{"metric": name, "value": rounded(value)} for name, value in numbers.items()]


def rounded(value: Any) -> Any:
    """Four digits are what a person reads; the file has them all."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots; an empty mapping is a value of its own."""
    pairs: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            pairs.update(flat(value, f"{name}."))
        else:
            pairs[name] = value
    return pairs


def first_table(markdown: str) -> str:
    """The first table of a Markdown page; empty where it has none."""
    table: list[str] = []
    for line in markdown.splitlines():
        if line.lstrip().startswith("|"):
            table.append(line)
        elif table:
            break
    return "\n".join(table)


def profile_of(report: str) -> str | None:
    """The profile whose numbers a report (report.md) shows."""
    found = re.search(r"^- Profile: (\S+)", report, re.MULTILINE)
    return found[1] if found else None
