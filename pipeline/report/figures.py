"""Curves of training and the map of the embeddings, as SVG text.

Everything here takes numbers; nothing reads a file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.report.svg import LABEL_GAP, Scale, apart, path, svg, text, ticks, y_grid


@dataclass(frozen=True)
class Curve:
    """A line of a chart: (x, y) points, a colour of the page and a name."""

    points: list[tuple[float, float]]
    colour: str
    name: str = ""
    dash: str = ""
    width: float = 2.0


def curve_chart(
    title: str,
    curves: Sequence[Curve],
    x_label: str,
    show: Callable[[float], str],
    width: float = 340,
    height: float = 230,
) -> str:
    """A small line chart; with more than one curve, names stand at the lines' ends."""
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return ""
    named = len(curves) > 1
    values = [y for curve in curves for _, y in curve.points]
    low, high = min(values), max(values)
    pad = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
    right = width - (112 if named else 12)
    last = max(x for curve in curves for x, _ in curve.points)
    first = min(x for curve in curves for x, _ in curve.points)
    x = Scale(first, last, 58, right)
    y = Scale(low - (pad if low - pad >= 0 or low < 0 else low), high + pad, height - 46, 34)
    out = [text(0, 16, title, "bold"), y_grid(y, x.start, x.end, show, 4)]
    out += [
        text(x(tick), y.start + 19, f"{tick:,g}", "axis", "middle")
        for tick in ticks(first, last, 3 if named else 4)
    ]
    out.append(text((x.start + x.end) / 2, height - 6, x_label, "axis", "middle"))
    for curve in curves:
        places = [(x(a), y(b)) for a, b in thinned(curve.points)]
        out.append(path(places, curve.colour, curve.width, curve.dash))
    if named:
        ends = apart([y(c.points[-1][1]) for c in curves], LABEL_GAP, 34, y.start)
        for curve, place in zip(curves, ends, strict=True):
            from_y = y(curve.points[-1][1])
            thread = f"M{x(curve.points[-1][0]):.1f} {from_y:.1f}L{x.end + 8:.1f} {place:.1f}"
            out.append(f'<path d="{thread}" class="thread" stroke="var(--{curve.colour})"/>')
            swatch = [(x.end + 8, place), (x.end + 22, place)]
            out.append(path(swatch, curve.colour, 3, curve.dash))
            out.append(text(x.end + 26, place + 5, curve.name))
    ranges = "; ".join(
        f"{c.name or title}: {show(c.points[0][1])} at {c.points[0][0]:g}, "
        f"{show(c.points[-1][1])} at {c.points[-1][0]:g}"
        for c in curves
    )
    return svg("".join(out), width, height, f"{title} by {x_label}. {ranges}")


def thinned(values: Sequence[tuple[float, float]], most: int = 300) -> list[tuple[float, float]]:
    """At most about `most` of the points, first and last among them."""
    step = max(len(values) // most, 1)
    kept = list(values[::step])
    return kept if kept[-1] == values[-1] else [*kept, values[-1]]


def embedding_map(
    xy_M2: NDArray[np.float32],
    classes_M: NDArray[np.integer],
    names: Sequence[str],
    title: str,
    size: float = 400,
) -> str:
    """Points coloured by class, each class named at the median of its points."""
    low, high = np.percentile(xy_M2, [0.5, 99.5], axis=0)
    unit_M2 = np.clip((xy_M2 - low) / np.maximum(high - low, 1e-9), -0.02, 1.02)
    px_M2 = 14 + unit_M2 * (size - 28)
    out, centres = [], []
    present = [int(number) for number in np.unique(classes_M) if number >= 0]  # -1: no label
    for number in present:
        px_N2 = px_M2[classes_M == number]
        d = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in px_N2)
        name = names[number] if number < len(names) else str(number)
        out.append(
            f'<path class="cloud" d="{d}" stroke="{class_colour(number, len(names))}">'
            f"<title>{name}</title></path>"
        )
        centres.append((name, *np.median(px_N2, axis=0)))
    if len(centres) <= 24:
        for (name, cx, _), cy in zip(
            centres, apart([c[2] for c in centres], 17, 20, size - 8), strict=True
        ):
            half = 4.2 * len(name)
            out.append(text(min(max(cx, half), size - half), cy + 5, name, "map-name", "middle"))
    frame = f'<rect class="frame" x="1" y="1" width="{size - 2:g}" height="{size - 2:g}" rx="8"/>'
    alt = f"{title}: {len(xy_M2)} held-out images in two dimensions, {len(present)} classes"
    return svg(frame + "".join(out), size, size, alt)


def class_colour(number: int, classes: int) -> str:
    """Ten colours told apart by the colour-blind; beyond ten, hues that also differ in depth."""
    if classes <= 10:
        return f"var(--class{number % 10})"
    hue = number * 137.5 % 360
    return f"hsl({hue:.0f} 60% {(42, 55, 66)[number % 3]}%)"
