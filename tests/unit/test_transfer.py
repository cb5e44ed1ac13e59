"""The transfer stage on small data sets of every kind, with a product of random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from stages import transfer
from stages.models.batch_norm import BatchNorm
from stages.params import load_params
from stages.sections.transfer import TransferTraining
from stages.training.products import build_from, write_product
from stages.training.recipes import architecture_of
from stages.training.transfer_tuning import grid, momentum_of
from tests.unit.evaluation.test_other_datasets import draw, write_voc

ROOT = Path(__file__).parents[2]


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    """Runs the stage in a workspace and gives metrics/transfer.run.json."""
    monkeypatch.chdir(tmp_path)
    for kind, shade in (("dark", 40), ("light", 200)):
        for number in range(24):
            draw(Path(f"shades/{kind}/{number:02d}.png"), shade + number % 5)
    write_voc(Path("sets"))
    written = yaml.safe_load((ROOT / "pipeline/profiles/smoke.yaml").read_text(encoding="utf-8"))
    written["data"] |= {"image_size": 16, "channels": 3}
    written["pretrain"]["encoder"]["width_multiplier"] = 0.0625
    training = {"duration": "40 steps", "batch_size": 16, "views": {"crop_area": [0.5, 1.0]}}
    written["transfer"] |= {
        "datasets": [{"name": "shades", "source": "folder", "root": "shades"}, "voc2007", "dtd"],
        "root": "sets",
        "refit": True,
        "train": ["finetune", "supervised", "scratch"],
        "finetune": {
            **training,
            "lr_grid": [0.0001, 0.03],
            "weight_decay_grid": [0.0001],
            "decay_over_lr": True,
        },
        "scratch": {
            **training,
            "lr_grid": [0.03],
            "weight_decay_grid": [],
            "no_weight_decay": True,
        },
    }
    written["runtime"] |= {"device": "cpu", "threads": 1}
    Path("params.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    architecture = architecture_of(load_params())
    torch.manual_seed(1)
    pretrained = build_from(architecture)
    write_product(Path("artifacts/pretrain"), pretrained, architecture)
    classifier = {**architecture, "from_layer": 0, "classes": 2}
    facts = {"facts": {"labels": 20}}
    folder = Path("artifacts/supervised/10_per_class/seed-0")
    write_product(folder, build_from(classifier), classifier, **facts)

    def run() -> dict[str, Any]:
        transfer.main()
        return json.loads(Path("metrics/transfer.run.json").read_text())

    return run


def test_every_method_is_scored_on_every_data_set_by_its_own_measure(
    rows: Callable[[], dict[str, Any]], capsys: pytest.CaptureFixture[str]
):
    found = rows()
    by_place = {(row["dataset"], row["method"]): row for row in found["rows"]}
    methods = {"raw_pixels_linear", "random_linear", "supervised_linear", "linear_probe"}
    methods |= {"finetune", "supervised_finetune", "scratch"}
    assert {method for name, method in by_place if name == "shades"} == methods | {"knn"}
    assert {method for name, method in by_place if name == "voc2007"} == methods
    for method in ("raw_pixels_linear", "linear_probe"):
        assert by_place["shades", method]["score"] == 1.0, method
    assert by_place["shades", "finetune"]["score"] >= 0.9
    tuned = by_place["shades", "finetune"]
    assert tuned["chosen"]["base_lr"] == 0.03  # the other hardly moves in so few steps
    assert [one["weight_decay"] for one in tuned["tried"]] == pytest.approx([1.0, 0.0001 / 0.03])
    voc = by_place["voc2007", "linear_probe"]
    assert voc["metric"] == "mean_average_precision"
    assert voc["score"] == voc["mean_average_precision"]
    assert voc["per_class_average_precision"][:2] == [1.0, 1.0]  # the shade tells these
    tuned_voc = by_place["voc2007", "finetune"]["per_class_average_precision"]
    assert len(tuned_voc) == 20
    assert min(tuned_voc[:2]) >= 0.5  # half of the pictures show each of these
    assert [one["dataset"] for one in found["skipped"]] == ["dtd"]
    assert "put dtd/dtd/ into sets: torchvision.datasets.DTD" in found["skipped"][0]["reason"]
    assert "transfer: dtd skipped:" in capsys.readouterr().out
    verdicts = {(t["dataset"], t["method"], t["against"]): t["verdict"] for t in found["tests"]}
    assert verdicts["shades", "linear_probe", "raw_pixels_linear"] == "no difference"
    assert found["supervised_from"] == "artifacts/supervised/10_per_class/seed-0"
    numbers = json.loads(Path("metrics/transfer.json").read_text())
    assert numbers["voc2007"]["linear_probe"] == voc["score"]
    assert not Path("runs/transfer").exists()


def test_the_papers_grid_is_56_settings_with_decays_over_the_learning_rate():
    recipe = TransferTraining(
        duration="20000 steps",
        batch_size=256,
        lr_grid={"from": 1e-4, "to": 0.1, "n": 7},
        weight_decay_grid={"from": 1e-6, "to": 1e-3, "n": 7},
        no_weight_decay=True,
        decay_over_lr=True,
    )
    settings = list(grid(recipe))
    assert len(settings) == 7 * 8
    assert (settings[0].base_lr, settings[0].weight_decay) == (1e-4, 0.0)
    assert settings[-1].weight_decay == pytest.approx(1e-3 / 0.1)
    assert settings[1].weight_decay == pytest.approx(1e-6 / 1e-4)


@pytest.mark.parametrize(("n_images", "steps", "share"), [(2040, 8, 0.1), (75_750, 296, 10 / 296)])
def test_moving_statistics_remember_a_tenth_of_an_epoch_where_it_is_long(
    n_images: int, steps: int, share: float
):
    assert -(-n_images // 256) == steps
    assert momentum_of(n_images, 256) == pytest.approx(share)


def test_a_batch_norm_takes_the_share_it_is_told():
    norm = BatchNorm(2)
    norm.momentum = 0.03
    norm(torch.full((4, 2), 5.0))
    torch.testing.assert_close(norm.running_mean, torch.full((2,), 0.15))
