"""Views on a CPU, each made from start to end while it lies in the core's cache.

Carries out the plan that `views.py` carries out in torch operations, and equals it to 1e-5; the
arithmetic is in `fused_kernels.py`. Runs on as many threads as torch does.

Shapes: B images, V views, N = V * B, C channels (1 or 3), H W.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.data import blur, colour, fused_kernels, resize
from stages.data.view_plan import ViewPlan
from stages.data.view_recipe import ViewRecipe

_KERNELS: dict[resize.Kernel, int] = {
    "bicubic_tf2": fused_kernels.TENSORFLOW,
    "bicubic_tf1": fused_kernels.TENSORFLOW,
    "bilinear_antialias": fused_kernels.BILINEAR_ANTIALIAS,
    "bicubic_antialias": fused_kernels.BICUBIC_ANTIALIAS,
}
_WITHOUT_COLOUR = (colour.BRIGHTNESS, colour.CONTRAST)


def carry_out(
    plan: ViewPlan,
    images: Tensor | Sequence[Tensor],
    recipe: ViewRecipe,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Tensor:
    """The views of a plan, (N, C, size, size) float32; `images` as `views.make_views` takes them.

    Raises:
        ValueError: images that are not on the CPU.
    """
    if images[0].device.type != "cpu":
        raise ValueError(f"fused views are made on the CPU, these images are on {images[0].device}")
    radius = blur.kernel_radius(recipe.size)
    n_views, n_channels = len(plan.boxes_N4), images[0].shape[0]
    operations_N4, factors_N4 = _in_order(plan, n_channels)
    views = torch.empty(n_views, n_channels, recipe.size, recipe.size)
    common = (
        plan.boxes_N4,
        plan.flips_N,
        operations_N4,
        factors_N4,
        plan.grey_N if n_channels == 3 else np.zeros(n_views, dtype=np.bool_),
        plan.sigma_N.astype(np.float32) if radius else np.zeros(n_views, dtype=np.float32),
        _KERNELS[recipe.resize_kernel],
        *_tap_table(plan, recipe),
        recipe.colour_convention == "torchvision",
        recipe.brightness_kind == "v1",
        radius,
        recipe.blur_border == "reflect",
        _by_channel(mean, 0.0, n_channels),
        1 / _by_channel(std, 1.0, n_channels),
        _most_taps(plan, recipe),
        views.numpy(),
    )

    def work(part: Sequence[tuple[Tensor, NDArray[np.int64], NDArray[np.int64]]]) -> None:
        for images_BCHW, image_M, view_M in part:
            pixels, strides = _as_bytes(images_BCHW)
            fused_kernels.draw_views(pixels, strides, image_M, view_M, *common)

    n_threads = torch.get_num_threads()
    parts = [list(part) for part in _deal(images, n_views, n_threads)]
    if len(parts) == 1:
        work(parts[0])
    else:
        list(_pool(n_threads).map(work, parts))
    return views


def _deal(
    images: Tensor | Sequence[Tensor], n_views: int, n_parts: int
) -> Iterator[Iterator[tuple[Tensor, NDArray[np.int64], NDArray[np.int64]]]]:
    """The work in parts: of each, images of one size, and which view is of which of them."""
    if isinstance(images, Tensor):
        # Views of one image are made one after the other, while it is in the cache.
        order = np.arange(n_views).reshape(-1, len(images)).T.ravel()
        for view_M in np.array_split(order, min(n_parts, len(images))):
            yield iter([(images, view_M % len(images), view_M)])
        return
    for image_M in np.array_split(np.arange(len(images)), min(n_parts, len(images))):
        yield (
            (images[i][None], np.zeros(n_views // len(images), np.int64), view_M)
            for i in image_M.tolist()
            for view_M in [np.arange(i, n_views, len(images))]
        )


def _as_bytes(images_BCHW: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The memory of images, planes or pixels, and the steps from one to the next in it."""
    _, channels, height, width = images_BCHW.shape
    pixels_BHWC = images_BCHW.permute(0, 2, 3, 1)
    if pixels_BHWC.is_contiguous():
        strides = (height * width * channels, 1, width * channels, channels)
        flat = pixels_BHWC.reshape(-1)
    else:
        strides = (channels * height * width, height * width, width, 1)
        flat = images_BCHW.contiguous().view(-1)
    return flat.numpy(), np.array(strides, dtype=np.int64)


def _in_order(plan: ViewPlan, n_channels: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Operations and their factors in the order in which they run, as `colour.jitter_` takes it."""
    order = plan.orders_N4
    runs = np.isin(order, plan.operations) & plan.jittered_N[:, None]
    operations = np.where(runs, order, fused_kernels.NOTHING)
    if n_channels == 1:
        # Saturation and hue would only clip a grey image, which matters where one comes first.
        colourful = runs & ~np.isin(order, _WITHOUT_COLOUR)
        operations[colourful] = fused_kernels.NOTHING
        first = (np.cumsum(runs, axis=1) == 1) & colourful
        operations[first] = fused_kernels.CLIP
    factors = np.take_along_axis(plan.factors_N4, order, axis=1)
    return operations, factors.astype(np.float32)


def _tap_table(
    plan: ViewPlan, recipe: ViewRecipe
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """TensorFlow's taps of every length in the plan, and which rows hold those of each box."""
    lengths_L, rows = np.unique(plan.boxes_N4[:, 2:], return_inverse=True)
    if _KERNELS[recipe.resize_kernel] != fused_kernels.TENSORFLOW:
        lengths_L = lengths_L[:0]
    pixel_LOT, weight_LOT = resize.tensorflow_taps(
        torch.from_numpy(lengths_L), recipe.size, recipe.resize_kernel
    )
    return rows.reshape(-1, 2), pixel_LOT.numpy(), weight_LOT.numpy()


def _most_taps(plan: ViewPlan, recipe: ViewRecipe) -> int:
    """Taps that the largest box needs along an axis."""
    longest = int(plan.boxes_N4[:, 2:].max())
    reach = 1 if recipe.resize_kernel == "bilinear_antialias" else 2
    return max(4, -(-2 * reach * longest // recipe.size))


def _by_channel(
    values: Sequence[float] | None, otherwise: float, n_channels: int
) -> NDArray[np.float32]:
    return np.full(n_channels, otherwise if values is None else values, dtype=np.float32)


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="fused-views")
