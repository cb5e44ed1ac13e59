"""What can take the place of pretraining, and what is said of what can't."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stages.errors import UserError
from stages.import_weights import main
from stages.importing.start import network_to_start_from

WANTED = {
    "encoder": {"depth": 18, "width_multiplier": 1 / 64, "sk_ratio": 0.0, "stem": "small"},
    "channels": 3,
    "head": {"depth": 3, "hidden_width": 1.0, "out_dim": 6},
}


def checkpoint(tf: SimpleNamespace, folder: Path, **net: int) -> Path:
    tf.laid_out(tf.small_net(**net).official("tf1_name")).save(folder / "model.ckpt-1")
    return folder


@pytest.mark.parametrize("imported_before", [True, False])
def test_f_and_g_of_a_product_or_a_checkpoint(
    tf: SimpleNamespace, tmp_path: Path, imported_before: bool
):
    folder = checkpoint(tf, tmp_path / "tf")
    if imported_before:
        main([str(folder), "--into", str(tmp_path / "product")])
        folder = tmp_path / "product"
    start = network_to_start_from(folder, WANTED, seed=0)
    state = tf.small_net().state
    assert all(torch.equal(v, state[name]) for name, v in start.model.state_dict().items())
    assert not start.fresh_head
    assert start.origin["init_from"] == folder.as_posix()
    assert start.origin["source"]["files"]["model.ckpt-1.index"]["sha256"]
    assert start.origin["input"]["evaluation_resize"] == "bicubic_tf1"


def test_a_network_without_g_gets_one_that_the_seed_draws(tf: SimpleNamespace, tmp_path: Path):
    folder = checkpoint(tf, tmp_path, head_depth=0)
    one, same, other = (network_to_start_from(folder, WANTED, seed) for seed in (0, 0, 1))
    assert one.fresh_head
    state = tf.small_net(head_depth=0).state
    for name, value in one.model.encoder.state_dict().items():
        assert torch.equal(value, state[f"encoder.{name}"])
    kernel = "head.0.dense.weight"
    assert torch.equal(one.model.state_dict()[kernel], same.model.state_dict()[kernel])
    assert not torch.equal(one.model.state_dict()[kernel], other.model.state_dict()[kernel])


def test_every_difference_from_the_params_is_listed(tf: SimpleNamespace, tmp_path: Path):
    wanted = {
        "encoder": {"depth": 50, "width_multiplier": 1 / 64, "sk_ratio": 0.0625, "stem": "small"},
        "channels": 1,
        "head": {"depth": 3, "hidden_width": 2.0, "out_dim": 6},
    }
    with pytest.raises(UserError) as refused:
        network_to_start_from(checkpoint(tf, tmp_path), wanted, seed=0)
    assert str(refused.value).splitlines()[1:-1] == [
        "  pretrain.encoder.depth: 18 there, 50 in params.yaml",
        "  pretrain.encoder.sk_ratio: 0.0 there, 0.0625 in params.yaml",
        "  pretrain.head.hidden_width: 1.0 there, 2.0 in params.yaml",
        "  data.channels: 3 (RGB) there, 1 (grey) in params.yaml",
    ]


def test_a_classifier_on_a_layer_of_g_is_no_pretrained_network(tf: SimpleNamespace, tmp_path: Path):
    main([str(checkpoint(tf, tmp_path)), "--into", str(tmp_path / "c"), "--from-layer", "2"])
    with pytest.raises(UserError, match="holds a classifier on layer 2 of g"):
        network_to_start_from(tmp_path / "c", WANTED, seed=0)


def test_a_folder_with_nothing_to_start_from_is_named_with_its_key(tmp_path: Path):
    with pytest.raises(UserError, match=r"^pretrain\.init_from: .*nowhere"):
        network_to_start_from(tmp_path / "nowhere", WANTED, seed=0)
    with pytest.raises(UserError, match=r"^pretrain\.init_from: .*holds no checkpoint"):
        network_to_start_from(tmp_path, WANTED, seed=0)
