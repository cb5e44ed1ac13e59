"""Photos in a store: JPEG mostly, in colour, decoded where the batch lies."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stages.data import fast_jpeg
from stages.data.build import Wanted, build_shards
from stages.data.folders import read_class_folders
from stages.data.images import decode
from stages.data.splits import SplitSizes
from stages.data.store import ImageStore
from stages.errors import UserError

N = 30
MAX_PIXELS = 100_000


def photo(number: int, height: int, width: int) -> bytes:
    """Every fifth is a PNG, every fifth a JPEG turned by EXIF, every fifth a grey JPEG."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    file, exif = io.BytesIO(), Image.Exif()
    if number % 5 == 0:
        image.save(file, "PNG")
    elif number % 5 == 1:
        exif[0x0112] = 6  # a quarter turn: so as wide as it should be high
        image.resize((height, width)).save(file, "JPEG", exif=exif)
    else:
        image.convert("L" if number % 5 == 2 else "RGB").save(file, "JPEG", quality=80)
    return file.getvalue()


def make(folder: Path, height_of, channels: int) -> Path:
    for number in range(N):
        path = folder / "images" / ("cat", "dog")[number % 2] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(number, height_of(number), 70))
    wanted = Wanted(SplitSizes(4, 0.2), 0, channels, MAX_PIXELS, 10, 0.0)
    source = read_class_folders(folder / "images")
    build_shards(source, wanted, folder / "shards", folder / "work", workers=1)
    return folder / "shards"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("cache_bytes", [0, 2**30])
@pytest.mark.parametrize("one_size", [True, False])
def test_photos_have_pillows_pixels(tmp_path: Path, one_size, cache_bytes, channels):
    shards = make(tmp_path, lambda n: 60 if one_size else 60 + n, channels)
    options = {"with_labels": True, "channels": channels, "max_pixels": MAX_PIXELS}
    store = ImageStore.open(shards, "train", cache_bytes=cache_bytes, **options)
    positions = np.random.default_rng(0).permutation(store.n_images)
    for _ in range(2):  # decoded, and perhaps kept
        images = store.images(positions)
        assert isinstance(images, torch.Tensor) == one_size
        for position, image in zip(positions, images, strict=True):
            data = (tmp_path / "images" / f"{store.keys[position]}.jpg").read_bytes()
            expected = decode(data, channels, MAX_PIXELS).transpose(2, 0, 1)
            np.testing.assert_array_equal(image.numpy(), expected)


def test_without_simplejpeg_pillow_reads_the_same_pixels(tmp_path: Path, monkeypatch):
    shards = make(tmp_path, lambda n: 60 + n, 3)
    store = ImageStore.open(shards, "train", with_labels=False, channels=3, max_pixels=MAX_PIXELS)
    fast = store.images(np.arange(store.n_images))
    monkeypatch.setattr(fast_jpeg, "simplejpeg", None)  # as where it has no wheel
    slow = store.images(np.arange(store.n_images))
    assert all(torch.equal(one, other) for one, other in zip(fast, slow, strict=True))


def test_a_batch_of_colour_lies_in_memory_as_it_was_decoded(tmp_path: Path):
    shards = make(tmp_path, lambda _: 60, 3)
    store = ImageStore.open(shards, "train", with_labels=False, channels=3, max_pixels=MAX_PIXELS)
    images_BCHW = store.images(np.arange(4))
    assert isinstance(images_BCHW, torch.Tensor)
    assert images_BCHW.permute(0, 2, 3, 1).is_contiguous()


def test_a_photo_that_shrank_since_the_index_was_written_is_refused(tmp_path: Path):
    shards = make(tmp_path, lambda _: 60, 3)
    store = ImageStore.open(
        shards, "train", with_labels=False, channels=3, max_pixels=MAX_PIXELS, check_digests=False
    )
    for shard in shards.glob("train*.tar"):
        # The frame header of each JPEG says 52 rows where the index says 60.
        data = shard.read_bytes().replace(b"\x08\x00\x3c\x00\x46\x03", b"\x08\x00\x34\x00\x46\x03")
        with shard.open("r+b") as file:
            file.write(data)
    with pytest.raises(UserError, match="not what the index says"):
        store.images(np.arange(store.n_images))
