"""The page: the answer first, then what it rests on. One file, nothing loaded from elsewhere."""

from collections.abc import Callable
from html import escape
from pathlib import Path

from pipeline.report.calibration import calibration_section
from pipeline.report.claims import claims
from pipeline.report.comparison import Difference, means, points
from pipeline.report.comparisons import comparisons_section
from pipeline.report.data import data_section
from pipeline.report.efficiency import Efficiency
from pipeline.report.gallery import map_section, neighbours_section, views_section
from pipeline.report.label_plots import (
    difference_plot,
    efficiency_plot,
    gain_plot,
    label_fraction_plot,
)
from pipeline.report.methods import fraction_title
from pipeline.report.mistakes import mistakes_section
from pipeline.report.papers import papers_section
from pipeline.report.pieces import missing
from pipeline.report.provenance import (
    clock,
    provenance_section,
    seconds_by_stage,
    time_section,
    warnings,
)
from pipeline.report.results import Study
from pipeline.report.runs import runs_section
from pipeline.report.sizes import sizes_section
from pipeline.report.tables import html_table
from pipeline.report.training import grid_section, label_curves_section, pretraining_section
from pipeline.report.transfer import transfer_section
from pipeline.report.uneven import html_section
from pipeline.report.verdict import efficiency_sentence, gain_at, labels_for_same, sentence

STYLE = Path(__file__).with_name("style.css")


def page(study: Study) -> str:
    """The whole of report/index.html."""
    title = escape(study.params.report.title)
    parts: list[tuple[str, str, Callable[[Study], str]]] = [
        ("gain", "What the unlabelled images were worth", gain_section),
        ("sizes", "Teachers and students", sizes_or_missing),
        ("mistakes", "Where the gain is", mistakes_or_missing),
        ("pictures", "What the net sees", pictures_section),
        ("training", "Training", training_section),
        ("transfer", "On other data", transfer_section),
        ("papers", "The papers' figures", papers_section),
        ("data", "Data", data_section),
        ("time", "Seconds per stage", time_section),
        ("provenance", "Provenance", provenance_section),
        ("runs", "Every number and its run", runs_section),
    ]
    body = "".join(
        f'<section id="{name}"><h2>{heading}</h2>{build(study)}</section>'
        for name, heading, build in parts
    )
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head>"
        f"<body><main><h1>{title}</h1>{first_screen(study)}<nav>{links}</nav>{body}"
        f"<footer>{footer(study)}</footer></main></body></html>\n"
    )


def first_screen(study: Study) -> str:
    warned = "".join(f'<p class="warning">{escape(said)}</p>' for said in warnings(study))
    plots = label_fraction_plot(study, 1040, 460, short=False)
    plots += label_fraction_plot(study, 340, 420, short=True)
    figure = f'<figure class="panel">{plots}</figure>' if plots else ""
    return (
        f'<section class="first"><p class="answer">{answer(study)}</p>'
        f"{method_note(study)}"
        f"{warned}{tiles(study)}{figure}{html_table(study)}{table_note(study)}"
        f"{html_section(study)}</section>"
    )


def answer(study: Study) -> str:
    """The sentence, its figure coloured only where it is clear."""
    words = escape(sentence(study))
    for gain in gains(study)[:1]:
        figure = points(gain.mean) if gain.kind != "loss" else points(-gain.mean)[1:]
        marked = f'<em class="{gain.kind.replace(" ", "-")}">{figure} points</em>'
        words = words.replace(f"{figure} points", marked, 1)
    return words


def gains(study: Study) -> list[Difference]:
    found = [gain_at(study, fraction) for fraction in study.fractions]
    return [gain for gain in found if gain is not None]


def method_note(study: Study) -> str:
    """What 'ours' is in the sentence above, and how the others fared."""
    found = gains(study)
    if not found:
        return ""
    first, rest = found[0], found[1:]
    also = ", ".join(
        f"{points(g.mean)} with {fraction_title(g.ours.label_fraction)} ({kind_words(g)})"
        for g in rest
    )
    more = f" With more labels: {also}." if also else ""
    return (
        f'<p class="lead">Ours here: {escape(first.ours.method.title.lower())}, chosen by '
        f"validation accuracy, not by the test set.{more}</p>"
    )


def kind_words(gain: Difference) -> str:
    words = {"gain": "clear", "loss": "a clear loss", "unclear": "not clear"}
    return words.get(gain.kind, "one seed, no verdict")


