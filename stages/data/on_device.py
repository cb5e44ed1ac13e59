"""Images of any size taken to a GPU in one message, and their crops made there many at a time.

An image of 0.6 MB is nothing to a GPU, and two hundred launches for each of a thousand views are
more than a step has time for. So images of about one size are laid on a common canvas, after which
a crop is what it is for images of one size: a product with two matrices, whose entries outside the
crop, and so outside the image, are 0.

Shapes: B images, V views, C channels, H W of an image, O of a view.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stages.data import resize

CANVAS_IMAGES = 64  # at most together; their launches are shared
CANVAS_PIXELS = CANVAS_IMAGES * 512 * 512  # at most, in all of them


def to_device(images: Tensor | Sequence[Tensor], device: torch.device) -> Tensor | list[Tensor]:
    """Images as `ImageStore.images` gives them, on the device; in memory as they were."""
    if images[0].is_cuda:  # decoded there
        return images if isinstance(images, Tensor) else list(images)
    if isinstance(images, Tensor):
        return _pinned(images, device).to(device, non_blocking=True)
    shapes_BHWC = [image.permute(1, 2, 0).shape for image in images]
    sizes = [shape.numel() for shape in shapes_BHWC]
    flat = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    torch.cat([image.permute(1, 2, 0).reshape(-1) for image in images], out=flat)
    parts = flat.to(device, non_blocking=True).split(sizes)
    return [
        part.view(shape).permute(2, 0, 1) for part, shape in zip(parts, shapes_BHWC, strict=True)
    ]


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory() if device.type == "cuda" else tensor


def crops_of_any_size(
    images: Sequence[Tensor],
    boxes_VB4: Tensor,
    flips_VB: Tensor,
    out_size: int,
    kernel: resize.Kernel,
) -> Tensor:
    """Each image's V boxes, resized and flipped, (V, B, C, O, O) float32 about [0, 1].

    Args:
        images: uint8 (C, H_i, W_i), on one device.
        boxes_VB4: (y, x, height, width), int64, in pixels of the image.
        flips_VB: left to right.
        out_size: O.
        kernel: see `resize`.
    """
    first = images[0]
    boxes_VB4, flips_VB = boxes_VB4.to(first.device), flips_VB.to(first.device)
    shape = (*flips_VB.shape, first.shape[0], out_size, out_size)
    crops_VBCOO = torch.empty(shape, device=first.device)
    for chosen in _canvases([(image.shape[1], image.shape[2]) for image in images]):
        canvas_BCHW = _on_canvas([images[i] for i in chosen])
        rows = torch.tensor(chosen).to(first.device, non_blocking=True)
        for view, (boxes_B4, flip_B) in enumerate(zip(boxes_VB4, flips_VB, strict=True)):
            crops_VBCOO[view, rows] = resize.resized_crops(
                canvas_BCHW, boxes_B4[rows], out_size, kernel, flip_B[rows]
            )
    return crops_VBCOO


def _canvases(sizes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Images that share a canvas: of like shape, not too many, not too large together."""
    chosen: list[int] = []
    height = width = 0
    for i in sorted(range(len(sizes)), key=lambda i: (sizes[i][0] > sizes[i][1], sizes[i])):
        height_with, width_with = max(height, sizes[i][0]), max(width, sizes[i][1])
        pixels = (len(chosen) + 1) * height_with * width_with
        if chosen and (len(chosen) == CANVAS_IMAGES or pixels > CANVAS_PIXELS):
            yield chosen
            chosen, (height_with, width_with) = [], sizes[i]
        chosen.append(i)
        height, width = height_with, width_with
    yield chosen


def _on_canvas(images: Sequence[Tensor]) -> Tensor:
    """Images in the upper left corner of a canvas that holds the largest, over 255."""
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    shape = (len(images), images[0].shape[0], height, width)
    canvas_BCHW = torch.zeros(shape, device=images[0].device)
    for place_CHW, image_CHW in zip(canvas_BCHW, images, strict=True):
        place_CHW[:, : image_CHW.shape[1], : image_CHW.shape[2]] = image_CHW
    return canvas_BCHW.div_(255)
