"""Checkpoints of every kind, as small networks, to modules with the same weights."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stages.errors import UserError
from stages.importing.imported import import_checkpoint
from stages.models.official_names import in_tracking_order
from stages.models.simclr import Classifier, SimCLR

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
VALUE = ".ATTRIBUTES/VARIABLE_VALUE"


def tf1(tf: SimpleNamespace, folder: Path, **net: object) -> Path:
    return tf.laid_out(tf.small_net(**net).official("tf1_name")).save(folder / "model.ckpt-5")


def assert_same(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    mine = module.state_dict()
    assert mine
    for name, value in mine.items():
        assert torch.equal(value, state[name]), name


def test_f_and_g_of_a_tf1_checkpoint_without_what_belongs_to_training(
    tf: SimpleNamespace, tmp_path: Path
):
    net = tf.small_net()
    tensors = net.official("tf1_name")
    tensors |= {f"{name}/Momentum": value for name, value in tensors.items()}
    tensors["global_step"] = np.int64(1000)
    prefix = tf.laid_out(tensors, n_shards=2).save(tmp_path / "model.ckpt-1000")
    imported = import_checkpoint(prefix)
    assert isinstance(imported.module, SimCLR)
    assert_same(imported.module, net.state)
    assert imported.card["kind"] == "pretrained"
    assert imported.card["source"]["names"] == "TF1 names"
    assert len(imported.card["source"]["files"]) == 3
    assert "left out: the linear classifier" in imported.told


def test_a_tf2_checkpoint_without_its_optimizer(tf: SimpleNamespace, tmp_path: Path):
    net = tf.small_net(50, sk=True)
    tensors: dict = net.official("tf2_key")
    slots = {
        name.replace(VALUE, f".OPTIMIZER_SLOT/optimizer/Momentum/{VALUE}"): value
        for name, value in tensors.items()
    }
    tensors |= slots | {f"global_step/{VALUE}": np.int64(3), GRAPH: b"unread"}
    tensors |= {
        f"optimizer/learning_rate/{VALUE}": np.float32(1),
        f"save_counter/{VALUE}": np.int64(1),
    }
    imported = import_checkpoint(tf.laid_out(tensors).save(tmp_path / "ckpt-3"))
    assert_same(imported.module, net.state)
    assert imported.architecture["encoder"]["sk_ratio"] == 0.0625


def saved_model(net: object, *, shift: int = 0) -> tuple[dict, dict]:
    """A SavedModel's variables by list place, and their names with numbers moved by `shift`."""
    by_name = net.official("tf2_name")
    ordered = in_tracking_order(net.variables)
    tensors, names = {}, {}
    moving: dict[str, int] = {}
    trainable = 0
    for variable in ordered:
        if variable.trainable:
            key, trainable = f"trainable_variables_list/{trainable}/{VALUE}", trainable + 1
        else:
            part = variable.path.split("/")[0]
            moving[part] = moving.get(part, 50) + 1  # after the part's trainable variables
            key = f"model/{part}/variables/{moving[part]}/{VALUE}"
        tensors[key] = by_name[variable.tf2_name]
        names[key] = "/".join(moved(part, shift) for part in variable.tf2_name.split("/"))
    return tensors, names


def moved(part: str, shift: int) -> str:
    """The name of a layer as in a process that had built `shift` of its kind before."""
    kind, _, number = part.rpartition("_")
    if not kind or not number.isdigit():
        kind, number = part, "0"
    numbered = kind in {"conv2d_fixed_padding", "conv2d", "batch_norm_relu", "dense"}
    if not shift or not (numbered or kind == "sync_batch_normalization"):
        return part
    return f"{kind}_{int(number) + shift}"


