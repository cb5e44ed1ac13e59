"""A product is its folder: a stranger's process rebuilds the network from that alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.models.simclr import build_classifier, build_encoder, build_simclr
from stages.training.products import build_from, write_product

ROOT = Path(__file__).resolve().parents[3]

# What the docstring of stages/training/products.py tells a stranger to write.
BY_HAND = """
import json
from safetensors.torch import load_file
from stages.training.products import build_from
model = build_from(json.load(open(f"{folder}/card.json"))["architecture"])
model.load_state_dict(load_file(f"{folder}/model.safetensors"))
"""

STRANGER = f"""
import json, sys, torch
images = torch.arange(2 * 3 * 32 * 32).reshape(2, 3, 32, 32).remainder(256) / 255
outputs = {{}}
for folder in sys.argv[1:]:
    {BY_HAND.strip().replace(chr(10), chr(10) + "    ")}
    assert isinstance(model, torch.nn.Module)
    with torch.no_grad():
        outputs[folder] = model.eval()(images).tolist()
needless = {{"pydantic", "yaml", "dvc", "prefect", "stages.params"}} & set(sys.modules)
print(json.dumps({{"outputs": outputs, "needless": sorted(needless)}}))
"""


def images() -> Tensor:
    return torch.arange(2 * 3 * 32 * 32).reshape(2, 3, 32, 32).remainder(256) / 255


def architecture(**more: Any) -> dict[str, Any]:
    encoder = {"depth": 18, "width_multiplier": 0.125, "sk_ratio": 0.0, "stem": "small"}
    head = {"depth": 3, "hidden_width": 0.5, "out_dim": 8}
    return {"encoder": encoder, "channels": 3, "head": head} | more


SELECTIVE = {"depth": 50, "width_multiplier": 0.125, "sk_ratio": 0.0625, "stem": "imagenet"}
KINDS = {
    "pretrained": architecture(),
    "selective": architecture(encoder=SELECTIVE),
    "finetuned-0": architecture(from_layer=0, classes=5),
    "finetuned-1": architecture(from_layer=1, classes=5),
    "finetuned-3": architecture(from_layer=3, classes=5),
    "distilled": architecture(encoder=SELECTIVE, from_layer=0, classes=5),
}


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Outputs of one fresh process that has the products' folders and the code, no more."""
    workshop, elsewhere = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("elsewhere")
    for number, (name, described) in enumerate(KINDS.items()):
        torch.manual_seed(number)
        write_product(workshop / name, build_from(described), described, stage="test")
        shutil.copytree(workshop / name, elsewhere / name)
    shutil.rmtree(workshop)
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *KINDS],
        cwd=elsewhere,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_product_is_rebuilt_from_its_card_alone(rebuilt: dict[str, Any], name: str):
    torch.manual_seed(list(KINDS).index(name))
    with torch.no_grad():
        expected = build_from(KINDS[name]).eval()(images())
    torch.testing.assert_close(torch.tensor(rebuilt["outputs"][name]), expected)


def test_rebuilding_takes_torch_and_no_params_or_pipeline(rebuilt: dict[str, Any]):
    assert rebuilt["needless"] == []


def test_the_docstring_says_how(root: Path):
    source = (root / "stages/training/products.py").read_text(encoding="utf-8")
    for line in BY_HAND.strip().splitlines()[2:]:
        assert line.strip() in source


def test_a_card_describes_what_training_builds():
    """The path of a training stage, part by part, and the path of the card end in one network."""
    described = architecture(from_layer=2, classes=5)
    encoder = build_encoder(**described["encoder"], in_channels=3)
    trained = build_classifier(build_simclr(encoder, **described["head"]), 2, 5)
    card = json.loads(json.dumps(described))
    assert {name: value.shape for name, value in build_from(card).state_dict().items()} == {
        name: value.shape for name, value in trained.state_dict().items()
    }
