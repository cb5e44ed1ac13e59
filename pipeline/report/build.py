"""The report: read what the stages wrote, write report/ whole or not at all."""

from pathlib import Path

from pipeline.report.claims import claims
from pipeline.report.page import page
from pipeline.report.provenance import (
    clock,
    provenance_facts,
    remarks,
    seconds_by_stage,
    warnings,
)
from pipeline.report.results import Study
from pipeline.report.tables import csv_text, markdown_table
from pipeline.report.uneven import markdown_section
from pipeline.report.verdict import efficiency_sentence, sentence
from stages.params import Params


def build_report(root: Path, params: Params) -> None:
    """Write report/index.html, report/label_fractions.csv and report/report.md under `root`.

    What has not run yet is shown as such; a report can be built at any moment.

    Raises:
        UserError: a file the report reads is there but damaged.
    """
    study = Study(root, params)
    folder = root / "report"
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "index.html": page(study),
        "label_fractions.csv": csv_text(study),
        "report.md": markdown(study),
    }
    for name, content in contents.items():
        partial = folder / f"{name}.partial"
        partial.write_text(content, encoding="utf-8")
        partial.replace(folder / name)


def markdown(study: Study) -> str:
    """The answer, the table, the claims and the provenance, to read or paste anywhere."""
    lines = [f"# {study.params.report.title}", "", f"**{sentence(study)}**", ""]
    for said in warnings(study):
        lines += [f"> {said}", ""]
    lines += [
        "Test accuracy in percent, mean ± standard deviation over seeds. Bold: highest in its "
        "column. ◆: chosen by validation accuracy.",
        "",
        markdown_table(study),
        "",
        *markdown_section(study),
        *([worth, ""] if (worth := efficiency_sentence(study)) else []),
        "## Claims of the SimCLRv2 paper, on these numbers",
        "",
    ]
    lines += [f"- **{claim.verdict}**: {claim.text} ({claim.why})" for claim in claims(study)]
    lines += ["", "## Provenance", "", f"- Profile: {study.params.profile}"]
    lines += [
        f"- {title}: {'; '.join(values)}" for title, values in provenance_facts(study) if values
    ]
    lines += [f"- {said}" for said in remarks(study)]
    seconds = seconds_by_stage(study)
    if seconds:
        stages = ", ".join(f"{stage} {clock(value)}" for stage, value in seconds.items())
        lines.append(f"- Time: {clock(sum(seconds.values()))} ({stages})")
    return "\n".join(lines) + "\n"
