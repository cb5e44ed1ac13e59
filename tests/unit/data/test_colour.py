import colorsys
import itertools

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from stages.data import colour

FACTORS = torch.tensor([0.0, 0.3, 1.0, 1.7])


def images(n: int = 4, channels: int = 3, size: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(n, channels, size, size, generator=generator)
    pixels[:, :, 0, 0] = 0.0
    pixels[:, :, 0, 1] = 1.0
    pixels[:, :, 0, 2] = 0.4
    return pixels


def through_hsv(pixels: torch.Tensor, change) -> torch.Tensor:
    """Every pixel of every image through Python's own HSV; change(h, s, v, image number)."""
    out = pixels.clone().double()
    for n, y, x in itertools.product(*(range(pixels.shape[i]) for i in (0, 2, 3))):
        h, s, v = colorsys.rgb_to_hsv(*pixels[n, :, y, x].tolist())
        out[n, :, y, x] = torch.tensor(colorsys.hsv_to_rgb(*change(h, s, v, n))).double()
    return out.float()


def test_official_saturation_scales_s_and_keeps_hue_and_value():
    expected = through_hsv(
        images(), lambda h, s, v, n: (h, min(max(s * FACTORS[n].item(), 0), 1), v)
    )
    ours = colour.adjust_saturation_(images(), FACTORS, "official")
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_hue_turns_h_and_keeps_saturation_and_value():
    turns = torch.tensor([-0.2, 0.0, 0.15, 0.5])
    expected = through_hsv(images(), lambda h, s, v, n: ((h + turns[n].item()) % 1, s, v))
    ours = colour.adjust_hue_(images(), turns)
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)


def test_official_contrast_is_about_the_mean_of_each_channel():
    ours = colour.adjust_contrast_(images(), FACTORS, "official")
    for image, before, factor in zip(ours, images(), FACTORS.tolist(), strict=True):
        for channel in range(3):
            mean = before[channel].mean()
            expected = ((before[channel] - mean) * factor + mean).clamp(0, 1)
            torch.testing.assert_close(image[channel], expected, rtol=0, atol=1e-6)


def test_brightness_v1_adds_and_v2_multiplies():
    addend = torch.tensor([-0.5, 0.0, 0.2, 0.8])
    added = colour.adjust_brightness_(images(), addend, "v1")
    expected = (images() + addend[:, None, None, None]).clamp(0, 1)
    torch.testing.assert_close(added, expected, rtol=0, atol=0)
    multiplied = colour.adjust_brightness_(images(), FACTORS, "v2")
    expected = (images() * FACTORS[:, None, None, None]).clamp(0, 1)
    torch.testing.assert_close(multiplied, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda x, f: colour.adjust_brightness_(x, f, "v2"), tv.adjust_brightness),
        (lambda x, f: colour.adjust_contrast_(x, f, "torchvision"), tv.adjust_contrast),
        (lambda x, f: colour.adjust_saturation_(x, f, "torchvision"), tv.adjust_saturation),
        (lambda x, f: colour.adjust_hue_(x, f - 1), lambda x, f: tv.adjust_hue(x, f - 1)),
    ],
    ids=["brightness", "contrast", "saturation", "hue"],
)
def test_torchvision_operations_equal_torchvisions(ours, theirs):
    factors = torch.tensor([0.6, 0.9, 1.0, 1.4])
    changed = ours(images(), factors)
    for image, before, factor in zip(changed, images(), factors.tolist(), strict=True):
        torch.testing.assert_close(image, theirs(before, factor), rtol=0, atol=5e-6)


def test_grayscale_equals_torchvisions():
    expected = tv.rgb_to_grayscale(images(), num_output_channels=3)
    torch.testing.assert_close(colour.to_grayscale_(images()), expected, rtol=0, atol=1e-6)


