"""Small pieces of SVG that take their colours from the page, so light and dark come for free.

Lengths are in viewBox units, one per CSS pixel at natural size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from pipeline.report.methods import Marker

LABEL_GAP = 17.0  # pixels between two labels of 14 pixels


@dataclass(frozen=True)
class Scale:
    """Data from `low` to `high` onto pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = 0.5 if high == low else (value - low) / (high - low)
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) within [low, high], about `count`."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((1, 2, 5, 10), key=lambda m: abs(math.log(m * power / raw)))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def svg(body: str, width: float, height: float, alt: str, css: str = "") -> str:
    """A whole figure. `alt` says what is seen, for those who don't see it."""
    return (
        f'<svg class="{css}" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'style="max-width:{width * 1.25:g}px" aria-label="{escape(alt)}">{body}</svg>'
    )


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(x: float, y: float, words: str, css: str = "", anchor: str = "start") -> str:
    return (
        f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
    )


def path(points: Sequence[tuple[float, float]], colour: str, width: float, dash: str = "") -> str:
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<path d="{d}" fill="none" stroke="var(--{colour})" stroke-width="{width:g}"'
        f'{dashed} stroke-linejoin="round"/>'
    )


def marker(x: float, y: float, shape: Marker, colour: str, size: float, title: str) -> str:
    """A point with a tooltip; shapes differ so that colour is never the only difference."""
    s = size
    outline = {
        "square": f"M{x - s:.1f} {y - s:.1f}h{2 * s:g}v{2 * s:g}h{-2 * s:g}z",
        "diamond": f"M{x:.1f} {y - 1.4 * s:.1f}l{1.4 * s:g} {1.4 * s:g}l{-1.4 * s:g} {1.4 * s:g}"
        f"l{-1.4 * s:g} {-1.4 * s:g}z",
        "up": f"M{x:.1f} {y - 1.3 * s:.1f}l{1.25 * s:g} {2.2 * s:g}h{-2.5 * s:g}z",
        "down": f"M{x:.1f} {y + 1.3 * s:.1f}l{1.25 * s:g} {-2.2 * s:g}h{-2.5 * s:g}z",
    }
    body = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{s:g}"'
        if shape == "circle"
        else f'<path d="{outline[shape]}"'
    )
    tag = "circle" if shape == "circle" else "path"
    return f'{body} class="mark" fill="var(--{colour})"><title>{escape(title)}</title></{tag}>'


def y_grid(y: Scale, x1: float, x2: float, show: Callable[[float], str], count: int = 5) -> str:
    """Lines across the plot at round numbers, each with its number at the left."""
    out = []
    for tick in ticks(y.low, y.high, count):
        out.append(line(x1, y(tick), x2, y(tick), "grid"))
        out.append(text(x1 - 6, y(tick) + 5, show(tick), "axis", "end"))
    return "".join(out)


def apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near the wanted ones, at least `gap` apart and within [low, high] where they fit."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    gap = min(gap, (high - low) / max(len(order) - 1, 1))
    # Blocks of touching labels, each centred on the mean of what its labels want.
    blocks: list[list[int]] = []
    for i in order:
        blocks.append([i])
        while len(blocks) > 1 and _top(blocks[-1], wanted, gap) < (
            _top(blocks[-2], wanted, gap) + gap * len(blocks[-2])
        ):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    places = [0.0] * len(wanted)
    for block in blocks:
        top = _top(block, wanted, gap)
        for offset, i in enumerate(block):
            places[i] = top + gap * offset
    floor = low
    for i in order:
        places[i] = floor = max(places[i], floor)
        floor += gap
    ceiling = high
    for i in reversed(order):
        places[i] = ceiling = min(places[i], ceiling)
        ceiling -= gap
    return places


def _top(block: Sequence[int], wanted: Sequence[float], gap: float) -> float:
    return sum(wanted[i] for i in block) / len(block) - gap * (len(block) - 1) / 2
