"""The study as pictures: accuracy and gain against the number of labels, gain by seed.

Accuracies and differences are fractions in [0, 1]; the axes show percent and points.
"""

import math
from collections.abc import Sequence

from pipeline.report.comparison import Difference, compare, points
from pipeline.report.efficiency import efficiency_of
from pipeline.report.label_lines import Line, Page, Point, by_labels, in_order
from pipeline.report.methods import Method, fraction_title
from pipeline.report.results import Study
from pipeline.report.svg import (
    Scale,
    line,
    marker,
    svg,
    text,
    ticks,
)
from pipeline.report.tables import chosen_at, percent

DOT = 4.5  # radius of a label subset's point


def label_fraction_plot(study: Study, width: float, height: float, *, short: bool) -> str:
    """Test accuracy against the number of labels, a line per method with error bars.

    Supervised and ours (chosen on validation) stand out, with their 95% intervals as bands; the
    others are thin. `short` uses the
    short names, for a narrow screen.
    """
    shown = [(m, found) for m in study.methods if (found := _points_of(study, m))]
    if not shown:
        return ""
    low, high = _range(shown)
    guess = study.guessing
    marks = []
    # The guessing line is drawn when it is near enough to be worth the empty space.
    if guess is not None and guess > low - 0.6 * (high - low):
        low = min(low, guess)
        marks = [(guess, "guess", f"guessing {guess * 100:.0f}%")]
    pad = max(0.04 * (high - low), 0.005)
    alt = "Test accuracy by number of labels. " + "; ".join(
        f"{m.title}: " + ", ".join(f"{percent(p.mean)}% at {p.labels:,} labels" for p in found)
        for m, found in shown
    )
    axis = Scale(max(low - pad, 0), min(high + pad, 1), height - 62, 14)
    page = Page(study, width, height, short)
    return by_labels(page, shown, axis, marks, lambda v: f"{v:.0%}", _percent, alt)


def difference_plot(study: Study, width: float, height: float, *, short: bool) -> str:
    """Points over the supervised net (0) on the same labels, for what uses unlabelled images."""
    shown: list[Line] = []
    for method in (m for m in study.methods if m.uses_unlabelled or m.name == "supervised"):
        pairs = [
            compare(study.results.get((method.name, f)), study.results.get(("supervised", f)))
            for f in study.fractions
        ]
        found = [
            Point(d.ours.labels, d.mean, d.deviation, d.interval)
            for d in pairs
            if d and d.ours.labels
        ]
        shown += [(method, in_order(found))] if found else []
    if all(method.name == "supervised" for method, _ in shown):
        return ""
    low, high = _range(shown)
    pad = max(0.06 * (high - low), 0.005)
    alt = "Points over supervised by number of labels. " + "; ".join(
        f"{m.title}: " + ", ".join(f"{points(p.mean)} at {p.labels:,} labels" for p in found)
        for m, found in shown
    )
    axis = Scale(low - pad, high + pad, height - 62, 14)
    page = Page(study, width, height, short)
    return by_labels(page, shown, axis, [], _signed, _points, alt)


