"""The papers' figures, beside runs in the same setting and nowhere else.

Their images are ImageNet's, at 224 pixels and the same label fractions. A figure of theirs beside
one of a small data set would compare nothing, so the rule is kept here, and by what the shards hold
rather than by what params call them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

import yaml

from pipeline.report.methods import fraction_title
from pipeline.report.results import Study

TABLES = Path(__file__).with_name("papers.yaml")
IMAGENET_TRAIN, IMAGENET_TEST, IMAGENET_CLASSES, IMAGENET_PIXELS = 1_281_167, 50_000, 1000, 224
MAY_LACK = 0.01  # of its images: damaged ones and copies may have been left out
UNVERIFIED = "not verified"


@dataclass(frozen=True)
class Published:
    """One figure of one paper.

    Attributes:
        value: percent.
        about: a label fraction of ImageNet, or the name of another data set.
        measure: "top-1", "top-5", "score" (the data set's own) and the like.
        protocol: "linear", "fine-tuned", "few labels", "distilled", "ablation", "transfer",
            "published".
        parameters: millions; None where not given.
    """

    table: str
    source: str
    verified: bool
    protocol: str
    setting: str
    method: str
    architecture: str | None
    parameters: float | None
    about: float | str
    measure: str
    value: float

    @property
    def dataset(self) -> str:
        return self.about if isinstance(self.about, str) else "imagenet"


@cache
def papers() -> tuple[Published, ...]:
    """Every figure that is held."""
    return tuple(_rows(yaml.safe_load(TABLES.read_text(encoding="utf-8"))))


def _rows(tables: list[dict]) -> Iterator[Published]:
    for table in tables:
        for method, architecture, parameters, *values in table["rows"]:
            for (about, measure), value in zip(table["columns"], values, strict=True):
                if value is not None:
                    yield Published(
                        table["table"],
                        table["source"],
                        table["verified"],
                        table["protocol"],
                        table.get("setting", ""),
                        method,
                        architecture,
                        parameters,
                        about,
                        measure,
                        value,
                    )


def is_imagenet(study: Study) -> bool:
    """Whether pretraining, labels and test images are those of the papers' tables."""
    images = study.shard.get("images") or {}
    train = images.get("train", 0) + images.get("validation", 0)
    return (
        study.shard.get("classes") == IMAGENET_CLASSES
        and study.params.data.image_size == IMAGENET_PIXELS
        and (1 - MAY_LACK) * IMAGENET_TRAIN <= train <= IMAGENET_TRAIN
        and (1 - MAY_LACK) * IMAGENET_TEST <= images.get("test", 0) <= IMAGENET_TEST
    )


def comparable(study: Study) -> list[Published]:
    """Figures in this run's setting: ImageNet, and one of its label fractions; else none.

    Transfer figures are of encoders pretrained on ImageNet, so they need it as well.
    """
    if not is_imagenet(study):
        return []
    shares = {float(f) for f in study.fractions if not f.endswith("_per_class")}
    asked = study.params.transfer.datasets
    names = {name for name in asked if isinstance(name, str)}
    return [
        row for row in papers() if row.protocol != "published" and row.about in (shares | names)
    ]


def published_for(dataset: str) -> list[Published]:
    """Figures on a transfer data set that need no pretraining on ImageNet to be compared with."""
    return [row for row in papers() if row.protocol == "published" and row.about == dataset]


def papers_section(study: Study) -> str:
    """A table per label fraction and data set; empty, and said so, in any other setting."""
    found = comparable(study)
    if not found:
        return (
            "<p class='soft'>The papers' figures are of ImageNet at 224 pixels and its label "
            "fractions. This run is on other images, so none is shown beside it.</p>"
        )
    groups: dict[float | str, list[Published]] = {}
    for row in found:
        groups.setdefault(row.about, []).append(row)
    return "".join(_table(about, rows) for about, rows in groups.items())


def _table(about: float | str, rows: list[Published]) -> str:
    title = about if isinstance(about, str) else f"{fraction_title(str(about))} of the labels"
    measures = list(dict.fromkeys(row.measure for row in rows))
    lines: dict[tuple, dict[str, Published]] = {}
    for row in rows:
        place = (row.table, row.protocol, row.method, row.architecture)
        lines.setdefault(place, {})[row.measure] = row
    heads = "".join(f'<th scope="col">{escape(measure)}, %</th>' for measure in measures)
    body = "".join(_line(line, measures) for line in lines.values())
    return (
        f"<details><summary>{escape(title)}</summary><div class='scroll'><table><thead><tr>"
        f'<th scope="col">Method</th><th scope="col">Network</th>{heads}<th scope="col">Source</th>'
        f"</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def _line(found: dict[str, Published], measures: list[str]) -> str:
    some = next(iter(found.values()))
    size = f" ({some.parameters:g} M)" if some.parameters else ""
    cells = "".join(
        f"<td>{found[measure].value:g}</td>" if measure in found else "<td></td>"
        for measure in measures
    )
    mark = "" if some.verified else f" <i>{UNVERIFIED}</i>"
    return (
        f'<tr><th scope="row">{escape(some.method)} <small>{escape(some.protocol)}</small></th>'
        f"<td>{escape(some.architecture or '')}{size}</td>{cells}"
        f"<td class='word'>{escape(some.table)}: {escape(some.source)}{mark}</td></tr>"
    )
