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
from stages.data.gpu_jpeg import GpuDecoder
from stages.data.images import decode
from stages.data.splits import SplitSizes
from stages.data.store import ImageStore
from stages.errors import UserError

# torchvision's decoder is to move to torchcodec; see gpu_jpeg.
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
N = 30
MAX_PIXELS = 100_000
FEW = np.arange(5)


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


def store_of(folder: Path, one_size: bool, channels: int) -> ImageStore:
    shards = make(folder, lambda n: 60 if one_size else 60 + n, channels)
    return ImageStore.open(
        shards, "train", with_labels=True, channels=channels, max_pixels=MAX_PIXELS, cache_bytes=0
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("one_size", [True, False])
def test_a_decoder_of_batches_gets_the_plain_files_and_the_rest_is_decoded_here(
    tmp_path: Path, one_size: bool, channels: int, monkeypatch: pytest.MonkeyPatch
):
    """On the CPU, where torchvision's decoder is libjpeg as well: the same pixels."""
    store = store_of(tmp_path, one_size, channels)
    decoder = GpuDecoder(store, channels, torch.device("cpu"))
    handed, decode_them = [], GpuDecoder._decode
    monkeypatch.setattr(
        GpuDecoder,
        "_decode",
        lambda self, files: handed.append(len(files)) or decode_them(self, files),
    )
    positions = np.random.default_rng(0).permutation(store.n_images)
    found, expected = decoder.images(positions), store.images(positions)
    assert isinstance(found, torch.Tensor) == one_size
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    kinds = [int(store.keys[position].split("/")[1]) % 5 for position in positions]
    assert handed == [sum(kind in ({2} if channels == 1 else {2, 3, 4}) for kind in kinds)]


def test_what_a_decoder_of_batches_refuses_is_decoded_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = store_of(tmp_path, one_size=False, channels=3)
    decoder = GpuDecoder(store, 3, torch.device("cpu"))
    monkeypatch.setattr(ImageStore, "plain_jpegs", lambda _, places: [b"none"] * len(places))
    for one, other in zip(decoder.images(FEW), store.images(FEW), strict=True):
        assert torch.equal(one, other)


def test_a_gpu_that_is_full_is_not_taken_for_a_file_that_does_not_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = store_of(tmp_path, one_size=False, channels=3)
    decoder = GpuDecoder(store, 3, torch.device("cpu"))

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("torchvision.io.decode_jpeg", full)
    with pytest.raises(torch.OutOfMemoryError):
        decoder.images(FEW)


def test_a_decoder_that_is_not_there_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise RuntimeError("not compiled with nvJPEG support\nmore")

    monkeypatch.setattr("torchvision.io.decode_jpeg", refuse)
    store = store_of(tmp_path, one_size=True, channels=3)
    with pytest.raises(UserError, match=r"decode_on: gpu, and that fails.*nvJPEG support\n  Write"):
        GpuDecoder(store, 3, torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("one_size", [True, False])
def test_a_gpu_decodes_nearly_the_same_pixels(tmp_path: Path, one_size: bool, channels: int):
    store = store_of(tmp_path, one_size, channels)
    positions = np.arange(store.n_images)
    found = GpuDecoder(store, channels, torch.device("cuda")).images(positions)
    for one, other in zip(found, store.images(positions), strict=True):
        assert one.device.type == "cuda"
        assert one.shape == other.shape
        assert (one.cpu().float() - other.float()).abs().mean() < 3
