"""Lines over the number of labels: the frame that the study's plots share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.report.methods import Method, fraction_title
from pipeline.report.results import Study
from pipeline.report.svg import LABEL_GAP, Scale, apart, line, marker, path, svg, text, y_grid
from pipeline.report.tables import chosen_at


@dataclass(frozen=True)
class Point:
    """A value at a number of labels, the deviation over seeds, and the 95% interval of the mean."""

    labels: int
    mean: float
    std: float = 0.0
    band: tuple[float, float] | None = None


Tip = Callable[[float, float], str]  # of a mean and its deviation
Line = tuple[Method, list[Point]]  # fewest labels first


def in_order(found: Sequence[Point]) -> list[Point]:
    return sorted(found, key=lambda point: point.labels)


@dataclass(frozen=True)
class Page:
    """Where a plot stands: `short` uses the short names, for a narrow screen."""

    study: Study
    width: float
    height: float
    short: bool


def by_labels(
    page: Page,
    shown: Sequence[Line],
    y: Scale,
    marks: Sequence[tuple[float, str, str]],
    show: Callable[[float], str],
    tip: Tip,
    alt: str,
) -> str:
    """A line per method over the number of labels; `marks` are named levels across the plot."""
    study, height, short = page.study, page.height, page.short
    counts = sorted({p.labels for _, found in shown for p in found})
    right = page.width - (112 if short else 258)
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

    for method, found in shown:
        if method.name in chosen | {"supervised"}:
            body.append(_band(method, found, x, y))
    # Thin lines first, so that those that matter lie on top.
    strong = chosen | {"supervised"}
    ends = []
    # Side by side, so that error bars don't hide each other; far apart where there are no lines.
    step = (right - x.start) / 14 if len(counts) == 1 else 1.6 if short else 2.6
    for place, (method, found) in enumerate(sorted(shown, key=lambda item: item[0].name in strong)):
        shift = (place - (len(shown) - 1) / 2) * step
        body.append(_method_line(method, found, x, y, shift, tip, strong=method.name in strong))
        ends.append((method, x(found[-1].labels) + shift, y(found[-1].mean), method.name in strong))
    body.append(_end_labels(ends, right + 8, 16, y.start, short=short))
    return svg("".join(body), page.width, height, alt, "narrow" if short else "wide")


def _band(method: Method, values: Sequence[Point], x: Scale, y: Scale) -> str:
    """The 95% intervals as an area, cut off at the plot's edges."""
    known = [(x(p.labels), *p.band) for p in values if p.band is not None]
    if len(known) < 2:
        return ""

    def inside(value: float) -> float:
        return y(min(max(value, y.low), y.high))

    above = [f"{px:.1f} {inside(high):.1f}" for px, _, high in known]
    below = [f"{px:.1f} {inside(low):.1f}" for px, low, _ in reversed(known)]
    d = f"M{'L'.join([*above, *below])}z"
    return f'<path d="{d}" class="band" fill="var(--{method.colour})"/>'


def _method_line(
    method: Method,
    values: Sequence[Point],
    x: Scale,
    y: Scale,
    shift: float,
    show: Tip,
    *,
    strong: bool,
) -> str:
    width = 3.5 if strong else 1.5
    places = [(x(p.labels) + shift, y(p.mean)) for p in values]
    out = [path(places, method.colour, width, method.dash)] if len(places) > 1 else []
    for (px, py), point in zip(places, values, strict=True):
        mean, std = point.mean, point.std
        if std > 0:
            style = f' stroke="var(--{method.colour})" stroke-width="{width * 0.6:g}"'
            span = f"M{px:.1f} {y(mean - std):.1f}V{y(mean + std):.1f}"
            out.append(f'<path d="{span}" fill="none"{style}/>')
        title = f"{method.title}, {point.labels:,} labels: {show(mean, std)}"
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
