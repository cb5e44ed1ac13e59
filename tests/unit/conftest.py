"""What tests of several parts need: real shards, small and made in a moment."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stages.data.build import Wanted, build_shards
from stages.data.folders import read_class_folders
from stages.data.images import encode_png
from stages.data.splits import SplitSizes


@pytest.fixture(scope="session")
def make_noise_shards() -> Callable[..., Path]:
    """Makes shards of two classes of grey noise; called with a folder, it returns theirs."""

    def make(
        folder: Path,
        *,
        per_class: int,
        side: int,
        validation_images: int = 4,
        images_per_shard: int = 8,
    ) -> Path:
        rng = np.random.default_rng(0)
        for name in ("cat", "dog"):
            (folder / "images" / name).mkdir(parents=True)
            for number in range(per_class):
                pixels_HW = rng.integers(0, 256, (side, side), dtype=np.uint8)
                (folder / "images" / name / f"{number}.png").write_bytes(encode_png(pixels_HW))
        wanted = Wanted(SplitSizes(validation_images, 0.2), 0, 1, 10_000, images_per_shard, 0.0)
        source = read_class_folders(folder / "images")
        build_shards(source, wanted, folder / "shards", folder / "work", workers=1)
        return folder / "shards"

    return make
