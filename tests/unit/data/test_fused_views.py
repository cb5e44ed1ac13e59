import dataclasses
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages.data import fused_views
from stages.data.random_numbers import key_hashes
from stages.data.view_recipe import ViewRecipe
from stages.data.views import make_views

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KERNELS = ("bicubic_tf2", "bicubic_tf1", "bilinear_antialias", "bicubic_antialias")


def photos(n: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Smooth pictures that reach black and white; half of them with noise, one all grey."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    rough = torch.rand(n, channels, height // 5 + 2, width // 5 + 2, generator=generator)
    pixels = F.interpolate(rough, size=(height, width), mode="bicubic") * 320 - 30
    pixels[::2] += 20 * torch.randn(pixels[::2].shape, generator=generator)
    pixels[0] = pixels[0, :1]
    return pixels.clamp(0, 255).to(torch.uint8)


def views(images, recipe, program, epoch=0, first_key=0, **options):
    hashes = key_hashes(f"key-{first_key + i}" for i in range(len(images)))
    return make_views(
        images, recipe, seed=3, epoch=epoch, key_hashes=hashes, program=program, **options
    )


def by_pixel(images_BCHW: torch.Tensor) -> torch.Tensor:
    """The same images with their channels side by side in memory, as a decoder leaves them."""
    return images_BCHW.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


NAMED = {
    "official": ViewRecipe.official(40),
    "official v1, strength 0.5": ViewRecipe.official(40, 0.5, brightness_kind="v1"),
    "official, in TensorFlow 1's resize": dataclasses.replace(
        ViewRecipe.official(40), resize_kernel="bicubic_tf1"
    ),
    "torchvision": ViewRecipe.torchvision(40),
    "torchvision bicubic": ViewRecipe.torchvision(40, resize_kernel="bicubic_antialias"),
    "in the order as listed": dataclasses.replace(ViewRecipe.official(40), random_order=False),
    "always, and as wide as it gets": dataclasses.replace(
        ViewRecipe.official(100),
        jitter_probability=1.0,
        grayscale_probability=0.5,
        blur_probability=1.0,
        blur_sigma=(5.0, 9.0),
    ),
    "crop and flip": ViewRecipe.crop_and_flip(40),
    "without colour": dataclasses.replace(ViewRecipe.official(40), saturation=0.0, hue=0.0),
    "without brightness": dataclasses.replace(ViewRecipe.official(40), brightness=0.0),
    "without any jitter": dataclasses.replace(
        ViewRecipe.official(40), brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0
    ),
}
SIZES = {
    "as large as a view": (40, 40),
    "wide": (41, 90),
    "tall": (120, 37),
    "large": (230, 260),
    "tiny": (3, 2),
    "a pixel": (1, 1),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("recipe", NAMED.values(), ids=NAMED)
def test_fused_views_equal_the_reference(recipe, image_size, channels):
    images = photos(12, channels, *image_size)
    fused = views(images, recipe, "fused")
    torch.testing.assert_close(fused, views(images, recipe, "eager"), rtol=0, atol=1e-5)
    assert fused.is_contiguous()


def random_recipe(rng: np.random.Generator) -> ViewRecipe:
    """Any recipe: sizes, kernels, conventions, strengths, orders, borders mixed at will."""
    smallest = rng.uniform(0.01, 0.9)
    narrow = rng.uniform(0.05, 2.0)
    return ViewRecipe(
        size=int(rng.integers(1, 130)),
        crop_sampler=rng.choice(["official", "torchvision"]).item(),
        crop_area=(smallest, rng.uniform(smallest, 1.0)),
        crop_aspect=(rng.uniform(0.4, 1.0), rng.uniform(1.0, 2.5)),
        resize_kernel=rng.choice(KERNELS).item(),
        flip_probability=rng.uniform(),
        jitter_probability=rng.uniform(0.5, 1.0),
        brightness=rng.choice([0.0, 0.4, 0.8, 1.3]).item(),
        contrast=rng.choice([0.0, 0.4, 0.8, 1.3]).item(),
        saturation=rng.choice([0.0, 0.4, 0.8, 1.3]).item(),
        hue=rng.choice([0.0, 0.1, 0.2, 0.5]).item(),
        brightness_kind=rng.choice(["v1", "v2"]).item(),
        colour_convention=rng.choice(["official", "torchvision"]).item(),
        random_order=bool(rng.integers(2)),
        grayscale_probability=rng.choice([0.0, 0.2, 1.0]).item(),
        blur_probability=rng.choice([0.0, 0.5, 1.0]).item(),
        blur_sigma=(narrow, narrow + rng.uniform(0, 4.0)),
        blur_border=rng.choice(["zero", "reflect"]).item(),
    )


@pytest.mark.parametrize("seed", range(40))
def test_fused_views_of_any_recipe_equal_the_reference(seed):
    rng = np.random.default_rng(seed)
    recipe, channels = random_recipe(rng), int(rng.choice([1, 3]))
    images = photos(6, channels, *rng.integers(8, 150, 2).tolist())
    options = {"n_views": int(rng.integers(1, 4)), "epoch": seed}
    fused = views(images, recipe, "fused", **options)
    eager = views(images, recipe, "eager", **options)
    torch.testing.assert_close(fused, eager, rtol=0, atol=1e-5, msg=lambda m: f"{recipe}\n{m}")


@pytest.mark.parametrize("recipe", [ViewRecipe.official(224), ViewRecipe.torchvision(224)])
def test_fused_views_equal_the_reference_at_the_papers_size(recipe):
    images = photos(6, 3, 350, 400)
    fused = views(list(by_pixel(images)), recipe, "fused")
    torch.testing.assert_close(fused, views(images, recipe, "eager"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalised_fused_views_equal_the_reference(channels):
    images, recipe = photos(8, channels, 64, 64), ViewRecipe.official(48)
    normalisation = {"mean": MEAN[:channels], "std": STD[:channels]}
    fused = views(images, recipe, "fused", **normalisation)
    eager = views(images, recipe, "eager", **normalisation)
    torch.testing.assert_close(fused, eager, rtol=0, atol=1e-5 / min(STD))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_fused_view_is_the_same_bit_for_bit_in_whatever_batch(channels):
    images, recipe = photos(9, channels, 60, 70), ViewRecipe.official(45)
    together = views(images, recipe, "fused")
    assert torch.equal(views(by_pixel(images), recipe, "fused"), together)
    assert torch.equal(views(list(images), recipe, "fused"), together)
    assert torch.equal(views(list(by_pixel(images)), recipe, "fused"), together)
    assert torch.equal(views(images, recipe, "fused", n_views=3)[:2], together)
    for i in range(9):
        alone = views(images[i : i + 1], recipe, "fused", first_key=i)
        assert torch.equal(alone[:, 0], together[:, i])


def test_images_of_different_sizes_give_the_views_they_give_alone():
    recipe = ViewRecipe.torchvision(50)
    mixed = [photos(1, 3, 20, 30)[0], photos(1, 3, 300, 150)[0], photos(1, 3, 50, 50)[0]]
    together = views(mixed, recipe, "fused")
    torch.testing.assert_close(together, views(mixed, recipe, "eager"), rtol=0, atol=1e-5)
    for i, image in enumerate(mixed):
        assert torch.equal(views([image], recipe, "fused", first_key=i)[:, 0], together[:, i])


@pytest.mark.parametrize("n_threads", [2, 3, 5])
@pytest.mark.parametrize("as_list", [False, True])
def test_threads_change_nothing(n_threads, as_list):
    images, recipe = photos(4, 3, 40, 50), ViewRecipe.official(40)
    given = list(images) if as_list else images
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = views(given, recipe, "fused")
        torch.set_num_threads(n_threads)
        assert torch.equal(views(given, recipe, "fused"), alone)
    finally:
        torch.set_num_threads(before)


def test_loader_threads_may_make_fused_views_at_the_same_time():
    images, recipe = photos(16, 3, 64, 64), ViewRecipe.official(64)
    expected = [views(images, recipe, "fused", epoch=epoch) for epoch in range(4)]
    made: dict[int, torch.Tensor] = {}

    def work(epoch: int) -> None:
        made[epoch] = views(images, recipe, "fused", epoch=epoch)

    threads = [threading.Thread(target=work, args=(epoch,)) for epoch in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(made[epoch], expected[epoch]) for epoch in range(4))


def test_memory_in_no_usual_order_is_read_right():
    images, recipe = photos(5, 3, 40, 48), ViewRecipe.official(40)
    expected = views(images, recipe, "fused")
    transposed = images.transpose(2, 3).contiguous().transpose(2, 3)
    sliced = F.pad(images, (3, 2, 1, 0))[:, :, 1:, 3:-2]
    assert torch.equal(views(transposed, recipe, "fused"), expected)
    assert torch.equal(views(sliced, recipe, "fused"), expected)


def test_images_are_not_changed():
    images = photos(5, 3, 40, 48)
    before = images.clone()
    views(images, ViewRecipe.official(40), "fused")
    assert torch.equal(images, before)


def test_large_views_are_fused_where_numba_is_there_and_the_reference_elsewhere(monkeypatch):
    images, recipe = photos(4, 3, 40, 40), ViewRecipe.official(32)
    assert torch.equal(views(images, recipe, "auto"), views(images, recipe, "fused"))
    monkeypatch.setitem(sys.modules, "numba", None)  # as if it were not installed
    assert torch.equal(views(images, recipe, "auto"), views(images, recipe, "eager"))


def test_views_of_small_grey_images_load_no_compiler():
    program = """
import sys, numpy, torch
from stages.data.views import ViewRecipe, make_views
images = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
keys = numpy.arange(2, dtype=numpy.uint64)
make_views(images, ViewRecipe.official(28), seed=0, epoch=0, key_hashes=keys)
sys.exit("numba" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_fused_views_refuse_images_elsewhere():
    images = torch.empty(2, 3, 40, 40, dtype=torch.uint8, device="meta")
    with pytest.raises(ValueError, match="made on the CPU, these images are on meta"):
        views(images, ViewRecipe.official(40), "fused")


def test_every_kernel_of_the_resize_has_a_fused_one():
    assert set(fused_views._KERNELS) == set(KERNELS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("recipe", NAMED.values(), ids=NAMED)
def test_views_on_a_gpu_equal_those_on_the_cpu(recipe, channels):
    images = photos(12, channels, 60, 70)
    on_gpu = views(images.cuda(), recipe, "auto")
    assert on_gpu.is_cuda
    for program in ("eager", "fused"):
        on_cpu = views(images, recipe, program)
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=1e-5)
