"""From each number to its runs: what was chosen, what came out, and all that made it.

A number of the page leads to its rows here, each row to the record it is in: commit, machine,
seconds, data fingerprint and params.
"""

import json
from html import escape

from pipeline.report.pieces import facts_list
from pipeline.report.provenance import clock, machine_words
from pipeline.report.reading import Record
from pipeline.report.results import Result, Study
from pipeline.report.tables import NOT_RUN, anchor, in_order

TITLES = (
    *("Method", "Labels", "Seed", "Test %", "Valid. %", "Macro F1 %", "Seconds", "Commit"),
    *("Record", "Chosen"),
)


def runs_section(study: Study) -> str:
    return (
        "<details><summary>All runs, with what each chose on validation</summary>"
        f"{runs_table(study)}</details>{records(study)}"
    )


def all_results(study: Study) -> list[Result]:
    """Those of the table, then those of other sizes and of their students."""
    sized = [
        study.sized(size, method.name, fraction)
        for size in study.sizes[1:]
        for fraction in study.fractions
        for method in study.methods
    ]
    students = [found for fraction in study.fractions for found in study.students(fraction)]
    return [
        *in_order(study),
        *(result for result in sized if result is not None),
        *(result for _, _, result in students),
    ]


def runs_table(study: Study) -> str:
    head = "".join(f'<th scope="col">{title}</th>' for title in TITLES)
    body = []
    for result in all_results(study):
        record = result.file.removeprefix("metrics/").removesuffix(".json")
        commit = (study.details(record).get("run") or {}).get("commit", "")
        for place, row in enumerate(result.rows):
            chosen = ", ".join(f"{k} {_plain(v)}" for k, v in (row.get("chosen") or {}).items())
            more = row.get("initialisation") or 0
            cells = (
                f"{result.labels:,}",
                f"{row['seed']}" + (f", start {more + 1}" if more else ""),
                _percent_of(row.get("test_accuracy")),
                _percent_of(row.get("validation_accuracy")),
                _percent_of(row.get("macro_f1")),
                f"{row.get('seconds', 0):.1f}",
                f"<code>{escape(commit[:8])}</code>",
                f'<a href="#{record_anchor(record)}">{escape(record)}</a>',
                escape(chosen) or "\N{EN DASH}",
            )
            mark = f' id="{anchor(result)}"' if place == 0 else ""
            name = f'<th scope="row">{escape(result.method.title)}</th>'
            body.append(f"<tr{mark}>{name}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    if not body:
        return f'<p class="missing">{NOT_RUN}</p>'
    return (
        f'<div class="scroll"><table class="runs"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def record_anchor(record: str) -> str:
    return f"record-{record.replace('/', '-')}"


def records(study: Study) -> str:
    """What made the numbers of each record that a row leads to."""
    named = dict.fromkeys(
        result.file.removeprefix("metrics/").removesuffix(".json")
        for result in all_results(study)
        if result.rows
    )
    return "".join(_record(study, record) for record in named)


def _record(study: Study, record: str) -> str:
    details = study.details(record)
    run: Record = details.get("run") or {}
    packages = run.get("packages") or {}
    seconds = study.record(record).get("seconds")
    facts = [
        ("Files", f"<code>metrics/{escape(record)}.json</code>, <code>.run.json</code>"),
        ("Commit", f"<code>{escape(str(run.get('commit', '?')))}</code>"),
        ("Seconds of the stage", "" if seconds is None else clock(float(seconds))),
        ("Machine", escape(machine_words(run))),
        ("Packages", escape(", ".join(f"{k} {v}" for k, v in packages.items() if v))),
        ("Data fingerprint", f"<code>{escape(str(details.get('data_fingerprint', '?')))}</code>"),
    ]
    params = json.dumps(details.get("params") or {}, indent=1)
    return (
        f'<details id="{record_anchor(record)}" class="record"><summary>{escape(record)}</summary>'
        f"{facts_list(facts)}<pre>{escape(params)}</pre></details>"
    )


def _percent_of(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value * 100:.2f}"


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
