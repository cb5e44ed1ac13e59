import math

import pytest
import torch
from torch.nn import functional

from stages.data.resize import apply_weights, resize_weights, resized_crop, resized_crops

KERNELS = ["bicubic_tf2", "bicubic_tf1", "bilinear_antialias", "bicubic_antialias"]


def image(height: int, width: int, channels: int = 3, n: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.rand(n, channels, height, width, generator=generator)


def keys_cubic(x: float, a: float) -> float:
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def tensorflow_row(values: list[float], out_size: int, kernel: str) -> list[float]:
    """One row resized as TensorFlow does, written as loops (its 1024-step table left out)."""
    out = []
    for i in range(out_size):
        if kernel == "bicubic_tf2":
            position, a = (i + 0.5) * len(values) / out_size - 0.5, -0.5
        else:
            position, a = i * len(values) / out_size, -0.75
        first = math.floor(position) - 1
        total = weight_sum = 0.0
        for tap in range(first, first + 4):
            weight = keys_cubic(position - tap, a)
            if kernel == "bicubic_tf2" and not 0 <= tap < len(values):
                continue
            total += weight * values[min(max(tap, 0), len(values) - 1)]
            weight_sum += weight
        out.append(total / weight_sum)
    return out


@pytest.mark.parametrize("kernel", ["bicubic_tf2", "bicubic_tf1"])
@pytest.mark.parametrize(("in_size", "out_size"), [(16, 32), (32, 16), (20, 5), (1, 4), (28, 28)])
def test_tensorflow_kernels_equal_loops(kernel, in_size, out_size):
    row = image(1, in_size)[0, 0, 0].double()
    zero = torch.zeros(1, dtype=torch.int64)
    weights = resize_weights(zero, zero + in_size, in_size, out_size, kernel)[0].double()
    expected = torch.tensor(tensorflow_row(row.tolist(), out_size, kernel), dtype=torch.float64)
    # These sizes put every position on an entry of the table or within half a step of one.
    torch.testing.assert_close(weights @ row, expected, rtol=0, atol=1e-3)
    if out_size in {32, 16, 28}:
        torch.testing.assert_close(weights @ row, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width", "size"), [(28, 28, 28), (40, 31, 24), (8, 8, 28), (400, 350, 96)]
)
def test_antialias_kernels_equal_torchs(mode, height, width, size):
    pixels = image(height, width)
    box = torch.tensor([[0, 0, height, width]])
    ours = resized_crops(pixels, box, size, f"{mode}_antialias")
    theirs = functional.interpolate(pixels, (size, size), mode=mode, antialias=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_batch_of_crops_equals_each_crop_cut_out_first(kernel):
    images = image(32, 40, n=4)
    boxes = torch.tensor([[0, 0, 32, 40], [3, 5, 9, 11], [20, 30, 12, 10], [7, 0, 1, 2]])
    flips = torch.tensor([False, True, True, False])
    together = resized_crops(images, boxes, 16, kernel, flips)
    for i, (y, x, h, w) in enumerate(boxes.tolist()):
        alone = resized_crop(images[i], (y, x, h, w), 16, kernel, bool(flips[i]))
        torch.testing.assert_close(together[i], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_pixels_outside_the_box_do_not_matter(kernel):
    images = image(20, 20)
    box = torch.tensor([[4, 6, 8, 9]])
    before = resized_crops(images, box, 16, kernel)
    outside = images.clone()
    outside[..., :4, :] = outside[..., 12:, :] = outside[..., :6] = outside[..., 15:] = 1e6
    outside[..., 4:12, 6:15] = images[..., 4:12, 6:15]
    torch.testing.assert_close(resized_crops(outside, box, 16, kernel), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_weights_of_each_output_pixel_sum_to_one(kernel):
    starts, lengths = torch.tensor([0, 5, 99]), torch.tensor([100, 37, 1])
    weights = resize_weights(starts, lengths, 100, 24, kernel)
    assert weights.shape == (3, 24, 100)
    torch.testing.assert_close(weights.sum(2), torch.ones(3, 24), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_crop_of_the_output_size_is_copied(kernel):
    images = image(30, 30)
    crop = resized_crops(images, torch.tensor([[3, 7, 16, 16]]), 16, kernel)
    torch.testing.assert_close(crop, images[..., 3:19, 7:23], rtol=0, atol=1e-7)


def test_flip_mirrors_the_chosen_images_only():
    images = image(12, 12, n=2)
    boxes = torch.tensor([[0, 0, 12, 12], [1, 2, 8, 9]])
    plain = resized_crops(images, boxes, 10, "bicubic_tf2")
    flipped = resized_crops(images, boxes, 10, "bicubic_tf2", torch.tensor([False, True]))
    torch.testing.assert_close(flipped[0], plain[0], rtol=0, atol=1e-7)
    torch.testing.assert_close(flipped[1], plain[1].flip(2), rtol=0, atol=1e-6)


def test_one_pair_of_weights_serves_a_whole_batch():
    images = image(12, 14, n=3)
    zero = torch.zeros(1, dtype=torch.int64)
    weights_y = resize_weights(zero, zero + 12, 12, 7, "bicubic_tf2")
    weights_x = resize_weights(zero, zero + 14, 14, 7, "bicubic_tf2")
    expected = resized_crops(images, torch.tensor([[0, 0, 12, 14]] * 3), 7, "bicubic_tf2")
    shared = apply_weights(images, weights_y, weights_x)
    torch.testing.assert_close(shared, expected, rtol=0, atol=1e-6)
