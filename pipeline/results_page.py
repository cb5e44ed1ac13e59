"""What of a finished stage is shown on the run's page, as Markdown: curves, views, the answer."""

from pathlib import Path

from pipeline.report.figures import Curve, curve_chart
from pipeline.report.label_plots import label_fraction_plot
from pipeline.report.methods import fraction_title, record_name
from pipeline.report.results import Study
from pipeline.report.standalone import data_url, picture
from pipeline.report.tables import markdown_table
from pipeline.report.training import loss_curve
from pipeline.report.verdict import sentence

REPORT = Path("report/index.html")
PRETRAINING = {  # column of plots/pretrain.csv: title and how its values are written
    "loss": ("Contrastive loss, nats", "{:.3g}"),
    "contrastive_accuracy": ("Partner found", "{:.0%}"),
    "effective_rank": ("Effective rank of z", "{:.3g}"),
    "images_per_second": ("Images per second", "{:,.0f}"),
}


def pictures_of(study: Study, stage: str) -> str:
    """Curves or pictures of a stage's results; empty where it leaves none.

    Args:
        study: the results of the workspace.
        stage: its name in the graph: "finetune@0.01".
    """
    name, _, fraction = stage.partition("@")
    if name == "pretrain":
        return pretraining_curves(study)
    if name == "gallery":
        return views_of(study)
    return loss_curves(study, name, fraction)


def pretraining_curves(study: Study) -> str:
    rows, drawn = study.curve("pretrain"), []
    for column, (title, pattern) in PRETRAINING.items():
        points = [(row["epoch"], row[column]) for row in rows if row.keys() >= {"epoch", column}]
        chart = curve_chart(title, [Curve(points, "layer1")], "epoch", pattern.format, 440, 250)
        drawn.append(picture(chart, title))
    return "\n\n".join(filter(None, drawn))


def loss_curves(study: Study, stage: str, fraction: str) -> str:
    """The training loss of each method of a stage, the mean over seeds."""
    methods = [m for m in study.methods if record_name(m, fraction) == f"{stage}/{fraction}"]
    curves = [loss_curve(study, method, fraction) for method in methods]
    title = f"Loss, {fraction_title(fraction)}" if fraction else "Loss"
    return picture(curve_chart(title, curves, "step", "{:.2g}".format, 560, 300), title)


def views_of(study: Study) -> str:
    if not study.gallery.keys() >= {"originals", "views"}:
        return ""
    from pipeline.report.pictures import views  # matplotlib takes a second to import

    sheet = data_url(views(study), "image/png")
    return f"Top: the images. Below each: two random views of it.\n\n![two views]({sheet})"


def answer_of(study: Study, report_url: str | None) -> str:
    """The answer, the table and the plot over label fractions; and where the report is."""
    plot = label_fraction_plot(study, 720, 380, short=True)
    file = (study.root / REPORT).absolute()
    link = f"**[Open the report]({report_url})** · " if report_url else ""
    where = f"{link}The whole report is one page, on the machine that ran it: `{file}`"
    note = "Test accuracy in percent, mean ± deviation over seeds; ◆ chosen by validation accuracy."
    parts = [f"**{sentence(study)}**", where, markdown_table(study), note]
    return "\n\n".join([*parts, picture(plot, "accuracy against labels")])
