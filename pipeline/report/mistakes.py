"""Where the gain is: confusion matrices side by side, and accuracy by class.

Shapes: K classes; confusion_KK counts test images, rows are the true classes.
"""

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from pipeline.report.comparison import Difference, points
from pipeline.report.results import Result, Study
from pipeline.report.verdict import gain_at

MOST_CLASSES = 24  # a larger matrix can't be read, so the worst confusions are listed instead


def confusion_of(result: Result) -> NDArray[np.float64] | None:
    """Counts summed over the seeds that kept a matrix."""
    kept = [np.asarray(row["confusion"], float) for row in result.rows if row.get("confusion")]
    return np.sum(kept, axis=0) if kept else None


def per_class(result: Result) -> NDArray[np.float64] | None:
    """Accuracy of each class, the mean over seeds."""
    kept = [row["per_class_accuracy"] for row in result.rows if row.get("per_class_accuracy")]
    return np.mean(np.asarray(kept, float), axis=0) if kept else None


def mistakes_section(study: Study) -> str:
    gain = next((g for f in study.fractions if (g := gain_at(study, f))), None)
    if gain is None:
        return ""
    matrices = "".join(_matrix_figure(study, result) for result in (gain.ours, gain.theirs))
    pair = f'<div class="pair">{matrices}</div>' if matrices else ""
    return pair + _class_bars(study, gain)


def _matrix_figure(study: Study, result: Result) -> str:
    counts_KK = confusion_of(result)
    if counts_KK is None:
        return ""
    shares_KK = counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)
    names = study.class_names
    title = f"<h3>{escape(result.method.title)}, {result.labels:,} labels</h3>"
    if len(counts_KK) > MOST_CLASSES:
        return f"<figure>{title}{_worst(shares_KK, names)}</figure>"
    return f"<figure>{title}{_matrix(shares_KK, names)}{_worst(shares_KK, names, 4)}</figure>"


def _matrix(shares_KK: NDArray[np.float64], names: Sequence[str]) -> str:
    heads = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in names)
    rows = []
    for true, name in enumerate(names):
        cells = []
        for said, share in enumerate(shares_KK[true]):
            tip = escape(f"{share * 100:.1f}% of {name} called {names[said]}")
            css = "right" if said == true else "wrong"
            # The root of a mistake's share, or the small ones would not be seen.
            depth = share if said == true else share**0.5
            deep = " deep" if depth > (0.55 if said == true else 0.6) else ""
            shown = f"{share * 100:.0f}" if round(share * 100) else ""
            cells.append(
                f'<td class="{css}{deep}" style="--v:{depth:.2f}" title="{tip}">{shown}</td>'
            )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="scroll"><table class="confusion"><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _worst(shares_KK: NDArray[np.float64], names: Sequence[str], count: int = 10) -> str:
    off_KK = shares_KK - np.diag(np.diag(shares_KK))
    places = np.argsort(off_KK, axis=None)[::-1][:count]
    parts = []
    for place in places.tolist():
        true, said = divmod(place, len(names))
        share = off_KK[true, said]
        if share > 0:
            parts.append(f"{names[true]} called {names[said]} {share * 100:.0f}%")
    return f"<figcaption>Most frequent mistakes: {escape(', '.join(parts))}.</figcaption>"


def _class_bars(study: Study, gain: Difference) -> str:
    ours_K, theirs_K = per_class(gain.ours), per_class(gain.theirs)
    if ours_K is None or theirs_K is None:
        return ""
    gains_K = ours_K - theirs_K
    order = np.argsort(gains_K)[::-1].tolist()
    note = ""
    if len(order) > MOST_CLASSES:
        order = order[:12] + order[-12:]
        note = " The twelve best and the twelve worst are shown."
    low, high = min(gains_K.min(), 0.0), max(gains_K.max(), 0.0)
    span = max(high - low, 1e-9)
    zero = -low / span * 100
    rows = []
    for number in order:
        value = float(gains_K[number])
        left, width = (zero + min(value, 0) / span * 100), abs(value) / span * 100
        less = ' class="less"' if value < 0 else ""
        change = f"{theirs_K[number] * 100:.0f} → {ours_K[number] * 100:.0f} %"
        rows.append(
            f"<span>{escape(study.class_names[number])}</span>"
            f'<div class="track" style="--zero:{zero:.1f}%"><i{less} style="left:{left:.1f}%;'
            f'width:{width:.1f}%"></i></div>'
            f'<span class="value">{points(value)} <small>{change}</small></span>'
        )
    return (
        "<h3>Gain by class</h3><p>Points of accuracy over the supervised net at "
        f"{gain.ours.labels:,} labels, mean over seeds.{note}</p>"
        f'<div class="bars">{"".join(rows)}</div>'
    )
