import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.data import store as storing
from stages.data.build import Wanted, build_shards
from stages.data.folders import read_class_folders
from stages.data.images import encode_png
from stages.data.random_numbers import key_hash
from stages.data.splits import SplitSizes
from stages.data.store import ImageStore
from stages.errors import UserError


def pixels_of(key: str, height: int = 8, width: int = 9) -> np.ndarray:
    """The picture drawn for a key."""
    rng = np.random.default_rng(key_hash(key) % 2**32)
    return rng.integers(0, 256, (height, width), dtype=np.uint8)


def make(folder: Path, size_of: Callable[[int], tuple[int, int]]) -> Path:
    for name in ("cat", "dog", "unlabelled"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(12):
            data = encode_png(pixels_of(f"{name}/{number}", *size_of(number)))
            (folder / "images" / name / f"{number}.png").write_bytes(data)
    source = read_class_folders(folder / "images")
    wanted = Wanted(SplitSizes(4, 0.2), 0, 1, 10_000, 10, 0.0)
    build_shards(source, wanted, folder / "shards", folder / "work", workers=1)
    return folder / "shards"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("same"), lambda _: (8, 9))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of many sizes, some of them worth a thread."""
    return make(tmp_path_factory.mktemp("mixed"), lambda number: (8 + 8 * number, 90))


def open_train(folder: Path, **options: object) -> ImageStore:
    return ImageStore.open(
        folder, "train", **{"with_labels": True, "channels": 1, "max_pixels": 10_000, **options}
    )


def test_images_come_by_position_in_any_order(shards: Path):
    store = open_train(shards)
    positions = np.array([5, 0, 5, store.n_images - 1])
    images_BCHW = store.images(positions)
    assert images_BCHW.dtype == torch.uint8
    assert images_BCHW.shape == (4, 1, 8, 9)
    for position, image_CHW in zip(positions, images_BCHW, strict=True):
        assert np.array_equal(image_CHW[0].numpy(), pixels_of(store.keys[position]))


@pytest.mark.parametrize("cache_bytes", [2**30, 0])
def test_kept_in_memory_or_not_the_images_are_the_same(shards: Path, cache_bytes: int):
    store = open_train(shards, cache_bytes=cache_bytes)
    everything = np.arange(store.n_images)
    first, again = store.images(everything), store.images(everything)
    assert torch.equal(first, again)
    expected = np.stack([pixels_of(key) for key in store.keys])
    assert np.array_equal(first[:, 0].numpy(), expected)


def test_an_image_is_decoded_once(shards: Path, monkeypatch: pytest.MonkeyPatch):
    decoded = []
    original = storing.decode
    monkeypatch.setattr(storing, "decode", lambda *a: decoded.append(1) or original(*a))
    store = open_train(shards)
    assert decoded == []
    for positions in ([0, 1, 1], [1, 2], [0, 1, 2]):
        store.images(np.array(positions))
    store.at(np.array([2, 3])).images(np.array([0, 1]))
    assert len(decoded) == 4


def test_images_handed_out_can_be_written_to_without_harm(shards: Path):
    store = open_train(shards)
    before = store.images(np.array([0])).clone()
    store.images(np.array([0])).zero_()
    assert torch.equal(store.images(np.array([0])), before)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_many_sizes_are_a_list(mixed: Path, channels: int):
    store = open_train(mixed, channels=channels)
    images = store.images(np.arange(store.n_images))
    assert isinstance(images, list)
    for key, image_CHW in zip(store.keys, images, strict=True):
        expected = pixels_of(key, 8 + 8 * int(key.split("/")[1]), 90)
        assert image_CHW.shape == (channels, *expected.shape)
        assert np.array_equal(image_CHW[-1].numpy(), expected)


def test_classes_are_seen_only_with_labels(shards: Path):
    store = open_train(shards)
    names = [key.split("/")[0] for key in store.keys]
    expected = [{"cat": 0, "dog": 1, "unlabelled": -1}[name] for name in names]
    assert store.class_names == ("cat", "dog")
    assert store.classes.dtype == np.int64
    assert store.classes.tolist() == expected
    assert store.class_tensor(np.array([3, 1])).tolist() == [expected[3], expected[1]]
    blind = open_train(shards, with_labels=False)
    assert blind.class_tensor(np.array([3, 1])) is None
    with pytest.raises(ValueError, match="opened without labels"):
        _ = blind.classes


def test_a_store_of_some_keys_has_their_order(shards: Path):
    whole = open_train(shards)
    keys = [whole.keys[7], whole.keys[2]]
    part = open_train(shards, keys=keys)
    assert part.n_images == 2
    assert list(part.keys) == keys
    assert part.key_hashes.tolist() == [key_hash(key) for key in keys]
    assert torch.equal(part.images(np.array([0, 1])), whole.images(np.array([7, 2])))
    assert part.classes.tolist() == whole.classes[[7, 2]].tolist()
    again = whole.at(np.array([7, 2]))
    assert list(again.keys) == keys
    assert torch.equal(again.images(np.array([1])), whole.images(np.array([2])))
    assert part.fingerprint == whole.fingerprint


def test_a_key_that_is_not_there_says_what_to_run(shards: Path):
    with pytest.raises(UserError, match=r"1 of 1 keys .* 'cat/99'.*\n.*dvc repro subsets"):
        open_train(shards, keys=["cat/99"])


def test_only_the_named_keep_their_class(shards: Path):
    store = open_train(shards)
    labelled = [key for key, c in zip(store.keys, store.classes, strict=True) if c >= 0]
    some = store.with_labels_of(set(labelled[:3]))
    assert some.n_images == store.n_images
    assert (some.classes >= 0).sum() == 3
    for position in np.flatnonzero(some.classes >= 0):
        assert store.keys[position] in labelled[:3]
        assert some.classes[position] == store.classes[position]


def test_threads_may_share_a_store(mixed: Path, shards: Path):
    for folder in (mixed, shards):
        store, alone = open_train(folder), open_train(folder)
        everything = np.arange(store.n_images)
        expected = list(alone.images(everything))
        found: list[bool] = []

        def look(
            store: ImageStore = store,
            expected: list[torch.Tensor] = expected,
            found: list[bool] = found,
        ) -> None:
            images = store.images(np.arange(store.n_images))
            found.append(all(map(torch.equal, images, expected)))

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [True] * 4


def test_a_damaged_shard_is_refused_on_opening(shards: Path, tmp_path: Path):
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    path = sorted(copy.glob("train-*.tar"))[1]
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"damaged {path.name}: its SHA-256"):
        open_train(copy)
    unchecked = open_train(copy, check_digests=False)
    with pytest.raises(UserError, match=rf"{path.name}: the image .* does not decode"):
        unchecked.images(np.arange(unchecked.n_images))
    path.write_bytes(data[:-10240])
    with pytest.raises(UserError, match=rf"{path.name} with \d+ bytes, not \d+"):
        open_train(copy, check_digests=False)


def test_a_limit_lowered_since_names_the_param(shards: Path):
    store = open_train(shards, max_pixels=50)
    with pytest.raises(UserError, match=r"more pixels than max_pixels \(50\).*\n.*data.max_pixels"):
        store.images(np.array([0]))
