"""The transfer section: other data sets, which method differs from which, and what was not here."""

from collections import defaultdict
from html import escape

from pipeline.report.comparison import points
from pipeline.report.papers import UNVERIFIED, published_for
from pipeline.report.pieces import missing
from pipeline.report.results import Record, Study

TITLES = {
    "raw_pixels_linear": "Raw pixels, linear",
    "random_linear": "Untrained net, linear",
    "supervised_linear": "Supervised net, linear",
    "linear_probe": "Pretrained, linear",
    "knn": "Pretrained, kNN",
    "scratch": "From scratch, whole net",
    "supervised_finetune": "Supervised, fine-tuned",
    "finetune": "Pretrained, fine-tuned",
}
METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "mean over classes",
    "mean_average_precision": "11-point mAP",
}
DASH = "\N{EN DASH}"


def transfer_section(study: Study) -> str:
    details = study.details("transfer")
    table: dict[str, dict[str, Record]] = defaultdict(dict)
    for row in details.get("rows") or []:
        table[row["dataset"]][row["method"]] = row
    skipped = skipped_list(details.get("skipped") or [])
    if not table:
        if details and not study.params.transfer.datasets:
            return "<p>None was asked for: <code>transfer.datasets</code> is empty.</p>"
        return skipped or missing("transfer")
    used = {method for found in table.values() for method in found}
    order = [method for method in TITLES if method in used]
    order += sorted(used - set(TITLES))
    heads = "".join(f'<th scope="col">{_title(m)}</th>' for m in order)
    body = "".join(_row(dataset, found, order) for dataset, found in table.items())
    return (
        "<p>The net, pretrained on this project's images only, on data it never saw: frozen with a "
        "linear classifier on it, and where asked for the whole net trained on. In percent of each "
        "data set's own measure; raw pixels show what the task asks for without any net.</p>"
        f'<div class="scroll"><table><thead><tr><th scope="col">Data set</th>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        f"{tests_list(details.get('tests') or [])}{_published(list(table))}{skipped}"
    )


def _row(dataset: str, found: dict[str, Record], order: list[str]) -> str:
    best = max(score_of(row) for row in found.values())
    some = next(iter(found.values()))
    size = [f"{some[key]:,} {key}" for key in ("classes", "images") if some.get(key)]
    size.append(METRICS[some.get("metric", "accuracy")])
    cells = []
    for method in order:
        row = found.get(method)
        shown = DASH if row is None else f"{score_of(row) * 100:.1f}"
        bold = row is not None and score_of(row) == best
        f1 = None if row is None else row.get("macro_f1")
        tip = "" if f1 is None else f' title="macro F1 {f1 * 100:.1f}%; metrics/transfer.run.json"'
        cells.append(f"<td{tip}>{f'<b>{shown}</b>' if bold else shown}</td>")
    name = f'<th scope="row">{escape(dataset)} <small>{", ".join(size)}</small></th>'
    return f"<tr>{name}{''.join(cells)}</tr>"


def score_of(row: Record) -> float:
    return float(row.get("score", row["test_accuracy"]))


def tests_list(tests: list[Record]) -> str:
    """What the permutation test says of each pair; that nothing differs is a verdict, too."""
    if not tests:
        return ""
    lines = "".join(
        f"<li><b>{escape(test['dataset'])}</b>: {_title(test['method'])} against "
        f"{_title(test['against']).lower()}: {points(test['difference'])} points, "
        f"<b>{escape(test['verdict'])}</b> (p = {test['p']:g})</li>"
        for test in tests
    )
    return (
        "<h3>Do they differ?</h3><p>Permutation test over the test images, both answers to an "
        f"image swapped; no difference above p = 0.05.</p><ul class='soft'>{lines}</ul>"
    )


def _title(method: str) -> str:
    return escape(TITLES.get(method, method))


def _published(datasets: list[str]) -> str:
    lines = "".join(
        f"<li>{escape(row.dataset)}: {escape(row.method)}, {row.value:g}% "
        f"<small>({escape(row.setting)}; {escape(row.source)}"
        f"{'' if row.verified else f'; {UNVERIFIED}'})</small></li>"
        for name in datasets
        for row in published_for(name)
    )
    return f"<h3>Published on the same images</h3><ul class='soft'>{lines}</ul>" if lines else ""


def skipped_list(skipped: list[Record]) -> str:
    if not skipped:
        return ""
    lines = "".join(
        f"<p class='soft'>Skipped: <b>{escape(str(s.get('dataset')))}</b>, "
        f"{escape(str(s.get('reason')))}</p>"
        for s in skipped
    )
    then = "dvc repro --force --single-item transfer"  # dvc does not look into transfer.root
    return f"{lines}<p class='soft'>When it is there: <code>{then}</code></p>"
