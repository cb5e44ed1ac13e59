"""The data section: images, what was set aside, and the label subsets."""

from collections.abc import Sequence
from html import escape
from typing import Any

from pipeline.report.methods import fraction_title
from pipeline.report.pieces import facts_list, missing, shown
from pipeline.report.reading import Record
from pipeline.report.results import Study

MOST_LISTED = 50  # quarantined or doubled images named in the page; all are in shard.run.json


def data_section(study: Study) -> str:
    shard = study.shard
    if not shard:
        return missing("shard")
    images = shard.get("images") or {}
    details = study.shard_details
    parts = " / ".join(f"{images[k]:,} {k}" for k in ("train", "validation", "test") if k in images)
    facts = [
        ("Images", parts),
        ("Classes", shown(shard, "classes", "{:,}")),
        ("With a label", shown(shard, "labelled", "{:,}")),
        ("Shards", _counts_of_shards(shard)),
        ("Quarantined", shown(shard, "quarantined", "{:,}")),
        ("Duplicates", shown(shard, "duplicates", "{:,}")),
        ("Near duplicates", _near(shard)),
        (
            "Fingerprint",
            f"<code>{escape(str(details.get('fingerprint', '?')))}</code>",
        ),
    ]
    return (
        facts_list(facts, "two")
        + _listing("Quarantined images", details.get("quarantine") or [])
        + _listing("Duplicates", details.get("duplicates") or [])
        + _listing("Near duplicates", details.get("near_duplicates") or [])
        + subsets_table(study)
    )


def _near(shard: Record) -> str:
    """'74, 18 groups across splits': what a test figure may owe to a training picture."""
    if "near_duplicates" not in shard:
        return "?"
    groups, dropped = shard["near_duplicates_across_splits"], shard["near_duplicates_dropped"]
    left_out = f", {dropped:,} left out" if dropped else ""
    across = f", {groups:,} {'group' if groups == 1 else 'groups'} across splits" if groups else ""
    return f"{shard['near_duplicates']:,}{across}{left_out}"


def _listing(title: str, entries: list[Any]) -> str:
    if not entries:
        return ""
    lines = [f"<li><code>{escape(_words_of(entry))}</code></li>" for entry in entries[:MOST_LISTED]]
    more = len(entries) - len(lines)
    rest = f"<p>and {more:,} more, in metrics/shard.run.json</p>" if more > 0 else ""
    return (
        f"<details><summary>{title} ({len(entries):,})</summary><ul>{''.join(lines)}</ul>"
        f"{rest}</details>"
    )


def _words_of(entry: Any) -> str:
    """'keys: a, b; sides: train, test'."""
    if isinstance(entry, str):
        return entry
    told = {
        key: ", ".join(map(str, value)) if isinstance(value, list) else value
        for key, value in entry.items()
    }
    return "; ".join(f"{key}: {value}" for key, value in told.items())


def subsets_table(study: Study) -> str:
    """Every label subset: how many labels, how even over the classes, and its digest."""
    rows, columns = [], {}
    for fraction in study.fractions:
        numbers = study.record(f"subsets/{fraction}")
        seeds = study.details(f"subsets/{fraction}").get("seeds") or []
        columns[fraction] = [s["per_class"] for s in seeds if s.get("per_class")]
        if not numbers and not seeds:
            continue
        digests = " ".join(f"<code>{escape(str(s.get('sha256', '?'))[:12])}</code>" for s in seeds)
        each = [numbers[k] for k in ("per_class_min", "per_class_max") if k in numbers]
        rows.append(
            f'<tr><th scope="row">{fraction_title(fraction)}</th>'
            f"<td>{shown(numbers, 'labels', '{:,}')}</td><td>{_span(each)}</td>"
            f"<td>{_copies_inside(numbers)}</td>"
            f'<td>{len(seeds)}</td><td class="word">{digests}</td></tr>'
        )
    if not rows:
        return ""
    heads = (
        "Labels, each",
        "Of each class",
        "Copies, near copies",
        "Subsets",
        "Digests of their lists of keys",
    )
    head = "".join(
        f'<th scope="col"{css}>{title}</th>'
        for title, css in zip(heads, ("", "", "", "", ' class="word"'), strict=True)
    )
    return (
        '<h3>Label subsets</h3><div class="scroll"><table><thead><tr><th scope="col">Fraction</th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"{_classes_of_subsets(study, columns)}"
    )


def _copies_inside(numbers: Record) -> str:
    """Of the worst subset: images whose copy, exact or near, is in it too."""
    names = ("duplicates", "near_duplicates")
    return ", ".join(shown(numbers, name, "{:,}") for name in names)


def _classes_of_subsets(study: Study, columns: dict[str, list[list[int]]]) -> str:
    if not any(columns.values()):
        return ""
    heads = "".join(f'<th scope="col">{fraction_title(fraction)}</th>' for fraction in columns)
    rows = []
    for number, name in enumerate(study.class_names[:MOST_LISTED]):
        counts = [[s[number] for s in seeds if number < len(s)] for seeds in columns.values()]
        cells = "".join(f"<td>{_span(found)}</td>" for found in counts)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    more = len(study.class_names) - len(rows)
    note = f"<p>The first {len(rows)} classes of {len(study.class_names):,}.</p>" if more else ""
    return (
        "<details><summary>Labels of each class</summary><p>A range where the subsets of the seeds "
        'differ.</p><div class="scroll"><table><thead><tr><th scope="col">Class</th>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{note}</details>"
    )


def _span(counts: Sequence[int]) -> str:
    """'10', or '9-11' where they differ."""
    if not counts:
        return "?"
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,}\N{EN DASH}{high:,}"


def _counts_of_shards(record: Record) -> str:
    size = record.get("bytes")
    megabytes = "" if size is None else f" ({size / 1e6:,.1f} MB)"
    return shown(record, "shards", "{:,}") + megabytes
