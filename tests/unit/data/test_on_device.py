"""Crops of images of any size, many at a time, are those that are made one by one."""

from typing import Any, get_args

import numpy as np
import pytest
import torch

from stages.data import on_device, resize
from stages.data.on_device import crops_of_any_size, to_device
from stages.data.view_plan import draw_plan
from stages.data.views import ViewRecipe

N_VIEWS, SIZE = 2, 24


def photos(n: int = 11, channels: int = 3) -> list[torch.Tensor]:
    """Of many sizes, wide and tall, as a decoder leaves them in memory."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(9, 70, (n, 2)).tolist()
    pixels = [rng.integers(0, 256, (*size, channels), dtype=np.uint8) for size in sizes]
    return [torch.from_numpy(image_HWC).permute(2, 0, 1) for image_HWC in pixels]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernel", get_args(resize.Kernel))
@pytest.mark.parametrize("limits", [{}, {"CANVAS_IMAGES": 3}, {"CANVAS_PIXELS": 5000}])
def test_crops_are_those_made_one_by_one(
    monkeypatch: pytest.MonkeyPatch, kernel: resize.Kernel, channels: int, limits: dict[str, int]
):
    for name, limit in limits.items():
        monkeypatch.setattr(on_device, name, limit)
    images = photos(channels=channels)
    sizes_B2 = np.array([image.shape[1:] for image in images])
    hashes = np.arange(len(images), dtype=np.uint64)
    recipe = ViewRecipe.official(SIZE)
    plan = draw_plan(recipe, sizes_B2, hashes, seed=0, epoch=0, views=range(N_VIEWS))
    one_by_one = torch.stack(
        [
            resize.resized_crop(images[n % len(images)], tuple(box), SIZE, kernel, flip)
            for n, (box, flip) in enumerate(
                zip(plan.boxes_N4.tolist(), plan.flips_N.tolist(), strict=True)
            )
        ]
    )
    found = crops_of_any_size(
        images,
        torch.from_numpy(plan.boxes_N4).unflatten(0, (N_VIEWS, -1)),
        torch.from_numpy(plan.flips_N).unflatten(0, (N_VIEWS, -1)),
        SIZE,
        kernel,
    )
    torch.testing.assert_close(found.flatten(0, 1), one_by_one / 255, rtol=0, atol=1e-5)


@pytest.mark.parametrize("limits", [{}, {"CANVAS_IMAGES": 3}, {"CANVAS_PIXELS": 5000}])
def test_every_image_is_on_one_canvas_and_no_canvas_is_too_large(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]
):
    for name, limit in limits.items():
        monkeypatch.setattr(on_device, name, limit)
    sizes: list[Any] = [tuple(image.shape[1:]) for image in photos(40)]
    canvases = list(on_device._canvases(sizes))
    assert sorted(i for chosen in canvases for i in chosen) == list(range(len(sizes)))
    for chosen in canvases:
        height, width = (max(sizes[i][axis] for i in chosen) for axis in (0, 1))
        assert len(chosen) <= on_device.CANVAS_IMAGES
        assert len(chosen) == 1 or len(chosen) * height * width <= on_device.CANVAS_PIXELS


def test_images_arrive_as_they_were():
    images = photos()
    for found, image in zip(to_device(images, torch.device("cpu")), images, strict=True):
        assert torch.equal(found, image)
        assert found.stride() == image.stride()
    same = torch.stack([images[0], images[0]])
    assert torch.equal(torch.as_tensor(to_device(same, torch.device("cpu"))), same)
