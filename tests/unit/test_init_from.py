"""A network from elsewhere in the place of pretraining, up to fine-tuning."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipeline.report.results import Study
from pipeline.report.training import pretraining_section
from stages import finetune, pretrain, shard, subsets
from stages.errors import UserError
from stages.models.simclr import SimCLR, build_classifier, build_encoder, build_simclr
from stages.params import load_params
from stages.training.products import read_product, write_product

CLASSES = ("dark", "light")
ARCHITECTURE = {
    "encoder": {"depth": 10, "width_multiplier": 0.0625, "sk_ratio": 0.0, "stem": "small"},
    "channels": 3,
    "head": {"depth": 2, "hidden_width": 1.0, "out_dim": 8},
}


@pytest.fixture(scope="module")
def sharded(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with small colour images in shards, and params to fit."""
    folder = tmp_path_factory.mktemp("project")
    random = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (folder / "photos" / name).mkdir(parents=True)
        for image in range(60):
            pixels = random.integers(120 * number, 120 * number + 120, (16, 16, 3), "uint8")
            Image.fromarray(pixels).save(folder / "photos" / name / f"{image}.png")
    params = yaml.safe_load((root / "pipeline/profiles/smoke.yaml").read_text())
    params["data"] |= {"source": "folder", "root": "photos", "image_size": 16, "channels": 3}
    params["data"] |= {"validation_images": 20, "train_limit": None, "test_limit": None}
    params["pretrain"] |= {"encoder": ARCHITECTURE["encoder"], "head": ARCHITECTURE["head"]}
    params["finetune"] |= {"label_fractions": ["5_per_class"], "layers": [0, 1], "seeds": 1}
    params["finetune"] |= {"duration": "2 steps", "overrides": {}}
    params["distill"] |= {"teacher_layer": 0}
    params["runtime"] |= {"device": "cpu", "threads": 0}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shard.main()
    return folder


@pytest.fixture
def project(sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(sharded, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def start_from(project: Path) -> Callable[[str], None]:
    def write(folder: str) -> None:
        params = yaml.safe_load((project / "params.yaml").read_text())
        params["pretrain"]["init_from"] = folder
        (project / "params.yaml").write_text(yaml.safe_dump(params))

    return write


def network() -> SimCLR:
    torch.manual_seed(3)
    encoder = build_encoder(**ARCHITECTURE["encoder"], in_channels=3)
    return build_simclr(encoder, **ARCHITECTURE["head"])


def test_pretraining_is_replaced_measured_and_not_trained(
    project: Path, start_from: Callable[[str], None], capsys: pytest.CaptureFixture[str]
):
    write_product(project / "elsewhere", network(), ARCHITECTURE, stage="pretrain")
    start_from("elsewhere")
    pretrain.main()
    model, card = read_product(Path("artifacts/pretrain"))
    for name, value in network().state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert card["origin"]["init_from"] == "elsewhere"
    assert card["origin"]["weights_sha256"] == card["weights_sha256"]
    numbers = json.loads(Path("metrics/pretrain.json").read_text())
    assert (numbers["steps"], numbers["images"]) == (0, 0)
    assert numbers["loss"] > 0
    assert 1 <= numbers["effective_rank"] <= 8
    record = json.loads(Path("metrics/pretrain.run.json").read_text())
    assert record["origin"] == card["origin"]
    header, row = Path("plots/pretrain.csv").read_text().splitlines()
    assert header.split(",")[:3] == ["step", "epoch", "loss"]
    assert row.startswith("0,0,")
    assert "took over elsewhere" in capsys.readouterr().out
    page = pretraining_section(Study(project, load_params()))
    assert "<dt>Not trained here, but taken from</dt><dd>elsewhere</dd>" in page
    pretrain.main()  # once more, the same
    assert read_product(Path("artifacts/pretrain"))[1]["weights_sha256"] == card["weights_sha256"]


OF_TRAINING = {
    "grad_norm",
    "param_norm",
    "update_ratio",
    "rollbacks",
    "online_knn",
    "online_linear",
}


def test_the_numbers_are_those_of_the_curve_that_training_leaves(
    project: Path, start_from: Callable[[str], None]
):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["pretrain"] |= {"duration": "2 steps", "warmup": None, "batch_size": 16}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    pretrain.main()
    trained = json.loads(Path("metrics/pretrain.json").read_text())
    curve = Path("plots/pretrain.csv").read_text().splitlines()[0]
    shutil.move("artifacts/pretrain", "elsewhere")
    start_from("elsewhere")
    pretrain.main()
    taken_over = json.loads(Path("metrics/pretrain.json").read_text())
    assert taken_over.keys() == trained.keys() - OF_TRAINING
    columns = Path("plots/pretrain.csv").read_text().splitlines()[0].split(",")
    assert set(columns) == set(curve.split(",")) - OF_TRAINING - {"waited_share"}


def test_fine_tuning_goes_on_from_there(
    project: Path, start_from: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
):
    write_product(project / "elsewhere", network(), ARCHITECTURE, stage="pretrain")
    start_from("elsewhere")
    pretrain.main()
    monkeypatch.setattr(sys, "argv", ["stage", "--fraction", "5_per_class"])
    subsets.main()
    finetune.main()
    assert (project / "artifacts/finetune/5_per_class/layer-1/seed-0/card.json").exists()


def test_layers_of_a_g_that_was_drawn_anew_are_not_fine_tuned(
    project: Path, start_from: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
):
    architecture = {**ARCHITECTURE, "from_layer": 0, "classes": 7}
    write_product(project / "elsewhere", build_classifier(network(), 0, 7), architecture)
    start_from("elsewhere")
    pretrain.main()
    model, card = read_product(Path("artifacts/pretrain"))
    assert card["origin"]["fresh_head"]
    for name, value in network().encoder.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], value), name
    monkeypatch.setattr(sys, "argv", ["stage", "--fraction", "5_per_class"])
    subsets.main()
    with pytest.raises(UserError, match=r"layer 1 of g(.|\n)*finetune\.layers: \[0\]"):
        finetune.main()


def test_a_folder_that_the_stage_itself_writes_is_refused(start_from: Callable[[str], None]):
    start_from("artifacts/pretrain")
    with pytest.raises(UserError, match="which this stage itself writes"):
        pretrain.main()


def test_another_network_is_refused_and_nothing_is_written(
    project: Path, start_from: Callable[[str], None]
):
    grey = {**ARCHITECTURE, "channels": 1}
    encoder = build_encoder(**ARCHITECTURE["encoder"], in_channels=1)
    simclr = build_simclr(encoder, **ARCHITECTURE["head"])
    write_product(project / "elsewhere", simclr, grey)
    start_from("elsewhere")
    with pytest.raises(UserError, match=r"data\.channels: 1 \(grey\) there, 3 \(RGB\) in params"):
        pretrain.main()
    assert not Path("artifacts").exists()
    assert not Path("metrics/pretrain.json").exists()


def test_weights_that_give_no_numbers_are_refused(project: Path, start_from: Callable[[str], None]):
    simclr = network()
    with torch.no_grad():
        simclr.head[1].dense.weight.fill_(float("nan"))
    write_product(project / "elsewhere", simclr, ARCHITECTURE)
    start_from("elsewhere")
    with pytest.raises(UserError, match="gives values that are not finite"):
        pretrain.main()
