"""The label-fraction table, three times: CSV, Markdown and HTML, from the same results."""

import csv
import io
from html import escape

from pipeline.report.methods import Method, finetuned, fraction_title
from pipeline.report.results import Result, Study
from pipeline.report.verdict import gain_at

COLUMNS = (
    *("method", "label_fraction", "labels", "seeds", "mean", "std", "min", "max"),
    *("validation_mean", "file"),
)
NOT_RUN = "not run yet"
NOT_ASKED = "\N{EN DASH}"


def csv_text(study: Study) -> str:
    """One line per method and label fraction that has run; accuracies in [0, 1]."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for result in in_order(study):
        seeds = result.by_seed()
        writer.writerow(
            [
                result.method.name,
                result.label_fraction,
                result.labels,
                len(seeds),
                result.mean,
                result.std,
                min(seeds.values(), default=""),
                max(seeds.values(), default=""),
                result.validation_mean,
                result.file,
            ]
        )
    return out.getvalue()


def in_order(study: Study) -> list[Result]:
    """Results by label fraction, fewest labels first, then in the report's order of methods."""
    found = [
        study.results.get((method.name, fraction))
        for fraction in study.fractions
        for method in study.methods
    ]
    return [result for result in found if result is not None]


def percent(mean: float, std: float | None = None) -> str:
    """'76.4' or '76.4 ± 0.3', in percent."""
    return f"{mean * 100:.1f}" if std is None else f"{mean * 100:.1f} ± {std * 100:.1f}"


def spread(result: Result) -> float | None:
    """Deviation over seeds; one seed has none to show."""
    return result.std if len(result.rows) != 1 else None


def column_title(study: Study, fraction: str) -> str:
    labels = study.labels(fraction)
    return fraction_title(fraction) + ("" if labels is None else f" ({labels:,} labels)")


def best_at(study: Study, fraction: str) -> str | None:
    """The method with the highest mean test accuracy in a column."""
    column = [r for r in in_order(study) if r.label_fraction == fraction]
    best = max(column, key=lambda result: result.mean, default=None)
    return None if best is None else best.method.name


def chosen_at(study: Study, fraction: str) -> str | None:
    gain = gain_at(study, fraction)
    return None if gain is None else gain.ours.method.name


def markdown_table(study: Study) -> str:
    titles = [column_title(study, fraction) for fraction in study.fractions]
    lines = [f"| method | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    best = {fraction: best_at(study, fraction) for fraction in study.fractions}
    chosen = {fraction: chosen_at(study, fraction) for fraction in study.fractions}
    for method in study.methods:
        cells = []
        for fraction in study.fractions:
            result = study.results.get((method.name, fraction))
            text = without_result(study, method, fraction)
            text = percent(result.mean, spread(result)) if result else text
            text = f"**{text}**" if result and best[fraction] == method.name else text
            cells.append(f"{text} ◆" if chosen[fraction] == method.name else text)
        lines.append(f"| {method.title} | {' | '.join(cells)} |")
    if study.guessing is not None:
        guess = " | ".join([percent(study.guessing)] * len(titles))
        lines.append(f"| *Guessing* | {guess} |")
    return "\n".join(lines)


def without_result(study: Study, method: Method, fraction: str) -> str:
    """What stands where a number would: params may ask for fewer layers at a label fraction."""
    layers = study.params.finetune.layers_at(fraction)
    if method.name.startswith("finetune") and method not in map(finetuned, layers):
        return NOT_ASKED
    return NOT_RUN


def html_table(study: Study) -> str:
    """Rows are methods in two groups; each number links to its runs and names its file."""
    heads = "".join(_head(study, fraction) for fraction in study.fractions)
    rows = []
    for uses_unlabelled, title in (
        (False, "Without the unlabelled images"),
        (True, "With the unlabelled images"),
    ):
        span = len(study.fractions) + 1
        rows.append(f'<tr class="group"><th colspan="{span}" scope="rowgroup">{title}</th></tr>')
        rows += [_row(study, m) for m in study.methods if m.uses_unlabelled == uses_unlabelled]
        if not uses_unlabelled and study.guessing is not None:
            cells = f"<td>{percent(study.guessing)}</td>" * len(study.fractions)
            rows.insert(1, f'<tr class="guess"><th scope="row">Guessing</th>{cells}</tr>')
    return (
        '<div class="scroll"><table class="results"><thead><tr><th scope="col">Test accuracy, %'
        f"</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _head(study: Study, fraction: str) -> str:
    labels = study.labels(fraction)
    count = "" if labels is None else f"<small>{labels:,} labels</small>"
    return f'<th scope="col">{escape(fraction_title(fraction))}{count}</th>'


def _row(study: Study, method: Method) -> str:
    cells = "".join(_cell(study, method, fraction) for fraction in study.fractions)
    emphasis = ' class="baseline"' if method.name == "supervised" else ""
    key = f'<i class="key" style="background:var(--{method.colour})"></i>'
    return f'<tr{emphasis}><th scope="row">{key}{escape(method.title)}</th>{cells}</tr>'


def _cell(study: Study, method: Method, fraction: str) -> str:
    result = study.results.get((method.name, fraction))
    if result is None:
        return f'<td class="missing">{without_result(study, method, fraction)}</td>'
    text = percent(result.mean)
    deviation = spread(result)
    if deviation is not None:
        text += f" <small>± {deviation * 100:.1f}</small>"
    if best_at(study, fraction) == method.name:
        text = f"<b>{text}</b>"
    mark = '<i class="chosen">◆</i>' if chosen_at(study, fraction) == method.name else ""
    note = escape(f"{result.file}: {len(result.rows)} seeds, {_range(result)}")
    link = f' href="#{anchor(result)}"' if result.rows else ""
    return f'<td>{mark}<a{link} title="{note}">{text}</a></td>'


def _range(result: Result) -> str:
    seeds = result.by_seed().values()
    return f"{percent(min(seeds))} to {percent(max(seeds))}" if seeds else "no rows kept"


def anchor(result: Result) -> str:
    """Where the page shows the runs behind a number."""
    record = result.file.removeprefix("metrics/").removesuffix(".json").replace("/", "-")
    return f"run-{record}-{result.method.name}"


def linked(result: Result, words: str) -> str:
    """Words that lead to the runs behind a number, where the page has them."""
    return f'<a href="#{anchor(result)}">{words}</a>' if result.rows else words