@pytest.mark.parametrize("shift", [0, 40])
def test_a_saved_model_by_the_names_in_its_object_graph(
    tf: SimpleNamespace, tmp_path: Path, shift: int
):
    net = tf.small_net()
    tensors, names = saved_model(net, shift=shift)
    # Keys in disorder: only the names can bring the values to their places.
    keys = sorted(tensors)
    turned = {key: tensors[other] for key, other in zip(keys, [*keys[7:], *keys[:7]], strict=True)}
    graph = {key: names[other] for key, other in zip(keys, [*keys[7:], *keys[:7]], strict=True)}
    turned[GRAPH] = tf.object_graph(graph)
    tf.laid_out(turned).save(tmp_path / "variables" / "variables")
    imported = import_checkpoint(tmp_path)
    assert imported.card["source"]["names"] == "TF2 variable names"
    assert_same(imported.module, net.state)


@pytest.mark.parametrize("graph", ["none", "other names"])
def test_a_saved_model_by_the_order_of_its_lists(tf: SimpleNamespace, tmp_path: Path, graph: str):
    net = tf.small_net()
    tensors, names = saved_model(net)
    if graph == "other names":
        tensors[GRAPH] = tf.object_graph({key: f"v{n}" for n, key in enumerate(names)})
    tf.laid_out(tensors).save(tmp_path / "variables" / "variables")
    imported = import_checkpoint(tmp_path)
    assert imported.card["source"]["names"] == "SavedModel list order"
    assert_same(imported.module, net.state)


def test_either_of_two_copies(tf: SimpleNamespace, tmp_path: Path):
    plain, copy = tf.small_net(seed=1), tf.small_net(seed=2)
    tensors = plain.official("tf1_name")
    tensors |= {
        f"ema_model/{name}": value
        for name, value in copy.official("tf1_name").items()
        if not name.startswith("head_supervised")
    }
    prefix = tf.laid_out(tensors).save(tmp_path / "model.ckpt-1")
    assert_same(import_checkpoint(prefix).module, plain.state)
    imported = import_checkpoint(prefix, ema=True)
    assert_same(imported.module, copy.state)
    assert imported.card["source"]["weights"] == "EMA copy of f and g"
    classifier = import_checkpoint(prefix, ema=True, kind="linear")
    linear = {name: value for name, value in plain.state.items() if name.startswith("linear.")}
    assert_same(classifier.module, copy.state | linear)


def test_a_copy_that_is_not_there_is_refused(tf: SimpleNamespace, tmp_path: Path):
    with pytest.raises(UserError, match="has no EMA copy"):
        import_checkpoint(tf1(tf, tmp_path), ema=True)


@pytest.mark.parametrize("from_layer", [0, 1, 2, 3])
def test_a_classifier_on_a_layer_of_g(tf: SimpleNamespace, tmp_path: Path, from_layer: int):
    net = tf.small_net(from_layer=from_layer)
    prefix = tf.laid_out(net.official("tf1_name")).save(tmp_path / "model.ckpt-5")
    imported = import_checkpoint(prefix, from_layer=from_layer)
    assert isinstance(imported.module, Classifier)
    assert imported.architecture["from_layer"] == from_layer
    assert imported.architecture["classes"] == 5
    assert_same(imported.module, net.state)


@pytest.mark.parametrize(
    ("folder", "kind", "from_layer"),
    [
        ("pretrained", "pretrained", None),
        ("finetuned_1pct", "finetuned", 1),
        ("finetuned_10pct", "finetuned", 1),
        ("finetuned_100pct", "finetuned", 0),
        ("supervised", "supervised", 0),
        ("distill_10pct", "distilled", 0),
    ],
)
def test_the_folders_of_the_released_weights_say_the_kind(
    tf: SimpleNamespace, tmp_path: Path, folder: str, kind: str, from_layer: int | None
):
    prefix = tf1(tf, tmp_path / folder / "r18_1x_sk0")
    imported = import_checkpoint(prefix)
    assert imported.card["kind"] == kind
    assert imported.architecture.get("from_layer") == from_layer
    assert f"kind {kind}, by the name of the folder {folder}" in imported.told


