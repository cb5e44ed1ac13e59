"""The transfer section: frozen features on data sets that pretraining never saw."""

from collections import defaultdict
from html import escape

from pipeline.report.pieces import missing
from pipeline.report.results import Record, Study


def transfer_section(study: Study) -> str:
    details = study.details("transfer")
    rows = details.get("rows") or []
    titles = {
        "raw_pixels_linear": "Raw pixels, linear",
        "random_linear": "Untrained net, linear",
        "linear_probe": "Pretrained, linear",
        "knn": "Pretrained, kNN",
    }
    table: dict[str, dict[str, Record]] = defaultdict(dict)
    for row in rows:
        table[row["dataset"]][row["method"]] = row
    order = [*titles, *sorted({row["method"] for row in rows} - set(titles))]
    out = []
    for dataset, found in table.items():
        best = max(row["test_accuracy"] for row in found.values())
        some = next(iter(found.values()))
        size = [f"{some[key]:,} {key}" for key in ("classes", "images") if some.get(key)]
        cells = []
        for method in order:
            row = found.get(method)
            shown = "\N{EN DASH}" if row is None else f"{row['test_accuracy'] * 100:.1f}"
            bold = row is not None and row["test_accuracy"] == best
            tip = (
                ""
                if row is None or row.get("macro_f1") is None
                else (f' title="macro F1 {row["macro_f1"] * 100:.1f}%; metrics/transfer.json"')
            )
            cells.append(f"<td{tip}>{f'<b>{shown}</b>' if bold else shown}</td>")
        name = f'<th scope="row">{escape(dataset)} <small>{", ".join(size)}</small></th>'
        out.append(f"<tr>{name}{''.join(cells)}</tr>")
    skipped = "".join(
        f"<p class='soft'>Skipped: <b>{escape(str(s.get('dataset')))}</b>, "
        f"{escape(str(s.get('reason')))}</p>"
        for s in details.get("skipped") or []
    )
    if not out:
        return skipped or missing("transfer")
    heads = "".join(f'<th scope="col">{escape(titles.get(m, m))}</th>' for m in order)
    return (
        "<p>The frozen net, pretrained on this project's images only, on data it never saw. Test "
        "accuracy in percent; raw pixels show what the task asks for without any net.</p>"
        f'<div class="scroll"><table><thead><tr><th scope="col">Data set</th>{heads}</tr></thead>'
        f"<tbody>{''.join(out)}</tbody></table></div>{skipped}"
    )
