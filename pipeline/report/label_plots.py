"""The study as pictures: accuracy and gain against the number of labels, gain by seed.

Accuracies and differences are fractions in [0, 1]; the axes show percent and points.
"""

from collections.abc import Callable, Sequence

from pipeline.report.comparison import Difference, compare, points
from pipeline.report.methods import Method, fraction_title
from pipeline.report.results import Study
from pipeline.report.svg import (
    LABEL_GAP,
    Scale,
    apart,
    line,
    marker,
    path,
    svg,
    text,
    ticks,
    y_grid,
)
from pipeline.report.tables import chosen_at, percent

Line = tuple[Method, list[tuple[int, float, float]]]  # (labels, mean, deviation), fewest first


def label_fraction_plot(study: Study, width: float, height: float, *, short: bool) -> str:
    """Test accuracy against the number of labels, a line per method with error bars.

    Supervised and ours (chosen on validation) stand out; the others are thin. `short` uses the
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
        f"{m.title}: " + ", ".join(f"{percent(mean)}% at {n:,} labels" for n, mean, _ in found)
        for m, found in shown
    )
    axis = Scale(max(low - pad, 0), min(high + pad, 1), height - 62, 14)
    return _by_labels(study, shown, axis, width, height, short, marks, lambda v: f"{v:.0%}", alt)


def difference_plot(study: Study, width: float, height: float, *, short: bool) -> str:
    """Points over the supervised net (0) on the same labels, for what uses unlabelled images."""
    shown: list[Line] = []
    for method in (m for m in study.methods if m.uses_unlabelled or m.name == "supervised"):
        pairs = [
            compare(study.results.get((method.name, f)), study.results.get(("supervised", f)))
            for f in study.fractions
        ]
        found = [(d.ours.labels, d.mean, d.deviation) for d in pairs if d and d.ours.labels]
        shown += [(method, sorted(found))] if found else []
    if all(method.name == "supervised" for method, _ in shown):
        return ""
    low, high = _range(shown)
    pad = max(0.06 * (high - low), 0.005)
    alt = "Points over supervised by number of labels. " + "; ".join(
        f"{m.title}: " + ", ".join(f"{points(mean)} at {n:,} labels" for n, mean, _ in found)
        for m, found in shown
    )
    axis = Scale(low - pad, high + pad, height - 62, 14)
    return _by_labels(study, shown, axis, width, height, short, [], _signed, alt)


def _range(shown: Sequence[Line]) -> tuple[float, float]:
    low = min(mean - std for _, found in shown for _, mean, std in found)
    return low, max(mean + std for _, found in shown for _, mean, std in found)


def _signed(share: float) -> str:
    return points(share).removesuffix(".0") if round(share * 1000) else "0"


def _by_labels(
    study: Study,
    shown: Sequence[Line],
    y: Scale,
    width: float,
    height: float,
    short: bool,
    marks: Sequence[tuple[float, str, str]],
    show: Callable[[float], str],
    alt: str,
) -> str:
    """A line per method over the number of labels; `marks` are named levels across the plot."""
    counts = sorted({labels for _, found in shown for labels, _, _ in found})
    right = width - (100 if short else 258)
    x = Scale(counts[0], counts[-1], 62, right - 14, log=True)
    chosen = {chosen_at(study, fraction) for fraction in study.fractions[:1]}
    body = [y_grid(y, x.start - 10, right, show)]
    for fraction in study.fractions:
        labels = study.labels(fraction)
        if labels in counts:
            body.append(_x_tick(x(labels), y.start, f"{labels:,}", fraction_title(fraction)))
    body.append(
        text((x.start + x.end) / 2, height - 4, "labelled images, log scale", "axis", "middle")
    )
    for level, css, name in marks:
        body.append(line(x.start - 10, y(level), right, y(level), css))
        body.append(text((x.start + x.end) / 2, y(level) - 6, name, "axis halo", "middle"))

    # Thin lines first, so that those that matter lie on top.
    strong = chosen | {"supervised"}
    ends = []
    # Side by side, so that error bars don't hide each other; far apart where there are no lines.
    step = (right - x.start) / 14 if len(counts) == 1 else 1.6 if short else 2.6
    for place, (method, found) in enumerate(sorted(shown, key=lambda item: item[0].name in strong)):
        shift = (place - (len(shown) - 1) / 2) * step
        body.append(_method_line(method, found, x, y, shift, strong=method.name in strong))
        ends.append((method, x(found[-1][0]) + shift, y(found[-1][1]), method.name in strong))
    body.append(_end_labels(ends, right + 8, 16, y.start, short=short))
    return svg("".join(body), width, height, alt, "narrow" if short else "wide")


def _points_of(study: Study, method: Method) -> list[tuple[int, float, float]]:
    found = [study.results.get((method.name, fraction)) for fraction in study.fractions]
    return sorted((r.labels, r.mean, r.std) for r in found if r is not None and r.labels)


def _method_line(
    method: Method,
    values: Sequence[tuple[int, float, float]],
    x: Scale,
    y: Scale,
    shift: float,
    *,
    strong: bool,
) -> str:
    width = 3.5 if strong else 1.5
    places = [(x(labels) + shift, y(mean)) for labels, mean, _ in values]
    out = [path(places, method.colour, width, method.dash)] if len(places) > 1 else []
    for (px, py), (labels, mean, std) in zip(places, values, strict=True):
        if std > 0:
            style = f' stroke="var(--{method.colour})" stroke-width="{width * 0.6:g}"'
            span = f"M{px:.1f} {y(mean - std):.1f}V{y(mean + std):.1f}"
            out.append(f'<path d="{span}" fill="none"{style}/>')
        title = f"{method.title}, {labels:,} labels: {percent(mean, std)} %"
        out.append(marker(px, py, method.marker, method.colour, 5.0 if strong else 3.4, title))
    return f'<g class="{"strong" if strong else "thin"}">{"".join(out)}</g>'


def _end_labels(
    ends: Sequence[tuple[Method, float, float, bool]],
    x: float,
    top: float,
    bottom: float,
    *,
    short: bool,
) -> str:
    """Names beside the lines' ends, moved apart, with a thread back to the line."""
    out = []
    places = apart([y for _, _, y, _ in ends], LABEL_GAP, top, bottom)
    for (method, from_x, from_y, strong), place in zip(ends, places, strict=True):
        thread = f"M{from_x + 6:.1f} {from_y:.1f}L{x - 4:.1f} {place:.1f}"
        out.append(f'<path d="{thread}" class="thread" stroke="var(--{method.colour})"/>')
        name = method.short if short else method.title
        out.append(marker(x + 4, place, method.marker, method.colour, 4, method.title))
        out.append(text(x + 14, place + 5, name, "bold" if strong else ""))
    return "".join(out)


def _x_tick(x: float, y: float, first: str, second: str = "") -> str:
    out = line(x, y, x, y + 6, "tick") + text(x, y + 21, first, "axis strong-axis", "middle")
    return out + (text(x, y + 38, second, "axis", "middle") if second else "")


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
        for seed, value in gain.by_seed.items():
            title = f"seed {seed}: {points(value)} points"
            out.append(marker(x(value), y + 18, "circle", colour, 4.5, title))
        out.append(line(x(gain.mean), y - 8, x(gain.mean), y + 8, "mean"))
    alt = "Gain over supervised. " + "; ".join(
        f"{fraction_title(g.ours.label_fraction)}: mean {points(g.mean)} points, {g.kind}"
        for g in gains
    )
    return svg("".join(out), width, height, alt)
