"""Stages train as params.yaml says: in passes, recomputing, in bfloat16."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.records import read_json
from tests.unit.tiny_study import draw_pictures, numbers_of, prepare, run, write_params

FEW = "4_per_class"
FINETUNE = {"label_fractions": [FEW], "seeds": 1, "layers": [0, 1]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("ways")
    draw_pictures(made / "pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        prepare(made, finetune=FINETUNE)
        yield made


def pretrained(
    folder: Path, batch_norm_images: int | None = 8, **runtime: Any
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Numbers and weights of pretraining."""
    pretrain = {"batch_norm_images": batch_norm_images}
    write_params(folder, pretrain=pretrain, runtime=runtime, finetune=FINETUNE)
    run("pretrain")
    return numbers_of("pretrain"), load_file(folder / "artifacts/pretrain/model.safetensors")


@pytest.mark.parametrize(
    "runtime",
    [
        {"micro_batch": 8},
        {"micro_batch": 16, "recompute": "blocks", "loader_threads": 2},
        {"micro_batch": "auto", "channels_last": False, "loader_threads": 0},
    ],
)
def test_how_a_batch_goes_through_the_network_changes_nothing_beyond_rounding(
    folder: Path, runtime: dict[str, Any]
):
    expected, weights = pretrained(folder)
    found, others = pretrained(folder, **runtime)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert largest_difference(others, weights) < 0.01


def test_over_what_batch_norm_is_changes_what_is_learnt(folder: Path):
    found, expected = pretrained(folder, batch_norm_images=None), pretrained(folder)
    assert found[0]["loss"] != pytest.approx(expected[0]["loss"], rel=2e-3)
    assert largest_difference(found[1], expected[1]) > 0.03


def largest_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Of a tensor's values, over the largest of them."""
    return max(
        float((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-3))
        for name, value in expected.items()
    )


@pytest.mark.parametrize("stage", ["supervised", "finetune"])
def test_a_classifier_trains_in_the_precision_of_its_params(folder: Path, stage: str):
    losses: dict[str, list[float]] = {}
    pretrained(folder)
    for precision in ("float32", "bfloat16"):
        sections = {"finetune": FINETUNE}
        sections[stage] = {**sections.get(stage, {}), "precision": precision}
        write_params(folder, **sections)
        run(stage, "--fraction", FEW)
        curve = Path(f"plots/{stage}/{FEW}.csv").read_text().splitlines()
        column = curve[0].split(",").index("loss")
        losses[precision] = [float(line.split(",")[column]) for line in curve[1:]]
        assert read_json(Path(f"metrics/{stage}/{FEW}.run.json"))["rows"]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.2)
