"""Pictures for the README, from the same files as the report.

PNG, for a README shows no inlined SVG; on a white ground, in the report's light colours.
"""

import io
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image

from pipeline.report.gallery import as_picture
from pipeline.report.methods import fraction_title
from pipeline.report.page import STYLE
from pipeline.report.reading import Arrays
from pipeline.report.results import Study
from pipeline.report.svg import apart
from pipeline.report.tables import chosen_at
from stages.errors import UserError
from stages.params import Params

FOLDER = Path("pipeline/docs/pictures")
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "up": "^", "down": "v"}
CELL = 84  # pixels of one image in the picture of views


def make_pictures(root: Path, params: Params) -> list[Path]:
    """Write label_fractions.png, views.png and map.png to pipeline/docs/pictures under `root`.

    Returns:
        The files written.

    Raises:
        UserError: the results or the gallery have not been made yet.
    """
    study = Study(root, params)
    needed: Mapping[str, bool] = {
        "the results (metrics/)": bool(study.results),
        "the gallery (artifacts/gallery/gallery.npz)": "map_xy" in study.gallery,
    }
    absent = [name for name, there in needed.items() if not there]
    if absent:
        raise UserError(
            f"{' and '.join(absent)} can't be drawn: not made yet.\n  Run `dvc repro` first."
        )
    makers: dict[str, Callable[[Study], bytes]] = {
        "label_fractions.png": label_fractions,
        "views.png": views,
        "map.png": embedding_maps,
    }
    contents = {root / FOLDER / name: make(study) for name, make in makers.items()}
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    for path, content in contents.items():
        path.write_bytes(content)
    return list(contents)


@cache
def colours() -> dict[str, str]:
    """The light theme's colours by name, read from the page's own style."""
    light = STYLE.read_text(encoding="utf-8").split("}", 1)[0]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6});", light))


def label_fractions(study: Study) -> bytes:
    """Accuracy against the number of labels: supervised and ours stand out."""
    figure = Figure(figsize=(9.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    chosen = chosen_at(study, study.fractions[0])
    ends = []
    for method in study.methods:
        line = sorted(
            (r.labels, r.mean * 100, r.std * 100)
            for (name, _), r in study.results.items()
            if name == method.name and r.labels
        )
        if not line:
            continue
        labels, mean, std = zip(*line, strict=True)
        strong = method.name in {"supervised", chosen}
        colour = colours()[method.colour]
        axes.errorbar(
            *(labels, mean, std),
            color=colour,
            marker=MARKERS[method.marker],
            markersize=7 if strong else 4.5,
            linewidth=3 if strong else 1.2,
            linestyle=(0, (2, 2)) if method.dash else "-",
            elinewidth=1.2,
            zorder=3 if strong else 2,
        )
        ends.append((method.title, labels[-1], mean[-1], strong, colour))
    axes.set_xscale("log")
    counts = {study.labels(fraction): fraction_title(fraction) for fraction in study.fractions}
    shown = {labels: title for labels, title in counts.items() if labels}
    axes.set_xticks(list(shown), [f"{labels:,}\n{title}" for labels, title in shown.items()])
    axes.minorticks_off()
    axes.set_xlabel("labelled images")
    axes.set_ylabel("test accuracy, %")
    axes.grid(axis="y", color=colours()["rule"])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    low, high = axes.get_ylim()
    places = apart([end[2] for end in ends], (high - low) / 19, low, high)
    for (title, x, y, strong, colour), place in zip(ends, places, strict=True):
        axes.annotate(
            title,
            xy=(x, y),
            xytext=(1.07, place),
            textcoords=("axes fraction", "data"),
            va="center",
            color=colour,
            fontsize=10,
            fontweight="bold" if strong else "normal",
            arrowprops={
                **{"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6},
                **{"relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 7},
            },
        )
    return _png(figure)


def views(study: Study) -> bytes:
    """A column for each image: as it is, then its two random views."""
    gallery = study.gallery
    rows_RNHWC = np.concatenate([gallery["originals"][None], gallery["views"]])
    count = rows_RNHWC.shape[1]
    gap, apart_below = 6, 16  # pixels; the originals stand apart from their views
    size = (count * (CELL + gap) - gap, 3 * CELL + gap + apart_below)
    sheet = Image.new("RGB", size, "white")
    for row, images_NHWC in enumerate(rows_RNHWC):
        for column, pixels_HWC in enumerate(images_NHWC):
            picture = as_picture(pixels_HWC).convert("RGB")
            small = max(picture.size) < CELL
            how = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
            top = row * (CELL + gap) + (apart_below - gap if row else 0)
            sheet.paste(picture.resize((CELL, CELL), how), (column * (CELL + gap), top))
    out = io.BytesIO()
    sheet.quantize(128).save(out, "PNG", optimize=True)
    return out.getvalue()


def embedding_maps(study: Study) -> bytes:
    """The same held-out images under the pretrained and under the untrained net."""
    gallery, names = study.gallery, study.class_names
    titles = {"map_xy": "Pretrained, no labels", "map_xy_random": "Untrained net"}
    shown = [key for key in titles if key in gallery]
    figure = Figure(figsize=(4.6 * len(shown), 4.6), layout="constrained")
    for place, key in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), place + 1)
        axes.set_title(titles[key], fontsize=11)
        _map(axes, gallery, key, names)
    return _png(figure, colours_kept=96)


def _map(axes: Axes, gallery: Arrays, key: str, names: list[str]) -> None:
    xy_M2, classes_M = gallery[key], gallery["map_classes"]
    present = [number for number in np.unique(classes_M).tolist() if number >= 0]
    centres = [np.median(xy_M2[classes_M == number], axis=0) for number in present]
    low, high = xy_M2[:, 1].min(), xy_M2[:, 1].max()
    heights = apart([float(y) for _, y in centres], (high - low) / 24, low, high)
    halo = [withStroke(linewidth=3, foreground="white")]
    for number, (x, _), y in zip(present, centres, heights, strict=True):
        colour = colours()[f"class{number % 10}"]
        xy_N2 = xy_M2[classes_M == number]
        axes.scatter(*xy_N2.T, s=6, color=colour, alpha=0.55, linewidths=0)
        name = names[number] if number < len(names) else str(number)
        axes.text(x, y, name, ha="center", fontweight="bold", path_effects=halo)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(colours()["rule"])


def _png(figure: Figure, colours_kept: int = 128) -> bytes:
    """A small PNG: a palette instead of full colour."""
    full, out = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=130)
    picture = Image.open(full).convert("RGB")
    picture.quantize(colours_kept, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()
