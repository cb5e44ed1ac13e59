import pytest
import torch
from torch.nn import functional
from torchvision.transforms.v2 import functional as tv

from stages.data.blur import gaussian_blur, kernel_radius

SIGMAS = torch.tensor([0.1, 0.7, 2.0])


def images(height: int = 24, width: int = 24, channels: int = 3) -> torch.Tensor:
    return torch.rand(3, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("size", "taps"), [(224, 23), (96, 9), (64, 7), (32, 3), (28, 3), (8, 1)])
def test_kernel_has_the_official_number_of_taps(size, taps):
    assert 2 * kernel_radius(size) + 1 == taps


@pytest.mark.parametrize(("height", "width"), [(24, 24), (13, 30)])
@pytest.mark.parametrize("radius", [0, 1, 3, 11])
def test_zero_border_equals_a_padded_convolution(height, width, radius):
    blurred = gaussian_blur(images(height, width), SIGMAS, radius)
    offset = torch.arange(-radius, radius + 1).double()
    for ours, image, sigma in zip(blurred, images(height, width), SIGMAS, strict=True):
        row = torch.exp(-(offset**2) / (2 * sigma.double() ** 2))
        kernel = torch.outer(row, row) / row.sum() ** 2
        expected = functional.conv2d(image.double()[:, None], kernel[None, None], padding=radius)[
            :, 0
        ]
        torch.testing.assert_close(ours, expected.float(), rtol=0, atol=1e-6)


def test_reflected_border_equals_torchvisions_blur():
    blurred = gaussian_blur(images(), SIGMAS, 3, border="reflect")
    for ours, image, sigma in zip(blurred, images(), SIGMAS.tolist(), strict=True):
        expected = tv.gaussian_blur(image, [7, 7], [sigma, sigma])
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)


def test_zero_border_darkens_edges_and_keeps_the_middle():
    blurred = gaussian_blur(torch.ones(1, 1, 20, 20), torch.tensor([1.0]), 3)
    assert blurred[0, 0, 10, 10].item() == pytest.approx(1.0, abs=1e-6)
    assert blurred[0, 0, 0, 10].item() == pytest.approx(0.7001, abs=1e-3)


def test_radius_beyond_the_image_is_refused_where_it_would_reflect():
    with pytest.raises(ValueError, match="radius 24"):
        gaussian_blur(images(), SIGMAS, 24, border="reflect")
