import dataclasses

import numpy as np
import pytest
import torch

from stages.data import blur, colour, crops, resize
from stages.data.random_numbers import Streams, key_hashes
from stages.data.views import ViewRecipe, make_views

KEYS = [f"image-{i}" for i in range(8)]
HASHES = key_hashes(KEYS)


def images(size: int = 28, channels: int = 3, n: int = 8, width: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    shape = (n, channels, size, width or size)
    return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)


def views(pixels, recipe, hashes=HASHES, seed=0, epoch=0, n_views=2, **normalisation):
    return make_views(
        pixels,
        recipe,
        seed=seed,
        epoch=epoch,
        key_hashes=hashes,
        n_views=n_views,
        **normalisation,
    )


RECIPES = {
    "official": ViewRecipe.official(40),
    "official v1": ViewRecipe.official(40, 0.5, brightness_kind="v1"),
    "torchvision": ViewRecipe.torchvision(40),
    "torchvision bicubic": ViewRecipe.torchvision(40, resize_kernel="bicubic_antialias"),
    "crop and flip": ViewRecipe.crop_and_flip(40),
}


@pytest.fixture(params=list(RECIPES.values()), ids=list(RECIPES))
def recipe(request) -> ViewRecipe:
    return request.param


@pytest.mark.parametrize("channels", [1, 3])
def test_views_have_shape_type_and_range(recipe, channels):
    made = views(images(48, channels), recipe, n_views=3)
    assert made.shape == (3, 8, channels, 40, 40)
    assert made.dtype == torch.float32
    assert made.min() >= 0
    assert made.max() <= 1
    assert made.is_contiguous()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [28, 48, 200])
def test_a_samples_views_do_not_depend_on_its_batch(recipe, channels, size):
    pixels = images(size, channels)
    together = views(pixels, recipe)
    for i in range(8):
        alone = views(pixels[i : i + 1], recipe, HASHES[i : i + 1])
        torch.testing.assert_close(alone[:, 0], together[:, i], rtol=0, atol=1e-6)
    backwards = views(pixels.flip(0), recipe, HASHES[::-1].copy())
    torch.testing.assert_close(backwards.flip(1), together, rtol=0, atol=1e-6)


def test_the_first_views_do_not_depend_on_how_many_are_drawn(recipe):
    pixels = images(48)
    two, four = views(pixels, recipe), views(pixels, recipe, n_views=4)
    torch.testing.assert_close(four[:2], two, rtol=0, atol=1e-6)


def test_a_list_of_images_gives_the_views_of_a_batch(recipe):
    pixels = images(48, width=56)
    torch.testing.assert_close(
        views(list(pixels), recipe), views(pixels, recipe), rtol=0, atol=2e-6
    )


def test_images_of_different_sizes_are_each_cropped_by_their_own_size(recipe):
    mixed = [images(20, n=1)[0], images(300, n=1, width=150)[0], images(40, n=1)[0]]
    together = views(mixed, recipe, HASHES[:3])
    for i, image in enumerate(mixed):
        alone = views([image], recipe, HASHES[i : i + 1])
        torch.testing.assert_close(together[:, i : i + 1], alone, rtol=0, atol=1e-6)


def test_views_repeat_for_the_same_seed_epoch_and_key_and_differ_otherwise(recipe):
    pixels = images(48)
    first = views(pixels, recipe)
    torch.testing.assert_close(views(pixels, recipe), first, rtol=0, atol=0)
    assert (first[0] - first[1]).abs().amax(dim=(1, 2, 3)).min() > 0.01
    for other in (
        views(pixels, recipe, seed=1),
        views(pixels, recipe, epoch=1),
        views(pixels, recipe, hashes=key_hashes(f"other-{i}" for i in range(8))),
    ):
        assert (first - other).abs().amax(dim=(0, 2, 3, 4)).min() > 0.01