def test_what_is_taken_for_granted_is_said(tf: SimpleNamespace, tmp_path: Path):
    imported = import_checkpoint(tf1(tf, tmp_path), kind="finetuned")
    assert imported.architecture["from_layer"] == 1
    assert any("layer 1 of g" in told and "it fits 0, 1, 2" in told for told in imported.told)
    # No doubt where only one layer has the width.
    imported = import_checkpoint(tf1(tf, tmp_path, from_layer=3), kind="finetuned")
    assert imported.architecture["from_layer"] == 3


def test_a_network_without_g_is_a_classifier_on_h(tf: SimpleNamespace, tmp_path: Path):
    net = tf.small_net(head_depth=0)
    prefix = tf.laid_out(net.official("tf1_name")).save(tmp_path / "model.ckpt-5")
    imported = import_checkpoint(prefix)
    assert imported.card["kind"] == "supervised"
    assert_same(imported.module, net.state)
    with pytest.raises(UserError, match="holds no whole projection head"):
        import_checkpoint(prefix, kind="pretrained")


def test_first_layers_of_g_alone_are_enough_for_a_classifier(tf: SimpleNamespace, tmp_path: Path):
    net = tf.small_net(from_layer=1)
    tensors = {
        name: value
        for name, value in net.official("tf1_name").items()
        if not name.startswith(("head_contrastive/nl_1", "head_contrastive/nl_2"))
    }
    imported = import_checkpoint(tf.laid_out(tensors).save(tmp_path / "model.ckpt-5"))
    assert (imported.card["kind"], imported.architecture["from_layer"]) == ("finetuned", 1)
    assert_same(imported.module, net.state)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"kind": "pretrained", "from_layer": 1}, "is of a classifier"),
        ({"from_layer": 3}, "can be: 0, 1, 2"),
        ({"from_layer": -1}, "can be: 0, 1, 2"),
    ],
)
def test_a_layer_that_can_not_be_meant_is_refused(
    tf: SimpleNamespace, tmp_path: Path, arguments: dict, said: str
):
    with pytest.raises(UserError, match=said):
        import_checkpoint(tf1(tf, tmp_path), **arguments)


def test_a_classifier_is_not_made_up(tf: SimpleNamespace, tmp_path: Path):
    tensors = {
        name: value
        for name, value in tf.small_net().official("tf1_name").items()
        if not name.startswith("head_supervised")
    }
    prefix = tf.laid_out(tensors).save(tmp_path / "model.ckpt-5")
    assert isinstance(import_checkpoint(prefix).module, SimCLR)
    with pytest.raises(UserError, match="holds no linear classifier"):
        import_checkpoint(prefix, kind="supervised")


def test_a_variable_too_many_is_refused_or_ignored_on_request(tf: SimpleNamespace, tmp_path: Path):
    tensors = tf.small_net().official("tf1_name") | {"base_model/odd/thing": np.ones(3, "float32")}
    prefix = tf.laid_out(tensors).save(tmp_path / "model.ckpt-5")
    with pytest.raises(UserError, match=r"not part of it \(1\):\n    base_model/odd/thing"):
        import_checkpoint(prefix)
    assert import_checkpoint(prefix, ignore=["base_model/odd/*"]).card["kind"] == "pretrained"


def test_weights_that_are_not_finite_are_refused(tf: SimpleNamespace, tmp_path: Path):
    tensors = tf.small_net().official("tf1_name")
    tensors["base_model/conv2d/kernel"] = tensors["base_model/conv2d/kernel"] * np.float32("nan")
    with pytest.raises(UserError, match=r"base_model/conv2d/kernel.* not finite"):
        import_checkpoint(tf.laid_out(tensors).save(tmp_path / "model.ckpt-5"))


def test_another_programs_checkpoint_is_refused(tf: SimpleNamespace, tmp_path: Path):
    prefix = tf.laid_out({"bert/embeddings": np.ones(3, "float32")}).save(tmp_path / "model")
    with pytest.raises(UserError, match=r"no network of the official(.|\n)*bert/embeddings"):
        import_checkpoint(prefix)