def efficiency_plot(study: Study, width: float, height: float, *, short: bool) -> str:
    """Times the labels that the supervised net needs for the same accuracy (1: no gain).

    Only where its curve can be read: what it never reaches has no place on the plot.
    """
    shown: list[Line] = []
    chosen = chosen_at(study, study.fractions[0])
    for method in (m for m in study.methods if m.uses_unlabelled or m.name == "supervised"):
        read = [efficiency_of(study, study.results.get((method.name, f))) for f in study.fractions]
        found = [
            Point(
                e.result.labels,
                math.log2(e.times),
                band=(math.log2(e.interval[0]), math.log2(e.interval[1])) if e.interval else None,
            )
            for e in read
            if e is not None and e.sign == "="
        ]
        shown += [(method, in_order(found))] if found else []
    if all(method.name == "supervised" for method, _ in shown):
        return ""
    low, high = _range(shown)
    # The interval of ours belongs into the picture, as far as it does not dwarf the lines.
    ours = [p.band for m, found in shown if m.name == chosen for p in found[:1] if p.band]
    low = min([low, *(max(band[0], low - 1) for band in ours)])
    high = max([high, *(min(band[1], high + 1) for band in ours)])
    alt = "Times the labels that the supervised net needs. " + "; ".join(
        f"{m.title}: " + ", ".join(f"{_times(p.mean)} at {p.labels:,} labels" for p in found)
        for m, found in shown
    )
    axis = Scale(min(low, -0.3) - 0.1, max(high, 0.3) + 0.1, height - 62, 14)
    page = Page(study, width, height, short)
    return by_labels(page, shown, axis, [], _times, lambda v, _: _times(v), alt)


def _times(logarithm: float) -> str:
    return f"{2**logarithm:.2g}\N{MULTIPLICATION SIGN}"


def _range(shown: Sequence[Line]) -> tuple[float, float]:
    low = min(p.mean - p.std for _, found in shown for p in found)
    return low, max(p.mean + p.std for _, found in shown for p in found)


def _percent(mean: float, std: float) -> str:
    return f"{percent(mean, std)} %"


def _points(mean: float, std: float) -> str:
    return f"{points(mean)} ± {std * 100:.1f} points"


def _signed(share: float) -> str:
    return points(share).removesuffix(".0") if round(share * 1000) else "0"


def _points_of(study: Study, method: Method) -> list[Point]:
    found = [study.results.get((method.name, fraction)) for fraction in study.fractions]
    return in_order(
        [
            Point(r.labels, r.mean, r.std, (r.mean - half, r.mean + half) if half else None)
            for r in found
            if r is not None and r.labels
            for half in [r.half_width]
        ]
    )


def gain_plot(gains: Sequence[Difference], width: float = 340) -> str:
    """A row per label fraction: every seed's gain as a dot, their mean and its 95% interval."""
    ends = [0.0]
    for gain in gains:
        ends += [*gain.by_seed.values(), *(gain.interval or ())]
    row = 76.0
    height = row * len(gains) + 46
    x = Scale(min(ends) - 0.004, max(ends) + 0.004, 14, width - 14)
    out = []
    for tick in ticks(x.low, x.high, 5):
        for place in range(len(gains)):
            y = 26 + row * place
            out.append(line(x(tick), y, x(tick), y + 42, "zero" if tick == 0 else "grid"))
        out.append(
            text(
                x(tick),
                height - 22,
                _signed(tick),
                "axis",
                "middle",
            )
        )
    out.append(text(width / 2, height - 3, "points gained over supervised", "axis", "middle"))
    for place, gain in enumerate(gains):
        y = 38 + row * place
        fraction, colour = (
            fraction_title(gain.ours.label_fraction),
            gain.ours.method.colour,
        )
        out.append(text(14, y - 20, f"{fraction}: {points(gain.mean)} points, {gain.kind}", "bold"))
        if gain.interval is not None:
            out.append(line(x(gain.interval[0]), y, x(gain.interval[1]), y, "interval"))
        placed: list[float] = []
        for seed, value in gain.by_seed.items():
            title = f"seed {seed}: {points(value)} points"
            covered = sum(abs(x(value) - other) < DOT for other in placed)
            placed.append(x(value))
            lower = 1.6 * DOT * (covered % 3)  # so that none hides another
            out.append(marker(x(value), y + 15 + lower, "circle", colour, DOT, title))
        out.append(line(x(gain.mean), y - 8, x(gain.mean), y + 8, "mean"))
    alt = "Gain over supervised. " + "; ".join(
        f"{fraction_title(g.ours.label_fraction)}: mean {points(g.mean)} points, {g.kind}"
        for g in gains
    )
    return svg("".join(out), width, height, alt)
