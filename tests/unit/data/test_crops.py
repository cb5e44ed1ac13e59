import math

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from stages.data.crops import official_boxes, torchvision_boxes
from stages.data.random_numbers import Streams, key_hashes

N = 4000
STREAMS = Streams.of(0, 0, key_hashes(map(str, range(N))), 0)


def sizes(height: int, width: int, n: int = N) -> np.ndarray:
    return np.tile(np.array([[height, width]]), (n, 1))


def official_box_by_hand(draws, height, width, area, low, high):
    """One attempt of the TensorFlow op, one image, as its documentation and code put it."""
    ratio = low + draws[0] * (high - low)
    min_area, max_area = area[0] * height * width, area[1] * height * width
    min_h = round(math.sqrt(min_area / ratio))
    max_h = round(math.sqrt(max_area / ratio))
    if round(max_h * ratio) > width:
        max_h = int((width + 0.5 - 1e-7) / ratio)
    max_h = min(max_h, height)
    crop_h = min(min_h, max_h)
    if crop_h < max_h:
        crop_h += int(draws[1] * (max_h - crop_h + 1))
    crop_w = round(crop_h * ratio)
    if crop_h * crop_w < min_area:
        crop_h += 1
        crop_w = round(crop_h * ratio)
    if crop_h * crop_w > max_area:
        crop_h -= 1
        crop_w = round(crop_h * ratio)
    if not min_area <= crop_h * crop_w <= max_area:
        return None
    if crop_w <= 0 or crop_h > height or crop_w > width or crop_h * crop_w < 0.1 * height * width:
        return None
    y = int(draws[2] * (height - crop_h)) if crop_h < height else 0
    x = int(draws[3] * (width - crop_w)) if crop_w < width else 0
    return [y, x, crop_h, crop_w]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (375, 500), (9, 40)])
@pytest.mark.parametrize("area", [(0.08, 1.0), (0.3, 0.7)])
def test_official_boxes_equal_the_rule_written_for_one_image(height, width, area):
    streams = STREAMS.select(np.arange(300))
    boxes = official_boxes(streams, sizes(height, width, 300), area=area, first_draw=5)
    draws = streams.uniform(5, 400).reshape(300, 100, 4)
    for box, draws_of_image in zip(boxes.tolist(), draws, strict=True):
        attempts = (
            official_box_by_hand(draw, height, width, area, 3 / 4, 4 / 3) for draw in draws_of_image
        )
        assert box == next((box for box in attempts if box), [0, 0, height, width])


def test_official_boxes_stay_inside_cover_a_tenth_and_miss_the_far_edges():
    height, width = 60, 80
    y, x, h, w = official_boxes(STREAMS, sizes(height, width)).T
    assert (h * w).min() >= 0.1 * height * width
    assert (y + h)[h < height].max() == height - 1
    assert (x + w)[w < width].max() == width - 1
    assert y.min() == x.min() == 0


def test_official_lower_area_limit_above_a_tenth_is_kept():
    _, _, h, w = official_boxes(STREAMS, sizes(64, 64), area=(0.5, 1.0)).T
    smallest = (h * w).min() / 64**2
    assert smallest >= 0.5
    assert smallest < 0.51


def test_official_aspect_is_relative_to_the_target():
    _, _, h, w = official_boxes(STREAMS, sizes(200, 400), target_aspect=2.0).T
    assert (w / h).min() > 1.45
    assert (w / h).max() < 2.75
    assert 1.9 < (w / h).mean() < 2.1


def test_an_image_without_a_fitting_box_is_taken_whole_by_the_official_rule():
    boxes = official_boxes(STREAMS, sizes(5, 400))
    assert (boxes == [0, 0, 5, 400]).all()


def test_torchvision_boxes_have_the_distribution_of_random_resized_crop():
    height, width = 60, 90
    ours = torchvision_boxes(STREAMS, sizes(height, width))
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(8)
    image = torch.empty(3, height, width)
    drawn = [crop.make_params([image]) for _ in range(N)]
    theirs = np.array([[d["top"], d["left"], d["height"], d["width"]] for d in drawn])
    bound = 1.95 * math.sqrt(2 / N)  # exceeded once in 1,000 by two samples of one distribution
    for a, b in [
        (ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]),
        (ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]),
        (ours[:, 0], theirs[:, 0]),
        (ours[:, 1], theirs[:, 1]),
    ]:
        points = np.union1d(a, b)
        below_a = np.searchsorted(np.sort(a), points, side="right") / N
        below_b = np.searchsorted(np.sort(b), points, side="right") / N
        assert np.abs(below_a - below_b).max() < bound


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(5, 400, [0, 196, 5, 7]), (400, 5, [196, 0, 7, 5]), (10, 11, [0, 0, 10, 11])],
)
def test_torchvision_fallback_is_the_largest_central_box(height, width, expected):
    boxes = torchvision_boxes(STREAMS, sizes(height, width), attempts=0)
    assert (boxes == expected).all()


@pytest.mark.parametrize("sampler", [official_boxes, torchvision_boxes])
def test_a_box_depends_on_its_own_stream_and_size_alone(sampler):
    mixed = np.array([[30, 40], [400, 350], [8, 8], [32, 32]] * 25)
    streams = STREAMS.select(np.arange(100))
    together = sampler(streams, mixed)
    for i in range(100):
        alone = sampler(streams.select(np.array([i])), mixed[i : i + 1])
        np.testing.assert_array_equal(together[i], alone[0])
    assert len({tuple(box) for box in together.tolist()}) > 50


@pytest.mark.parametrize("sampler", [official_boxes, torchvision_boxes])
def test_an_image_of_one_pixel_is_its_own_crop(sampler):
    assert (sampler(STREAMS, sizes(1, 1)) == [0, 0, 1, 1]).all()
