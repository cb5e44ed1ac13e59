"""The pictures of the report: two views, nearest neighbours, the map of the embeddings.

Shapes: N images, Q queries, H W C pixels, M points of the map.
"""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.report.figures import embedding_map
from pipeline.report.results import Study

LARGEST = 128  # pixels: a picture in the page is no larger, for the page is one file


def as_picture(pixels_HWC: NDArray[np.uint8]) -> Image.Image:
    """A grey or RGB picture."""
    grey = pixels_HWC.ndim == 2 or pixels_HWC.shape[-1] == 1
    shape = pixels_HWC.shape[:2]
    return Image.fromarray(pixels_HWC.reshape(shape) if grey else pixels_HWC)


def img(pixels_HWC: NDArray[np.uint8], alt: str) -> str:
    """An <img> that carries its picture within: PNG when small, JPEG when scaled down."""
    picture, out = as_picture(pixels_HWC), io.BytesIO()
    kind = "png" if max(picture.size) <= LARGEST else "jpeg"
    picture.thumbnail((LARGEST, LARGEST))
    picture.save(out, kind.upper(), **({"optimize": True} if kind == "png" else {"quality": 88}))
    data = base64.b64encode(out.getvalue()).decode("ascii")
    width, height = picture.size
    return (
        f'<img src="data:image/{kind};base64,{data}" width="{width}" height="{height}" '
        f'alt="{escape(alt)}">'
    )


def views_section(study: Study) -> str:
    gallery = study.gallery
    if "originals" not in gallery or "views" not in gallery:
        return ""
    originals_NHWC, views_VNHWC = gallery["originals"], gallery["views"]
    cards = [
        '<div class="triplet">'
        + img(originals_NHWC[n], f"training image {n + 1} as it is")
        + img(views_VNHWC[0][n], f"its first random view, image {n + 1}")
        + img(views_VNHWC[1][n], f"its second random view, image {n + 1}")
        + "</div>"
        for n in range(len(originals_NHWC))
    ]
    return (
        "<h3>Two views of an image</h3><p>Left, outlined: a training image. Beside it: two random "
        "views. Pretraining sees only views and learns which two come from one image.</p>"
        f'<div class="triplets">{"".join(cards)}</div>'
    )


def neighbours_section(study: Study) -> str:
    gallery = study.gallery
    if "query_images" not in gallery or "neighbour_images" not in gallery:
        return ""
    known = gallery["neighbour_classes"] >= 0  # -1: the training image has no label
    right = gallery["neighbour_classes"] == gallery["query_classes"][:, None]
    agreement = study.record("gallery").get("neighbour_agreement")
    whole = (
        ""
        if agreement is None
        else f" Of all validation images, {agreement:.1%} have a nearest one of their class."
    )
    cards = [_query(study, q) for q in range(len(gallery["query_images"]))]
    return (
        "<h3>Nearest neighbours of test images</h3><p>Left: a test image. Then the five training "
        "images nearest to it by the pretrained net's features, which saw no label. Solid frame ✓: "
        f"same class; dashed frame ✗: another class. Here {int((right & known).sum())} of "
        f"{int(known.sum())} neighbours have the class of their image.{whole}</p>"
        f'<div class="queries">{"".join(cards)}</div>'
    )


def _query(study: Study, q: int) -> str:
    gallery, names = study.gallery, study.class_names
    wanted = int(gallery["query_classes"][q])
    name = _name(names, wanted)
    cells = [
        f"<div>{img(gallery['query_images'][q], f'test image of {name}')}"
        f"<b>{escape(name)}</b></div><div></div>"
    ]
    for place, number in enumerate(gallery["neighbour_classes"][q].tolist()):
        other = _name(names, number)
        css, mark = ("same", "✓") if number == wanted else ("other", "✗")
        css, mark = ("unknown", "?") if number < 0 else (css, mark)
        alike = gallery.get("neighbour_similarity")
        tip = "" if alike is None else f"cosine similarity {float(alike[q][place]):.3f}"
        picture = img(gallery["neighbour_images"][q][place], f"neighbour {place + 1}: {other}")
        cells.append(
            f'<div class="{css}" title="{tip}">{picture}<span>{mark} {escape(other)}</span></div>'
        )
    return f'<div class="query">{"".join(cells)}</div>'


def map_section(study: Study) -> str:
    gallery = study.gallery
    if "map_xy" not in gallery or "map_classes" not in gallery:
        return ""
    panels = []
    for key, title in (("map_xy", "Pretrained, no labels"), ("map_xy_random", "Untrained net")):
        if key in gallery:
            drawing = embedding_map(gallery[key], gallery["map_classes"], study.class_names, title)
            panels.append(f"<figure><b>{title}</b>{drawing}</figure>")
    return (
        "<h3>Map of the embeddings</h3><p>The same images, held out from training, laid "
        "out in two dimensions by what each net makes of them. Colours and names are "
        f'the true classes; neither net was told them.</p><div class="pair">{"".join(panels)}</div>'
    )


def _name(names: Sequence[str], number: int) -> str:
    if number < 0:
        return "no label"
    return names[number] if number < len(names) else f"class {number}"
