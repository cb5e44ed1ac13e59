"""Can its confidence be believed: reliability, and the surest mistakes with their pictures."""

from html import escape
from statistics import fmean

import numpy as np

from pipeline.report.gallery import img
from pipeline.report.results import Result, Study
from pipeline.report.svg import Scale, line, marker, path, svg, text, y_grid
from pipeline.report.verdict import gain_at

Bins = list[tuple[float, float, float]]  # (images, mean confidence, accuracy), least sure first


def calibration_section(study: Study) -> str:
    """Supervised and ours at the fewest labels; empty where neither kept its answers."""
    gain = next((g for f in study.fractions if (g := gain_at(study, f))), None)
    if gain is None:
        return ""
    shown = [(result, bins_of(result)) for result in (gain.ours, gain.theirs)]
    cards = "".join(f"<figure>{_diagram(result, bins)}</figure>" for result, bins in shown if bins)
    diagrams = (
        "<h3>Can its confidence be believed?</h3><p>Test images by how sure the net was: on the "
        "line it is right as often as it says; below it, too sure of itself. A point's size is its "
        "share of the images. ECE is the mean distance from the line, weighted by images, "
        "of each net; scaled: with one temperature fitted on validation.</p>"
        f'<div class="pair">{cards}</div>'
        if cards
        else ""
    )
    return diagrams + "".join(_mistakes(study, result) for result, _ in shown)


def bins_of(result: Result) -> Bins:
    """The bins of all seeds together, by the place of their confidence among fifteen."""
    sums: dict[int, list[float]] = {}
    for row in result.rows:
        kept = row.get("reliability") or {"count": [], "confidence": [], "accuracy": []}
        for count, confidence, accuracy in zip(
            kept["count"], kept["confidence"], kept["accuracy"], strict=True
        ):
            place = min(int(confidence * 15), 14)
            known = sums.setdefault(place, [0.0, 0.0, 0.0])
            for number, value in enumerate((1.0, confidence, accuracy)):
                known[number] += count * value
    return [(n, c / n, a / n) for _, (n, c, a) in sorted(sums.items())]


def expected_calibration_error(bins: Bins) -> float:
    """Mean distance between confidence and accuracy, weighted by images (Guo et al. 2017)."""
    images = sum(count for count, _, _ in bins)
    return sum(count * abs(c - a) for count, c, a in bins) / images


def _error_words(result: Result, bins: Bins) -> str:
    """'ECE 8.1%, 2.0% scaled': the mean over the nets, and with a temperature of validation."""
    plain, scaled = (
        [row[name] for row in result.rows if row.get(name) is not None]
        for name in ("calibration_error", "calibration_error_scaled")
    )
    error = fmean(plain) if plain else expected_calibration_error(bins)
    more = f", {fmean(scaled) * 100:.1f}% scaled" if scaled else ""
    return f"ECE {error * 100:.1f}%{more}"


def _diagram(result: Result, bins: Bins, size: float = 340) -> str:
    x, y = Scale(0, 1, 48, size - 14), Scale(0, 1, size - 48, 50)
    said = _error_words(result, bins)
    title = f"{result.method.short}, {result.labels:,} labels"
    body = [
        text(0, 14, title, "bold"),
        text(0, 31, said, "axis"),
        y_grid(y, x.start, x.end, lambda v: f"{v:.0%}", 5),
    ]
    body += [
        text(x(tick), y.start + 19, f"{tick:.0%}", "axis", "middle")
        for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    ]
    body.append(text((x.start + x.end) / 2, size - 6, "how sure it was", "axis", "middle"))
    body.append(line(x(0), y(0), x(1), y(1), "guess"))
    colour = result.method.colour
    body.append(path([(x(c), y(a)) for _, c, a in bins], colour, 2))
    most = max(count for count, _, _ in bins)
    for count, confidence, accuracy in bins:
        words = f"{count:,.0f} answers, {confidence:.1%} sure, {accuracy:.1%} right"
        radius = 2.5 + 7 * (count / most) ** 0.5
        body.append(marker(x(confidence), y(accuracy), "circle", colour, radius, words))
    alt = f"Reliability of {title}. " + "; ".join(
        f"{c:.0%} sure, {a:.0%} right" for _, c, a in bins
    )
    return svg("".join(body), size, size, alt)


def _mistakes(study: Study, result: Result) -> str:
    """The wrong answers that the first net was surest of, with their pictures."""
    kept = study.predictions(result)
    if not kept:
        return ""
    (places,) = np.nonzero(kept["methods"] == result.method.name)
    if not len(places):
        return ""
    net, names = int(places[0]), study.class_names
    row_of = {position: row for row, position in enumerate(kept["shown"].tolist())}
    cards = []
    for position in kept["mistakes"][net].tolist():
        if position not in row_of:
            continue
        true, said = int(kept["classes"][position]), int(kept["said"][net, position])
        sure = float(kept["confidence"][net, position])
        key = escape(str(kept["keys"][position]))
        alt = f"{key}: {_name(names, true)} taken for {_name(names, said)}"
        cards.append(
            f'<div title="{key}">{img(kept["pictures"][row_of[position]], alt)}'
            f"<b>{escape(_name(names, true))}</b><span>✗ {escape(_name(names, said))}, "
            f"{sure:.1%} sure</span></div>"
        )
    if not cards:
        return ""
    title = f"{result.method.title}, {result.labels:,} labels"
    return (
        f"<h3>Surest mistakes: {escape(title)}</h3><p>Of the net of the first label subset. Some "
        "are the net's fault, and some the labels'.</p>"
        f'<div class="mistakes">{"".join(cards)}</div>'
    )


def _name(names: list[str], number: int) -> str:
    return names[number] if 0 <= number < len(names) else f"class {number}"