def view_by_hand(image, recipe, key, view):
    """One view, step by step in the official order, from its stream of numbers."""
    streams = Streams.of(0, 0, key_hashes([key]), view)
    draws = streams.uniform(0, 16)[0]
    sizes = np.array([image.shape[-2:]])
    [box] = crops.official_boxes(streams, sizes, area=recipe.crop_area, first_draw=16).tolist()
    flip = bool(draws[0] < recipe.flip_probability)
    out = resize.resized_crop(image, tuple(box), recipe.size, recipe.resize_kernel, flip)[None]
    out = out / 255
    if draws[1] < recipe.jitter_probability:
        factors = draws[2:6] * 1.6 + 0.2
        factors[colour.HUE] = draws[5] * 0.4 - 0.2
        order = np.argsort(draws[6:10])
        colour.jitter_(out, np.array([0]), factors[None], order[None], convention="official")
    if draws[10] < recipe.grayscale_probability:
        colour.to_grayscale_(out)
    out.clamp_(0, 1)
    if draws[11] < recipe.blur_probability:
        sigma = torch.tensor([0.1 + draws[12] * 1.9])
        out = blur.gaussian_blur(out, sigma, recipe.size // 20)
    return out[0].clamp(0, 1)


def test_a_view_is_crop_flip_jitter_grayscale_clip_blur():
    recipe = ViewRecipe.official(40)
    pixels = images(48)
    made = views(pixels, recipe)
    for view in range(2):
        for i, key in enumerate(KEYS):
            expected = view_by_hand(pixels[i], recipe, key, view)
            torch.testing.assert_close(made[view, i], expected, rtol=0, atol=2e-6)


def test_views_are_pinned():
    ramp = torch.arange(0, 256).reshape(1, 1, 16, 16).to(torch.uint8)
    made = views(ramp, ViewRecipe.official(16), key_hashes(["a"]), seed=7, epoch=3)
    corners = made[:, 0, 0][:, [0, 0, 15, 15], [0, 15, 0, 15]]
    expected = torch.tensor(
        [[0.135674, 0.089037, 0.770271, 0.723635], [0.586163, 0.561887, 0.912623, 0.888347]]
    )
    torch.testing.assert_close(corners, expected, rtol=0, atol=1e-5)


def test_normalisation_is_the_last_step():
    recipe = ViewRecipe.official(28)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    plain = views(images(), recipe)
    normalised = views(images(), recipe, mean=mean, std=std)
    expected = (plain - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(normalised, expected, rtol=0, atol=1e-6)


def test_presets_carry_the_papers_strengths():
    full, half = ViewRecipe.official(224), ViewRecipe.official(32, 0.5)
    assert (full.brightness, full.contrast, full.saturation, full.hue) == (0.8, 0.8, 0.8, 0.2)
    assert (half.brightness, half.contrast, half.saturation, half.hue) == (0.4, 0.4, 0.4, 0.1)
    assert (full.blur_probability, half.blur_probability) == (0.5, 0.0)
    assert ViewRecipe.official(32, blur=True).blur_probability == 0.5
    assert ViewRecipe.torchvision(224).crop_sampler == "torchvision"
    fine_tune = ViewRecipe.crop_and_flip(224)
    assert fine_tune.jitter_probability == fine_tune.grayscale_probability == 0
    assert fine_tune.blur_probability == 0


def test_a_grey_image_gives_the_views_of_its_three_channel_copy():
    recipe = ViewRecipe.official(40)
    grey = images(48, channels=1)
    one, three = views(grey, recipe), views(grey.repeat(1, 3, 1, 1), recipe)
    # The grey weights sum to 0.9999.
    torch.testing.assert_close(one.expand_as(three), three, rtol=0, atol=2e-4)


def test_a_recipe_with_nothing_random_returns_the_image():
    recipe = dataclasses.replace(
        ViewRecipe.crop_and_flip(28), crop_area=(1.0, 1.0), flip_probability=0.0
    )
    made = views(images(), recipe)
    torch.testing.assert_close(made[0], images() / 255, rtol=0, atol=1e-6)


def test_images_are_not_changed(recipe):
    pixels = images(48)
    before = pixels.clone()
    views(pixels, recipe)
    assert torch.equal(pixels, before)


def test_keys_must_match_images():
    with pytest.raises(ValueError, match="8 images but 3 keys"):
        views(images(), ViewRecipe.official(28), HASHES[:3])
    with pytest.raises(ValueError, match="no images"):
        views([], ViewRecipe.official(28), HASHES[:0])


@pytest.mark.parametrize("wrong", [images().float(), images(channels=2)])
def test_images_must_be_bytes_of_one_or_three_channels(wrong):
    with pytest.raises(ValueError, match="must be uint8"):
        views(wrong, ViewRecipe.official(28))
