"""The command: what it writes, says, and the code it ends with."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stages.errors import UserError
from stages.import_weights import main
from stages.importing.verify import official_outputs
from stages.training.products import read_product


@pytest.fixture
def checkpoint(tf: SimpleNamespace, tmp_path: Path) -> Path:
    return tf.laid_out(tf.small_net().official("tf1_name")).save(tmp_path / "tf" / "model.ckpt-1")


@pytest.fixture
def x_BHWC() -> np.ndarray:  # noqa: N802 - a shape suffix
    return np.random.default_rng(0).random((2, 16, 16, 3), "float32")


def outputs_of(net: SimpleNamespace, x_BHWC: np.ndarray) -> dict[str, np.ndarray]:
    x_BCHW = torch.from_numpy(x_BHWC).permute(0, 3, 1, 2).contiguous()
    outputs = official_outputs(net.simclr, x_BCHW)
    return {f"eval_{name}": value.numpy() for name, value in outputs.items()}


def test_a_product_that_rebuilds_itself_with_its_origin_on_the_card(
    tf: SimpleNamespace, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    main([str(checkpoint.parent), "--into", str(tmp_path / "product")])
    module, card = read_product(tmp_path / "product")
    for name, value in tf.small_net().state.items():
        if not name.startswith("linear."):
            assert torch.equal(module.state_dict()[name], value)
    assert (card["stage"], card["kind"]) == ("import_weights", "pretrained")
    assert card["input"]["evaluation_resize"] == "bicubic_tf1"
    files = card["source"]["files"]
    index = checkpoint.with_name("model.ckpt-1.index")
    assert files[index.name]["bytes"] == index.stat().st_size
    assert {len(file["sha256"]) for file in files.values()} == {64}
    said = capsys.readouterr().out
    assert "ResNet-18 (small stem), 3 layers of g, a classifier, width 0.015625x" in said
    assert "kind pretrained, as all of g is there" in said


def test_verify_tells_equal_from_unequal(
    tf: SimpleNamespace,
    checkpoint: Path,
    tmp_path: Path,
    x_BHWC: np.ndarray,
    capsys: pytest.CaptureFixture[str],
):
    product, file = str(tmp_path / "product"), tmp_path / "outputs.npz"
    main([str(checkpoint), "--into", product])
    stored = outputs_of(tf.small_net(), x_BHWC)
    np.savez(file, x_eval=x_BHWC, **stored, eval_logits_sup_sel0=np.ones(3), train_h=np.ones(3))
    main(["verify", product, str(file)])
    said = capsys.readouterr().out
    assert "eval_final_avg_pool: 0\n" in said
    assert "eval_proj_3: 0\n" in said
    assert "not compared: eval_logits_sup_sel0, train_h" in said
    stored["eval_proj_2"] = stored["eval_proj_2"] * np.float32(1.001)
    np.savez(file, x_eval=x_BHWC, **stored)
    with pytest.raises(UserError, match="of the largest value in: eval_proj_2"):
        main(["verify", product, str(file)])
    main(["verify", product, str(file), "--tolerance", "0.01"])
    stored["eval_proj_2"] = stored["eval_proj_2"] * np.float32("nan")
    np.savez(file, x_eval=x_BHWC, **stored)
    with pytest.raises(UserError, match="in: eval_proj_2"):
        main(["verify", product, str(file), "--tolerance", "0.01"])


def test_a_classifier_is_verified_on_its_own_layer(
    tf: SimpleNamespace, checkpoint: Path, tmp_path: Path, x_BHWC: np.ndarray
):
    net, product = tf.small_net(), str(tmp_path / "product")
    main([str(checkpoint), "--into", product, "--from-layer", "2"])
    outputs = outputs_of(net, x_BHWC)
    with torch.no_grad():
        logits = net.linear(torch.from_numpy(outputs["eval_proj_2"])).numpy()
    file = tmp_path / "outputs.npz"
    np.savez(file, input=x_BHWC, logits_sup_sel2=logits, logits_sup_sel1=-logits)
    main(["verify", product, str(file)])


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"final_avg_pool": np.ones((2, 8))}, "holds no input"),
        ({"input": np.ones((2, 3, 16, 16), "float32")}, "images, height, width, 3"),
        ({"input": np.ones((1, 16, 16, 3), "float32"), "other": np.ones(3)}, "holds no output"),
        ({"input": np.ones((1, 16, 16, 3), "float32"), "final_avg_pool": np.ones(3)}, "has shape"),
        ({"input": np.array([{}], dtype=object)}, "can't be read as .npz"),
    ],
)
def test_outputs_that_can_not_be_compared_are_refused(
    checkpoint: Path, tmp_path: Path, arrays: dict, said: str
):
    product, file = str(tmp_path / "product"), tmp_path / "outputs.npz"
    main([str(checkpoint), "--into", product])
    np.savez(file, **arrays)
    with pytest.raises(UserError, match=said):
        main(["verify", product, str(file)])


@pytest.mark.parametrize("contents", [b"", b"no archive", None])
def test_a_file_of_outputs_that_is_none_is_refused(
    checkpoint: Path, tmp_path: Path, contents: bytes | None
):
    product, file = str(tmp_path / "product"), tmp_path / "outputs.npz"
    main([str(checkpoint), "--into", product])
    if contents is not None:
        file.write_bytes(contents)
    with pytest.raises(UserError, match=r"outputs\.npz"):
        main(["verify", product, str(file)])


def test_a_damaged_checkpoint_ends_the_command_with_2_and_leaves_nothing(
    root: Path, checkpoint: Path, tmp_path: Path
):
    data = checkpoint.with_name(f"{checkpoint.name}.data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:-9])
    command = [sys.executable, "-m", "stages.import_weights", str(checkpoint)]
    done = subprocess.run(
        [*command, "--into", str(tmp_path / "product")],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "should end at byte" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "product").exists()
