"""Small pieces of HTML that several sections of the page are made of."""

from html import escape

from pipeline.report.reading import Record
from pipeline.report.tables import NOT_RUN


def missing(stage: str) -> str:
    return f'<p class="missing">{NOT_RUN}: <code>dvc repro {stage}</code></p>'


def facts_list(facts: list[tuple[str, str]], css: str = "one") -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in facts if value)
    return f'<dl class="{css}">{items}</dl>'


def shown(record: Record, key: str, pattern: str) -> str:
    value = record.get(key)
    return "" if value is None else pattern.format(value)