def tiles(study: Study) -> str:
    shown = []
    found = gains(study)
    if found:
        gain = found[0]
        before, after = means(gain)
        where = f"at {gain.ours.labels:,} labels"
        shown += [
            (f"{points(gain.mean)} points", f"gain {where}, {kind_words(gain)}"),
            (f"{before * 100:.1f} → {after * 100:.1f} %", f"supervised → ours {where}"),
        ]
        needed = labels_for_same(study, gain)
        if needed is not None:
            sign = "≈ " if needed.sign == "=" else "> "
            shown.append(
                (
                    f"{sign}{needed.times:.1f}\N{MULTIPLICATION SIGN} labels",
                    f"the supervised net needs for the same accuracy{_how_sure(needed)}",
                )
            )
    if study.train_images is not None:
        shown.append((f"{study.train_images:,}", "training images, seen without labels"))
    seconds = seconds_by_stage(study)
    if "pretrain" in seconds:
        whole = clock(sum(seconds.values()))
        shown.append((clock(seconds["pretrain"]), f"of pretraining; {whole} for it all"))
    items = "".join(
        f'<div class="tile"><b>{value}</b><span>{escape(what)}</span></div>'
        for value, what in shown
    )
    return f'<div class="tiles">{items}</div>' if items else ""


def _how_sure(needed: Efficiency) -> str:
    if needed.interval is None:
        return ""
    low, high = needed.interval
    return f"; 95% interval {low:.1f} to {high:.1f}"


def table_note(study: Study) -> str:
    validation = (study.shard.get("images") or {}).get("validation")
    count = "" if validation is None else f" ({validation:,} labelled images, never trained on)"
    return (
        "<p class='soft' style='margin-top:12px'>Mean ± standard deviation over seeds; a seed is "
        "a label subset with its own initialisation, the same subset for every method; bands are "
        "95% intervals of the mean (Student's t). "
        "<b>Bold</b>: highest in its column. <i class='chosen'>◆</i>chosen by validation accuracy "
        f"among nets of the same size{count}. Each number leads to its runs and names its file.</p>"
    )


def gain_section(study: Study) -> str:
    found = gains(study)
    rows = "".join(
        f'<li><span><span class="badge {claim.verdict.split()[0]}">{claim.verdict}</span></span>'
        f"<span>{escape(claim.text)}</span><small>{escape(claim.why)}</small></li>"
        for claim in claims(study)
    )
    listed = (
        f'<h3>Claims of the SimCLRv2 paper, on these numbers</h3><ul class="claims">{rows}</ul>'
    )
    if not found:
        return missing("supervised finetune") + listed
    return (
        '<div class="pair"><div><h3>Subset by subset</h3><p>Each dot is one label subset: ours '
        "minus supervised on the very same labels. Above the dots their mean, and its 95% "
        "confidence interval (Student's t, paired by seed). It is called a gain when the interval "
        f"leaves out 0, and unclear otherwise, however large the mean.</p>{gain_plot(found)}</div>"
        f"<div>{listed}</div></div>{over_supervised(study)}{efficiency(study)}"
        f"{comparisons_section(study)}"
    )


def efficiency(study: Study) -> str:
    plots = efficiency_plot(study, 1040, 400, short=False)
    plots += efficiency_plot(study, 340, 400, short=True)
    said = f" {escape(efficiency_sentence(study))}".rstrip()
    if not plots:
        return ""
    return (
        "<h3>Label efficiency</h3><p>Times the labels that the supervised net needs for the same "
        "accuracy, read off its own curve between the fractions that were run; at 1 there is no "
        f"gain. What that curve never reaches is not shown.{said} The interval reads each label "
        "subset's accuracy off the curve of the same subset; it knows nothing of the curve's shape "
        f'between two fractions.</p><figure class="panel">{plots}</figure>'
    )


def sizes_or_missing(study: Study) -> str:
    return sizes_section(study) or missing("distill_same distill_small")


def over_supervised(study: Study) -> str:
    plots = difference_plot(study, 1040, 400, short=False)
    plots += difference_plot(study, 340, 400, short=True)
    if not plots:
        return ""
    return (
        "<h3>Every method that uses the unlabelled images, over supervised</h3>"
        "<p>Points above or below the supervised net on the same labels, mean and deviation of the "
        f'differences over seeds.</p><figure class="panel">{plots}</figure>'
    )


def mistakes_or_missing(study: Study) -> str:
    found = mistakes_section(study)
    if not found:
        return missing("supervised finetune")
    return (
        "<p>Share of each true class (rows) by the answer given (columns), in percent; blank is "
        f"below half a percent. Blue is right, orange is wrong.</p>{found}"
        f"{calibration_section(study)}"
    )


def pictures_section(study: Study) -> str:
    found = views_section(study) + neighbours_section(study) + map_section(study)
    return found or missing("gallery")


def training_section(study: Study) -> str:
    return pretraining_section(study) + label_curves_section(study) + grid_section(study)


def footer(study: Study) -> str:
    return (
        "Made by <code>python -m pipeline report</code> from metrics, plots and the gallery; "
        f"profile {escape(study.params.profile)}. "
        "The same table is in label_fractions.csv and report.md."
    )
