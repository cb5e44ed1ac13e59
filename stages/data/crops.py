"""Random crop boxes under two conventions, for many images at once.

`official_boxes` follows the TensorFlow op that SimCLR's code calls
(`sample_distorted_bounding_box` with the whole image as its object); `torchvision_boxes` follows
`RandomResizedCrop`. They are different distributions: with the usual limits the official crops
cover 0.42 of a square image on average, torchvision's 0.48.

Both try again until a box fits, so how many draws a sample takes is itself random. Attempt t of a
sample reads draws `first_draw + 4t .. + 3` of its own stream.

Shapes: B images. Boxes are (B, 4) int64 rows of (y, x, height, width) in pixels; sizes are
(B, 2) rows of (height, width). Aspect is width / height.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stages.data.random_numbers import Streams

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Proposal = Callable[[Floats, Integers], tuple[Integers, NDArray[np.bool_]]]

_DRAWS_PER_ATTEMPT = 4


def official_boxes(
    streams: Streams,
    sizes_B2: Integers,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    target_aspect: float = 1.0,
    min_covered: float = 0.1,
    attempts: int = 100,
    first_draw: int = 0,
) -> Integers:
    """Boxes as the official code draws them (SimCLR, appendix A; the op's own rules).

    Aspect is uniform, height is uniform over the whole numbers that the area limits allow, so
    area is not uniform. A box under `min_covered` of the image is refused, which makes 0.10 the
    real lower end of the default `area`. An offset is uniform over 0 .. size - crop - 1: a crop
    smaller than the image never touches its bottom or right edge. After `attempts` refusals the
    whole image is taken.
    """
    low, high = aspect[0] * target_aspect, aspect[1] * target_aspect

    def propose(draws_B4: Floats, sizes_B2: Integers) -> tuple[Integers, NDArray[np.bool_]]:
        image_h, image_w = sizes_B2.T
        pixels = image_h * image_w
        ratio = low + draws_B4[:, 0] * (high - low)
        min_h = np.rint(np.sqrt(area[0] * pixels / ratio))
        max_h = np.rint(np.sqrt(area[1] * pixels / ratio))
        widest_h = np.floor((image_w + 0.5 - 1e-7) / ratio)
        max_h = np.where(np.rint(max_h * ratio) > image_w, widest_h, max_h)
        max_h = np.minimum(max_h, image_h)
        min_h = np.minimum(min_h, max_h)
        height = min_h + _whole(draws_B4[:, 1], max_h - min_h + 1)
        # Rounding may have pushed the area just past a limit: one row more, or less, is allowed.
        height = height + (height * np.rint(height * ratio) < area[0] * pixels)
        height = height - (height * np.rint(height * ratio) > area[1] * pixels)
        width = np.rint(height * ratio)
        covered = height * width
        fits = (covered >= max(area[0], min_covered) * pixels) & (covered <= area[1] * pixels)
        fits &= (width > 0) & (width <= image_w) & (height <= image_h)
        y = _whole(draws_B4[:, 2], np.maximum(image_h - height, 1))
        x = _whole(draws_B4[:, 3], np.maximum(image_w - width, 1))
        return np.stack([y, x, height, width], axis=1).astype(np.int64), fits

    whole_B4 = np.concatenate([np.zeros_like(sizes_B2), sizes_B2], axis=1)
    return _first_that_fits(streams, sizes_B2, propose, whole_B4, attempts, first_draw)


def torchvision_boxes(
    streams: Streams,
    sizes_B2: Integers,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    attempts: int = 10,
    first_draw: int = 0,
) -> Integers:
    """Boxes as torchvision's RandomResizedCrop draws them.

    Area is uniform and aspect log-uniform; a box that does not fit is drawn again, and after
    `attempts` the largest central box with an allowed aspect is taken.
    """
    log_low, log_high = np.log(aspect[0]), np.log(aspect[1])

    def propose(draws_B4: Floats, sizes_B2: Integers) -> tuple[Integers, NDArray[np.bool_]]:
        image_h, image_w = sizes_B2.T
        pixels = image_h * image_w * (area[0] + draws_B4[:, 0] * (area[1] - area[0]))
        ratio = np.exp(log_low + draws_B4[:, 1] * (log_high - log_low))
        height = np.rint(np.sqrt(pixels / ratio))
        width = np.rint(np.sqrt(pixels * ratio))
        fits = (width > 0) & (width <= image_w) & (height > 0) & (height <= image_h)
        y = _whole(draws_B4[:, 2], np.maximum(image_h - height + 1, 1))
        x = _whole(draws_B4[:, 3], np.maximum(image_w - width + 1, 1))
        return np.stack([y, x, height, width], axis=1).astype(np.int64), fits

    fallback_B4 = _central_boxes(sizes_B2, aspect)
    return _first_that_fits(streams, sizes_B2, propose, fallback_B4, attempts, first_draw)


def _central_boxes(sizes_B2: Integers, aspect: tuple[float, float]) -> Integers:
    """The largest centred box whose aspect is the image's own, held within limits."""
    image_h, image_w = sizes_B2.T
    ratio = image_w / image_h
    width = np.where(ratio > aspect[1], np.rint(image_h * aspect[1]), image_w)
    height = np.where(ratio < aspect[0], np.rint(image_w / aspect[0]), image_h)
    y, x = (image_h - height) // 2, (image_w - width) // 2
    return np.stack([y, x, height, width], axis=1).astype(np.int64)


def _first_that_fits(
    streams: Streams,
    sizes_B2: Integers,
    propose: Proposal,
    fallback_B4: Integers,
    attempts: int,
    first_draw: int,
) -> Integers:
    """Each image's first accepted proposal; only images still without one draw again."""
    boxes_B4 = fallback_B4.copy()
    waiting = np.arange(len(streams))
    for attempt in range(attempts):
        if not len(waiting):
            break
        first = first_draw + _DRAWS_PER_ATTEMPT * attempt
        draws = streams.select(waiting).uniform(first, _DRAWS_PER_ATTEMPT)
        proposed, fits = propose(draws, sizes_B2[waiting])
        boxes_B4[waiting[fits]] = proposed[fits]
        waiting = waiting[~fits]
    return boxes_B4


def _whole(draws_B: Floats, below_B: Floats) -> Floats:
    """Uniform whole numbers 0 .. below - 1 from uniform draws in [0, 1)."""
    # A draw of 1 - 2^-53 times a large bound may round up to the bound itself.
    return np.minimum(np.floor(draws_B * below_B), below_B - 1)
