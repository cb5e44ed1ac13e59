"""Macro F1 where the test classes are of uneven size: there accuracy flatters the commonest.

Ours stays what validation accuracy chose. F1 and differences are fractions in [0, 1].
"""

from html import escape
from statistics import fmean, stdev

from pipeline.report.comparison import Difference, compare, interval_words, points
from pipeline.report.methods import Method, labels_phrase
from pipeline.report.results import Study
from pipeline.report.tables import NOT_ASKED, column_title, percent, without_result
from pipeline.report.verdict import gain_at

UNEVEN = 1.25  # times an even share, that the commonest class of the test images has
MEASURE = "macro_f1"


def is_uneven(study: Study) -> bool:
    guessing = study.guessing
    return guessing is not None and guessing >= UNEVEN / len(study.class_names)


def differences(study: Study) -> list[Difference]:
    """Ours minus the supervised net in macro F1, a label fraction each; fewest labels first."""
    gains = [gain_at(study, fraction) for fraction in study.fractions]
    found = [compare(gain.ours, gain.theirs, MEASURE) for gain in gains if gain is not None]
    return [difference for difference in found if difference is not None]


def sentence(study: Study) -> str:
    """What macro F1 says of ours at each label fraction; empty where nothing is compared."""
    said = [
        f"{points(found.mean)} points with {labels_phrase(found.ours.label_fraction)} "
        f"({interval_words(found.interval, found.seeds)}: {found.kind})"
        for found in differences(study)
    ]
    return f"Ours over supervised by macro F1: {'; '.join(said)}." if said else ""


def why(study: Study) -> str:
    assert study.guessing is not None
    return (
        "Macro F1, the mean of the classes' F1, in percent: the test classes are of uneven size, "
        f"and naming the commonest each time is right for {percent(study.guessing)}%."
    )


def markdown_section(study: Study) -> list[str]:
    """Lines of the report; none where the test classes are about even, or nothing has run."""
    if not is_uneven(study) or not study.results:
        return []
    titles = [column_title(study, fraction) for fraction in study.fractions]
    lines = [why(study), "", f"| macro F1 | {' | '.join(titles)} |"]
    lines.append("|---" * (len(titles) + 1) + "|")
    lines += [
        f"| {method.title} | {' | '.join(_cells(study, method))} |" for method in study.methods
    ]
    return [*lines, "", *([said, ""] if (said := sentence(study)) else [])]


def html_section(study: Study) -> str:
    """The same for the page."""
    if not is_uneven(study) or not study.results:
        return ""
    heads = "".join(
        f'<th scope="col">{escape(column_title(study, f))}</th>' for f in study.fractions
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(method.title)}</th>'
        f"{''.join(f'<td>{cell}</td>' for cell in _cells(study, method))}</tr>"
        for method in study.methods
    )
    return (
        f"<h3>Classes of uneven size</h3><p>{escape(why(study))} {escape(sentence(study))}</p>"
        '<div class="scroll"><table><thead><tr><th scope="col">Macro F1, %</th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cells(study: Study, method: Method) -> list[str]:
    """A method's macro F1 at each label fraction, as '61.2 ± 1.3'."""
    cells = []
    for fraction in study.fractions:
        result = study.results.get((method.name, fraction))
        if result is None:
            cells.append(without_result(study, method, fraction))
            continue
        values = [*result.by_seed(MEASURE).values()]
        spread = stdev(values) if len(values) > 1 else None
        cells.append(percent(fmean(values), spread) if values else NOT_ASKED)
    return cells
