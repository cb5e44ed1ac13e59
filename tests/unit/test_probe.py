"""Linear evaluation by SGD, on small shards of real files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from stages import probe, shard, subsets
from stages.data.images import encode_png
from stages.errors import UserError
from stages.evaluation.features import state_digest
from stages.params import Params, load_params
from stages.training.classifier import labelled_keys, open_split
from stages.training.products import build_from, read_product, write_product
from stages.training.recipes import architecture_of
from stages.training.runtime import Runtime

ROOT = Path(__file__).resolve().parents[2]
CPU = Runtime(torch.device("cpu"))
KINDS = ("dark", "light")


def picture(kind: str, rng: np.random.Generator) -> bytes:
    """Noise around a level of grey that tells the kinds apart."""
    level = 60 if kind == "dark" else 190
    return encode_png((level + rng.integers(-30, 31, (16, 16))).astype(np.uint8))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with shards, subsets and a product of random weights."""
    folder = tmp_path_factory.mktemp("workspace")
    rng = np.random.default_rng(0)
    for kind in KINDS:
        for split, count in (("train", 24), ("test", 6)):
            (folder / "pictures" / split / kind).mkdir(parents=True)
            for number in range(count):
                path = folder / f"pictures/{split}/{kind}/{number:02d}.png"
                path.write_bytes(picture(kind, rng))
    params = yaml.safe_load((ROOT / "pipeline/profiles/smoke.yaml").read_text(encoding="utf-8"))
    params["data"] |= {"source": "folder", "root": "pictures", "image_size": 16}
    params["data"] |= {"validation_images": 8, "train_limit": None, "test_limit": None}
    params["pretrain"]["encoder"]["width_multiplier"] = 0.0625
    params["probe"]["method"] = "sgd"
    params["probe"]["sgd"] |= {"duration": "100 steps", "batch_size": 8}
    params["probe"]["sgd"]["optimizer"] |= {"base_lr": 1.0, "lr_scaling": "none"}
    params["runtime"] |= {"device": "cpu", "threads": 1}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shard.main()
        patch.setattr("sys.argv", ["stages.subsets", "--fraction", "10_per_class"])
        subsets.main()
        architecture = architecture_of(load_params())
        torch.manual_seed(0)
        write_product(Path("artifacts/pretrain"), build_from(architecture), architecture)
    return folder


@pytest.fixture
def params(made: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(made)
    return load_params()


def test_a_label_subset_that_was_not_drawn_is_told(params: Params):
    with pytest.raises(UserError, match=r"0.5/seed-0.txt is not there(.|\n)*subsets@0.5"):
        labelled_keys("0.5", 0)


def test_a_classifier_learns_and_its_encoder_stays_as_it_was(params: Params):
    store = open_split("train", params, keys=labelled_keys("10_per_class", 0))
    network, _ = read_product(Path("artifacts/pretrain"))
    before = state_digest(network.encoder)
    learnt = [
        probe.learn_by_sgd(f"probe/x/{run}", network.encoder, store, params, 0, CPU)
        for run in range(2)
    ]
    assert state_digest(network.encoder) == before
    torch.testing.assert_close(learnt[0].state_dict(), learnt[1].state_dict(), rtol=0, atol=0)
    test = probe.with_features(network.encoder, open_split("test", params), params, CPU)
    scored = probe.linear_scores(learnt[0], test, test, params.probe)
    assert scored["test_accuracy"] == 1.0
    assert scored["chosen"] == {"base_lr": 1.0, "duration": "100 steps"}


def test_the_stage_scores_linear_evaluation_by_sgd(params: Params, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["stages.probe", "--fraction", "10_per_class"])
    probe.main()
    rows = json.loads(Path("metrics/probe/10_per_class.run.json").read_text())["rows"]
    methods = {"random_linear", "random_knn", "linear_probe", "knn"}
    assert {row["method"] for row in rows} == methods
    linear = [row for row in rows if row["method"].endswith(("linear", "linear_probe"))]
    assert len(linear) == 2 * params.finetune.seeds
    for row in linear:
        assert row["chosen"] == {"base_lr": 1.0, "duration": "100 steps"}
        assert row["test_accuracy"] > 0.9
    assert not Path("runs/probe/10_per_class").exists()
