"""The chain with its shards in a bucket: published by one, trained on by another."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from stages import pretrain, shard
from stages.data.images import encode_png
from stages.data.remote import Remote
from stages.errors import UserError, run_stage
from stages.params import check_params, load_params
from stages.training import pretraining
from stages.training.images import open_images

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Remote.__init__, "__defaults__", ((0.01, 0.02),))


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch, **data: Any) -> None:
    """A workspace of its own."""
    folder.mkdir()
    text = (ROOT / "pipeline/profiles/smoke.yaml").read_text(encoding="utf-8")
    params = yaml.safe_load(text)
    params["data"] |= {"validation_images": 10, "test_fraction": 0.2, "images_per_shard": 16}
    params["data"] |= {"train_limit": None, "test_limit": None, "image_size": 16, **data}
    params["pretrain"] |= {"duration": "6 steps", "warmup": None, "batch_size": 16}
    params["runtime"] |= {"cache_gigabytes": 0.001, "device": "cpu", "threads": 1}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    monkeypatch.chdir(folder)


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(60):
            pixels = rng.integers(0, 256, (16, 16), dtype=np.uint8)
            (tmp_path / f"pictures/{name}/{number}.png").write_bytes(encode_png(pixels))
    return str(tmp_path / "pictures")


def weights() -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (file,) = Path("artifacts/pretrain").glob("*.safetensors")
    return load_file(file)


def test_pretraining_on_a_bucket_ends_where_it_ends_on_this_disk(
    pictures: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    enter(tmp_path / "disk", monkeypatch, source="folder", root=pictures, shuffle_shards=2)
    shard.main()
    pretrain.main()
    expected = weights()
    numbers = yaml.safe_load(Path("metrics/pretrain.json").read_text())
    assert 0 < numbers["shards_per_batch_of_full_shuffle"] <= 1

    enter(tmp_path / "one", monkeypatch, source="folder", root=pictures, shards_at=bucket)
    shard.main()
    assert not list(Path("data/shards").glob("*.tar"))

    enter(tmp_path / "other", monkeypatch, source="published", shards_at=bucket, shuffle_shards=2)
    shard.main()
    pretrain.main()
    assert all(torch.equal(expected[name], found) for name, found in weights().items())
    assert list(Path("data/cache").glob("*.tar"))
    found = yaml.safe_load(Path("metrics/pretrain.json").read_text())
    assert found["loss"] == numbers["loss"]


def test_a_network_that_dies_in_training_keeps_what_was_learnt(
    pictures: str,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wire: Any,
    capsys: Any,
):
    enter(tmp_path / "here", monkeypatch, source="folder", root=pictures, shards_at=bucket)
    shard.main()
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["data"]["shuffle_shards"] = 1
    Path("params.yaml").write_text(yaml.safe_dump(params))
    pretrain.main()
    expected = weights()
    for path in Path("data/cache").iterdir():
        path.unlink()

    step = pretraining.contrastive_step

    def cut_after_the_second(*arguments: Any, **options: Any) -> Any:
        train = step(*arguments, **options)

        def one(state: Any, batch: Any) -> Any:
            if state.step == 1:
                wire.left = 0
                wire._break()
                for path in Path("data/cache").iterdir():
                    path.unlink()
            return train(state, batch)

        return one

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "contrastive_step", cut_after_the_second)
        with pytest.raises(SystemExit) as stopped:
            run_stage(pretrain.main)
    assert stopped.value.code == 75
    assert "can't be reached" in capsys.readouterr().err
    wire.mend()
    pretrain.main()
    assert re.search(r"continuing at step [1-6] from", capsys.readouterr().out)
    assert all(torch.equal(expected[name], found) for name, found in weights().items())


def test_published_needs_an_address_and_an_address_must_be_one(tmp_path: Path):
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["data"] |= {"source": "published"}
    with pytest.raises(UserError, match="source published needs shards_at"):
        check_params(params)
    params["data"] |= {"shards_at": "simplecache::s3://x/y"}
    with pytest.raises(UserError, match=r"data.shards_at: write one plain address"):
        check_params(params)


def test_a_cache_too_small_for_a_full_shuffle_says_so_before_training(
    pictures: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    enter(tmp_path / "here", monkeypatch, source="folder", root=pictures, shards_at=bucket)
    shard.main()
    params = load_params()
    runtime = params.runtime.model_copy(update={"cache_gigabytes": 5e-5})
    store = open_images(params.model_copy(update={"runtime": runtime}), "train", with_labels=False)
    with pytest.raises(UserError, match=r"shuffling reads \d+ shards at a time"):
        store.order(0)
