"""Loss tests' own inputs."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture
def draw_views() -> Callable[..., tuple[Tensor, Tensor]]:
    """Two views of B images whose partners are alike, as projections of width P."""

    def draw(
        n_images: int, width: int, *, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        image_BP = torch.randn(n_images, width, generator=generator, dtype=dtype)
        views = [
            image_BP + 2 * torch.randn(n_images, width, generator=generator, dtype=dtype)
            for _ in range(2)
        ]
        return views[0].requires_grad_(), views[1].requires_grad_()

    return draw
