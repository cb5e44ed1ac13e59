"""Every method against the supervised net: difference, interval, and two tests of it."""

from html import escape

from pipeline.report.comparison import Difference, compare, points
from pipeline.report.efficiency import efficiency_of, times_text
from pipeline.report.methods import fraction_title
from pipeline.report.results import Study
from pipeline.report.tables import linked

DASH = "\N{EN DASH}"


def comparisons_section(study: Study) -> str:
    """A table a label fraction; empty where there is nothing to compare."""
    tables = "".join(_table(study, fraction) for fraction in study.fractions)
    if not tables:
        return ""
    seeds = max(len(result.by_seed()) for result in study.results.values())
    return (
        "<h3>Tests between methods</h3><p>Each method minus the supervised net, paired by label "
        "subset. p by Student's t takes the differences for normal; p by signs is exact and only "
        "assumes that without an effect each could as well have had the other sign, but "
        f"{_floor(seeds)}. Both are for one comparison looked at alone: among ten, one in twenty "
        "comes out small by chance.</p>"
        f"{tables}"
    )


def _floor(seeds: int) -> str:
    if seeds < 2:
        return "needs two subsets or more"
    lowest = 2 / 2**seeds
    low = " and so can't call anything clear" if lowest > 0.05 else ""
    return f"with {seeds} subsets it can't come below {lowest:.3g}{low}"


def _table(study: Study, fraction: str) -> str:
    supervised = study.results.get(("supervised", fraction))
    rows = []
    for method in study.methods:
        result = study.results.get((method.name, fraction))
        difference = compare(result, supervised)
        if method.name == "supervised" or difference is None or result is None:
            continue
        needed = efficiency_of(study, result)
        worth = DASH
        if needed is not None:
            sign = "" if needed.sign == "=" else "&gt; " if needed.sign == ">" else "&lt; "
            worth = f"{sign}{times_text(needed.times)}\N{MULTIPLICATION SIGN}"
        cells = (
            points(difference.mean),
            _interval(difference),
            _p(difference.p_by_t),
            _p(difference.p_by_signs),
            worth,
        )
        kind = difference.kind.replace(" ", "-")
        badge = f'<span class="badge {kind}">{difference.kind}</span>'
        name = linked(result, escape(method.title))
        rows.append(
            f'<tr><th scope="row">{name}</th>{"".join(f"<td>{c}</td>" for c in cells)}'
            f"<td>{badge}</td></tr>"
        )
    if not rows:
        return ""
    heads = ("Points", "95% interval", "p, t", "p, signs", "Labels worth", "")
    head = "".join(f'<th scope="col">{title}</th>' for title in heads)
    return (
        f"<details><summary>{fraction_title(fraction)}: {len(rows)} methods against supervised"
        f'</summary><div class="scroll"><table><thead><tr><th scope="col">Method</th>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _interval(difference: Difference) -> str:
    if difference.interval is None:
        return DASH
    low, high = difference.interval
    return f"{points(low)} to {points(high)}"


def _p(value: float | None) -> str:
    return DASH if value is None else "&lt; 0.001" if value < 0.001 else f"{value:.3f}"
