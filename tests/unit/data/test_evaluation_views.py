import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from stages.data import resize
from stages.data.evaluation_views import (
    EvaluationRecipe,
    central_box,
    official_evaluation_views,
    torchvision_evaluation_views,
)


def images(height: int, width: int, n: int = 3, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, height, width), generator=generator).to(torch.uint8)


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (256, 256, (16, 16, 224, 224)),
        (97, 131, (6, 23, 85, 85)),
        (120, 80, (25, 5, 70, 70)),
        (1, 9, (0, 4, 1, 1)),
    ],
)
def test_central_box_keeps_seven_eighths_of_the_shorter_side(height, width, box):
    assert central_box(height, width, 0.875) == box


@pytest.mark.parametrize("kernel", ["bicubic_tf1", "bicubic_tf2"])
def test_official_images_are_the_central_box_resized_and_clipped(kernel):
    pixels = images(97, 131)
    boxes = torch.tensor([[6, 23, 85, 85]] * 3)
    expected = resize.resized_crops(pixels.float() / 255, boxes, 64, kernel).clamp(0, 1)
    ours = official_evaluation_views(pixels, 64, kernel)
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [28, 32])
def test_official_images_up_to_32_pixels_are_left_alone(size):
    pixels = images(size, size, channels=1)
    expected = pixels / 255
    torch.testing.assert_close(official_evaluation_views(pixels, size), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("prepare", [official_evaluation_views, torchvision_evaluation_views])
def test_a_smaller_source_is_enlarged_whole(prepare):
    pixels = images(8, 8, channels=1)
    pixels[..., 0, 0], pixels[..., 7, 7] = 0, 255
    ours = prepare(pixels, 28)
    assert ours.shape == (3, 1, 28, 28)
    # The outermost output pixels lie nearest to the outermost input pixels: nothing was cut off.
    assert ours[..., 0, 0].max() < 0.3
    assert ours[..., 27, 27].min() > 0.7


@pytest.mark.parametrize(
    ("height", "width", "size"), [(100, 130, 64), (130, 101, 64), (60, 60, 96), (40, 50, 32)]
)
@pytest.mark.parametrize("mode", [InterpolationMode.BILINEAR, InterpolationMode.BICUBIC])
def test_torchvision_images_equal_resize_and_center_crop(height, width, size, mode):
    resize_to = round(size * 8 / 7) if size > 32 else size
    theirs = v2.Compose([v2.Resize(resize_to, mode, antialias=True), v2.CenterCrop(size)])
    pixels = images(height, width)
    ours = torchvision_evaluation_views(pixels, size, f"{mode.value}_antialias")
    expected = theirs(pixels.float() / 255).clamp(0, 1)
    torch.testing.assert_close(ours, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("prepare", [official_evaluation_views, torchvision_evaluation_views])
def test_a_list_of_any_sizes_equals_one_image_at_a_time(prepare):
    mixed = [images(50, 40, n=1)[0], images(64, 64, n=1)[0], images(33, 90, n=1)[0]]
    together = prepare(mixed, 48)
    assert together.shape == (3, 3, 48, 48)
    for i, image in enumerate(mixed):
        torch.testing.assert_close(together[i : i + 1], prepare(image[None], 48), rtol=0, atol=0)


def test_resizing_below_the_cut_is_refused():
    with pytest.raises(ValueError, match=r"resize_to \(30\)"):
        torchvision_evaluation_views(images(50, 50), 48, resize_to=30)


def test_a_recipe_left_open_is_the_official_test_image():
    pixels = images(97, 131)
    expected = official_evaluation_views(pixels, 64)
    torch.testing.assert_close(EvaluationRecipe(64)(pixels), expected, rtol=0, atol=0)


def test_a_recipe_has_the_convention_kernel_and_share_it_names():
    pixels = images(97, 131)
    for recipe, expected in (
        (
            EvaluationRecipe(64, "official", "bicubic_tf1", 0.5),
            official_evaluation_views(pixels, 64, "bicubic_tf1", 0.5),
        ),
        (
            EvaluationRecipe(64, "torchvision"),
            torchvision_evaluation_views(pixels, 64, "bilinear_antialias"),
        ),
        (
            EvaluationRecipe(64, "torchvision", "bicubic_antialias", 0.8),
            torchvision_evaluation_views(pixels, 64, "bicubic_antialias", resize_to=80),
        ),
    ):
        torch.testing.assert_close(recipe(pixels), expected, rtol=0, atol=0)
        assert (recipe(pixels) - EvaluationRecipe(64)(pixels)).abs().max() > 0.05
