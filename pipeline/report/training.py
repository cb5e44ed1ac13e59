"""The training section: curves of pretraining and on labels, and the baseline's tuning."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from html import escape
from statistics import fmean

from pipeline.report.figures import Curve, curve_chart
from pipeline.report.methods import Method, finetuned, fraction_title, record_name
from pipeline.report.pieces import facts_list, missing, shown
from pipeline.report.reading import Record
from pipeline.report.results import Study


def pretraining_section(study: Study) -> str:
    rows, numbers = study.curve("pretrain"), study.record("pretrain")
    if not rows and not numbers:
        return missing("pretrain")
    charts = [
        _chart(rows, "loss", "Contrastive loss, nats", lambda v: f"{v:.3g}"),
        _chart(rows, "contrastive_accuracy", "Partner found", lambda v: f"{v * 100:.3g}%"),
        _chart(rows, "effective_rank", "Effective rank of z", lambda v: f"{v:.3g}"),
        _chart(rows, "z_std", "Spread of z", lambda v: f"{v:.3g}"),
        _chart(rows, "online_knn", "Validation, kNN on h", lambda v: f"{v * 100:.3g}%"),
        _chart(rows, "online_linear", "Validation, linear on h", lambda v: f"{v * 100:.3g}%"),
        _chart(rows, "grad_norm", "Norm of the gradient", lambda v: f"{v:.2g}"),
        _chart(rows, "update_ratio", "Update, share of the weights", lambda v: f"{v:.2g}"),
        _chart(rows, "queue_age", "Age of the queue, steps", lambda v: f"{v:.3g}"),
        _chart(rows, "lr", "Learning rate", lambda v: f"{v:.2g}"),
        _chart(rows, "images_per_second", "Images per second", lambda v: f"{v:,.0f}"),
    ]
    origin = study.details("pretrain").get("origin")
    facts = [
        ("Not trained here, but taken from", escape(origin["init_from"]) if origin else ""),
        ("Contrastive loss at the end", shown(numbers, "loss", "{:.3f} nats")),
        ("Partner found", shown(numbers, "contrastive_accuracy", "{:.1%}")),
        ("Effective rank of z", shown(numbers, "effective_rank", "{:.1f}")),
        ("Spread of z", shown(numbers, "z_std", "{:.4f}")),
        ("Effective rank of h", shown(study.record("gallery"), "effective_rank_h", "{:.1f}")),
        ("Alignment, uniformity", _two(numbers, "alignment", "uniformity")),
        ("Steps, images seen", _counts(numbers)),
        ("Speed", shown(numbers, "images_per_second", "{:,.0f} images/s")),
        ("Time waiting for images", shown(numbers, "waited_share", "{:.1%}")),
        ("What befell it", _events(study.details("pretrain").get("events") or [])),
        (
            "Shards in a batch, of a full shuffle",
            shown(numbers, "shards_per_batch_of_full_shuffle", "{:.1%}"),
        ),
    ]
    return (
        "<p>The effective rank falls to 1 when a net collapses, that is, gives every image the "
        f'same answer.</p><div class="cards">{"".join(charts)}</div>{facts_list(facts, "two")}'
    )


def _events(events: list[Record]) -> str:
    """Rollbacks and a collapse, in words; '' where all went well."""
    told = [
        f"rolled back from step {event['from_step']:,} to {event['to_step']:,}"
        if event["kind"] == "rollback"
        else f"collapsed by step {event['step']:,}"
        for event in events
    ]
    return ", ".join(told)


def _chart(
    rows: list[dict[str, float]], column: str, title: str, show: Callable[[float], str]
) -> str:
    x = "epoch" if any("epoch" in row for row in rows) else "step"
    values = [(row[x], row[column]) for row in rows if x in row and column in row]
    drawing = curve_chart(title, [Curve(values, "layer1")], x, show)
    return f"<figure>{drawing}</figure>" if drawing else ""


def label_curves_section(study: Study) -> str:
    """Training loss on labels, the mean over seeds: one chart per label fraction."""
    by_name = {method.name: method for method in study.methods}
    on_labels = [by_name["supervised"]]
    on_labels += [by_name[finetuned(layer).name] for layer in sorted(study.params.finetune.layers)]
    students = [by_name["distill_same"], by_name["distill_small"]]
    charts = []
    for methods, what in ((on_labels, "labels"), (students, "soft labels")):
        for fraction in study.fractions:
            curves = [loss_curve(study, method, fraction) for method in methods]
            title = f"Loss on {what}, {fraction_title(fraction)}"
            drawing = curve_chart(title, curves, "step", lambda v: f"{v:.2g}")
            charts += [f"<figure>{drawing}</figure>"] if drawing else []
    if not charts:
        return missing("finetune")
    return (
        "<h3>On labels, and on the teacher's soft labels</h3><p>Training loss, mean over seeds; "
        "the supervised net in the setting it chose on validation.</p>"
        f'<div class="cards">{"".join(charts)}</div>'
    )


def loss_curve(study: Study, method: Method, fraction: str) -> Curve:
    by_step: dict[float, list[float]] = defaultdict(list)
    for row in study.curve(record_name(method, fraction), method.name):
        if "step" in row and "loss" in row:
            by_step[row["step"]].append(row["loss"])
    # Seeds may have chosen runs of unlike length: a mean over fewer of them would jump.
    most = max(map(len, by_step.values()), default=0)
    points = [(step, fmean(v)) for step, v in sorted(by_step.items()) if len(v) == most]
    return Curve(points, method.colour, method.short, method.dash)


def grid_section(study: Study) -> str:
    """Every setting the baseline was tried in, by its validation accuracy."""
    grids = {f: study.details(f"supervised/{f}").get("grid") or [] for f in study.fractions}
    lengths = {f: {str(tried.get("duration")) for tried in grid} for f, grid in grids.items()}
    one_each = all(len(lengths_of) <= 1 for lengths_of in lengths.values())
    table: dict[str, dict[str, float]] = defaultdict(dict)
    for fraction, grid in grids.items():
        for tried in grid:
            table[_setting(tried, with_length=not one_each)][fraction] = tried[
                "validation_accuracy"
            ]
    if not table:
        return ""
    fractions = [f for f in study.fractions if any(f in row for row in table.values())]
    best = {f: max(row[f] for row in table.values() if f in row) for f in fractions}
    heads = "".join(
        f'<th scope="col">{fraction_title(f)}'
        + (f"<small>{escape(', '.join(lengths[f]))}</small></th>" if one_each else "</th>")
        for f in fractions
    )
    rows = []
    for words, row in table.items():
        shown = [(row.get(f), best[f]) for f in fractions]
        cells = "".join(
            "<td></td>" if value is None else f"<td>{_bold(f'{value:.1%}', value == top)}</td>"
            for value, top in shown
        )
        rows.append(f'<tr><th scope="row">{escape(words)}</th>{cells}</tr>')
    return (
        "<h3>How the supervised baseline was tuned</h3><p>Validation accuracy of every setting "
        "tried, on the first label subset; the best (bold) is used for all subsets.</p>"
        '<div class="scroll"><table><thead><tr><th scope="col">Setting</th>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{_ends_of(grids)}"
    )


def _ends_of(grids: Mapping[str, list[Record]]) -> str:
    """Where the best rate is the last one tried, a wider grid might do better, and that is said."""
    ends: dict[str, list[str]] = defaultdict(list)
    for fraction, grid in grids.items():
        rates = sorted({tried["base_lr"] for tried in grid})
        if len(rates) < 2:
            continue
        best = max(grid, key=lambda tried: tried["validation_accuracy"])["base_lr"]
        for end, which in ((rates[0], "lowest"), (rates[-1], "highest")):
            if best == end:
                ends[f"the {which} rate tried ({end:g})"].append(fraction_title(fraction))
    said = "; ".join(f"{which} at {', '.join(at)}" for which, at in ends.items())
    return f"<p class='soft'>Best was {said}: beyond it nothing was tried.</p>" if said else ""


def _setting(tried: Record, *, with_length: bool) -> str:
    """A setting in a few words: what is tried, without the names of the params."""
    views = dict(tried.get("views") or {})
    crop_area = views.pop("crop_area", None)
    jitter = views.pop("jitter_probability", 0)
    strengths = {views.pop(name, 0) for name in ("brightness", "contrast")} if jitter else set()
    words = [f"rate {tried['base_lr']:g}"]
    if with_length:
        words.append(str(tried["duration"]))
    if crop_area:
        words.append(f"crops from {crop_area[0]:.0%}")
    if strengths:
        words.append(f"jitter {' and '.join(f'{s:g}' for s in sorted(strengths))}")
    return ", ".join([*words, *(f"{key}: {value}" for key, value in views.items())])


def _bold(words: str, yes: bool) -> str:
    return f"<b>{words}</b>" if yes else words


def _two(record: Record, first: str, second: str) -> str:
    if record.get(first) is None or record.get(second) is None:
        return ""
    return f"{record[first]:.3f}, {record[second]:.3f}".replace("-", "\N{MINUS SIGN}")


def _counts(record: Record) -> str:
    both = [shown(record, "steps", "{:,} steps"), shown(record, "images", "{:,} images")]
    return ", ".join(part for part in both if part)
