"""Checkpoints that TensorFlow wrote, imported: the stored weights, and the stored outputs.

The folder is GOLDEN_DIR's; any set of the same format will do.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.import_weights import main
from stages.importing.imported import Imported, import_checkpoint
from stages.importing.verify import TOLERANCE, compare_with_file
from stages.models.official_names import OfficialVariable, official_variables
from stages.models.simclr import Classifier, SimCLR

pytestmark = pytest.mark.golden

GOLDEN = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent / "data"))
CHECKPOINTS = sorted(GOLDEN.glob("nets/*/tf[12]_checkpoint"))
TRAIN_RUN = GOLDEN / "train_run"
OF_THE_RUN = [
    path
    for path in (TRAIN_RUN / "saved_model_variables", TRAIN_RUN / "tf2_checkpoint")
    if path.is_dir()
]


def named(path: Path) -> str:
    return f"{path.parent.name}-{path.name}"


@pytest.fixture(params=CHECKPOINTS, ids=named)
def checkpoint(request: pytest.FixtureRequest) -> Path:
    return request.param


def variables_of(imported: Imported) -> list[OfficialVariable]:
    encoder, head = imported.architecture["encoder"], imported.architecture["head"]
    return official_variables(
        encoder["depth"],
        sk=encoder["sk_ratio"] > 0,
        stem=encoder["stem"],
        head_depth=head["depth"],
    )


def assert_weights(imported: Imported, stored: dict[str, np.ndarray]) -> None:
    """The very bits, each under the official name of its place."""
    state = imported.module.state_dict()
    mine = [variable for variable in variables_of(imported) if variable.ours in state]
    assert len(mine) == len(state)
    for variable in mine:
        value = variable.to_official(state[variable.ours])
        assert torch.equal(value, torch.from_numpy(stored[variable.path])), variable.path


def test_the_golden_set_has_checkpoints_of_both_kinds():
    assert {path.name for path in CHECKPOINTS} == {"tf1_checkpoint", "tf2_checkpoint"}, (
        f"checkpoints in {GOLDEN}: {CHECKPOINTS}; set GOLDEN_DIR to a golden set"
    )


def test_the_network_is_the_one_that_was_saved(checkpoint: Path):
    described = json.loads((checkpoint.parent / "variables.json").read_text())["config"]
    flags = described["flags"]
    architecture = import_checkpoint(checkpoint, kind="linear").architecture
    encoder, head = architecture["encoder"], architecture["head"]
    assert (encoder["depth"], encoder["width_multiplier"], encoder["sk_ratio"]) == (
        flags["resnet_depth"],
        flags["width_multiplier"],
        flags["sk_ratio"],
    )
    assert encoder["stem"] == ("small" if described["image_size"] <= 32 else "imagenet")
    assert (head["depth"], head["out_dim"]) == (flags["num_proj_layers"], flags["proj_out_dim"])
    assert architecture["classes"] == described["num_classes"]


def test_weights_are_those_that_were_saved(checkpoint: Path):
    imported = import_checkpoint(checkpoint)
    assert isinstance(imported.module, SimCLR)
    assert_weights(imported, dict(np.load(checkpoint.parent / "weights.npz")))


def test_outputs_are_the_official_ones(checkpoint: Path):
    io = checkpoint.parent / "io.npz"
    pretrained = import_checkpoint(checkpoint).module
    comparison = compare_with_file(pretrained, io)
    heads = len(pretrained.head)
    expected = {"eval_final_avg_pool", *(f"eval_proj_{layer}" for layer in range(heads + 1))}
    assert expected <= comparison.differences.keys()
    for layer in range(heads + 1):
        logits = f"eval_logits_sup_sel{layer}"
        if logits in np.load(io).files:
            classifier = import_checkpoint(checkpoint, from_layer=layer).module
            assert isinstance(classifier, Classifier)
            comparison.differences[logits] = compare_with_file(classifier, io).differences[logits]
            expected.add(logits)
    assert expected <= comparison.differences.keys()
    assert len([name for name in expected if "logits" in name]) > 0
    assert {n: value for n, value in comparison.differences.items() if value > TOLERANCE} == {}


def test_the_command_and_its_check(checkpoint: Path, tmp_path: Path):
    main([str(checkpoint), "--into", str(tmp_path / "product")])
    main(["verify", str(tmp_path / "product"), str(checkpoint.parent / "io.npz")])


@pytest.mark.parametrize("path", OF_THE_RUN, ids=named)
def test_what_the_official_program_left_holds_its_last_weights(path: Path):
    run = np.load(TRAIN_RUN / "run.npz")
    steps = {
        int(name.split("/")[1].removeprefix("step"))
        for name in run.files
        if name.startswith("pretrain/step") and name.split("/")[1].removeprefix("step").isdigit()
    }
    last = f"pretrain/step{max(steps)}/"
    stored = {name.removeprefix(last): run[name] for name in run.files if name.startswith(last)}
    if not stored or not _whole(stored):
        pytest.skip("this set keeps no whole set of last weights")
    assert_weights(import_checkpoint(path), stored)
    assert_weights(import_checkpoint(path, kind="linear"), stored)


def _whole(stored: dict[str, np.ndarray]) -> bool:
    return "supervised_head/linear_layer/dense/kernel" in stored


@pytest.mark.parametrize("path", OF_THE_RUN, ids=named)
@pytest.mark.parametrize("kind", ["pretrained", "linear"])
def test_outputs_of_the_saved_model_are_those_it_gave(path: Path, kind: str):
    module = import_checkpoint(path, kind=kind).module
    comparison = compare_with_file(module, TRAIN_RUN / "run.npz")
    asked = "proj_head_output" if kind == "pretrained" else "logits_sup"
    assert {f"saved_model_out/{asked}", "saved_model_out/final_avg_pool"} <= (
        comparison.differences.keys()
    )
    assert {n: value for n, value in comparison.differences.items() if value > TOLERANCE} == {}