def random_jitter(n: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    factors = random.uniform(0.2, 1.8, (n, 4))
    factors[:, colour.HUE] = random.uniform(-0.2, 0.2, n)
    return factors, np.argsort(random.random((n, 4)), axis=1)


@pytest.mark.parametrize("convention", ["official", "torchvision"])
@pytest.mark.parametrize("brightness_kind", ["v1", "v2"])
def test_jitter_applies_each_images_operations_in_its_own_order(convention, brightness_kind):
    factors, orders = random_jitter(40)
    batch = images(40)
    rows = np.arange(40)
    colour.jitter_(
        batch, rows, factors, orders, convention=convention, brightness_kind=brightness_kind
    )
    for i, expected in enumerate(images(40).split(1)):
        factor = torch.from_numpy(factors[i]).float()
        for operation in orders[i]:
            if operation == colour.BRIGHTNESS:
                colour.adjust_brightness_(expected, factor[:1], brightness_kind)
            elif operation == colour.CONTRAST:
                colour.adjust_contrast_(expected, factor[1:2], convention)
            elif operation == colour.SATURATION:
                colour.adjust_saturation_(expected, factor[2:3], convention)
            else:
                colour.adjust_hue_(expected, factor[3:])
        torch.testing.assert_close(batch[i], expected[0], rtol=0, atol=1e-6)


def test_jitter_changes_the_chosen_rows_only():
    factors, orders = random_jitter(2)
    batch = images(5)
    colour.jitter_(batch, np.array([4, 1]), factors, orders, convention="official")
    torch.testing.assert_close(batch[[0, 2, 3]], images(5)[[0, 2, 3]], rtol=0, atol=0)
    alone = images(5)[4:]
    colour.jitter_(alone, np.array([0]), factors[:1], orders[:1], convention="official")
    torch.testing.assert_close(batch[4:], alone, rtol=0, atol=1e-6)


def test_order_matters_because_of_the_clip_after_each_operation():
    factors = np.array([[1.8, 0.2, 1.0, 0.0]])
    first, second = images(1), images(1)
    row = np.array([0])
    colour.jitter_(first, row, factors, np.array([[0, 1, 2, 3]]), convention="official")
    colour.jitter_(second, row, factors, np.array([[1, 0, 2, 3]]), convention="official")
    assert (first - second).abs().max() > 0.1


def test_a_grey_image_is_jittered_as_its_three_channel_copy():
    factors, orders = random_jitter(30)
    grey = images(30, channels=1)
    rgb = grey.repeat(1, 3, 1, 1)
    for convention in ("official", "torchvision"):
        one, three = grey.clone(), rgb.clone()
        colour.jitter_(one, np.arange(30), factors, orders, convention=convention)
        colour.jitter_(three, np.arange(30), factors, orders, convention=convention)
        # 0.2989 + 0.5870 + 0.1140 is 0.9999, which torchvision's grey image inherits.
        torch.testing.assert_close(one.expand_as(three), three, rtol=0, atol=1e-3)


def test_operations_left_out_do_nothing():
    factors, orders = random_jitter(10)
    batch = images(10)
    rows = np.arange(10)
    colour.jitter_(batch, rows, factors, orders, convention="official", operations=())
    torch.testing.assert_close(batch, images(10), rtol=0, atol=0)
    colour.jitter_(batch, rows, factors, orders, convention="official", operations=(colour.HUE,))
    expected = colour.adjust_hue_(images(10), torch.from_numpy(factors[:, colour.HUE]).float())
    torch.testing.assert_close(batch, expected, rtol=0, atol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("convention", ["official", "torchvision"])
@pytest.mark.parametrize("operation", range(4))
def test_values_outside_the_range_are_clipped_by_the_first_operation(
    channels, convention, operation
):
    batch = images(3, channels) * 1.4 - 0.2
    factors = np.array([[1.0, 1.0, 1.0, 0.0]] * 3)
    orders = np.array([[operation, *(set(range(4)) - {operation})]] * 3)
    rows = np.arange(3)
    colour.jitter_(batch, rows, factors, orders, convention=convention)
    assert batch.min() >= 0
    assert batch.max() <= 1
    if operation != colour.SATURATION or convention == "torchvision" or channels == 1:
        # (Official saturation also stops S at 1, which moves the other channels.)
        expected = (images(3, channels) * 1.4 - 0.2).clamp(0, 1)
        torch.testing.assert_close(batch, expected, rtol=0, atol=2e-6)
