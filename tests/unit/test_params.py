"""params.yaml is checked before anything runs, and a mistake is named."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.errors import UserError
from stages.models.resnet import STRIDE
from stages.params import check_params, load_params
from stages.sections.kinds import duration_in_steps
from stages.sections.networks import SMALLEST_IMAGE

ROOT = Path(__file__).parents[2]


@pytest.fixture
def written() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "pipeline/profiles/quick.yaml").read_text(encoding="utf-8"))


def message_for(written: dict[str, Any], key: str, value: Any) -> str:
    """What the user is told when `key` (dotted) is set to `value`."""
    changed = copy.deepcopy(written)
    *sections, last = key.split(".")
    place = changed
    for section in sections:
        place = place[section]
    place[last] = value
    with pytest.raises(UserError) as error:
        check_params(changed)
    return str(error.value)


def test_a_misspelt_key_is_named_with_the_keys_that_exist(written: dict[str, Any]):
    message = message_for(written, "pretrain.temprature", 0.2)
    assert message.startswith("params.yaml can't be used:")
    assert "pretrain.temprature: no such key; known here: encoder, head" in message
    assert "temperature" in message


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("pretrain.temperature", 0, "should be greater than 0 (you wrote 0)"),
        ("pretrain.encoder.depth", 51, "pretrain.encoder.depth: Input should be 10, 18, 34, 50"),
        ("pretrain.encoder.sk_ratio", 0.0625, "sk_ratio needs depth 50 or more (depth is 10)"),
        ("pretrain.duration", "20 epoch", "'60 epochs', '500 steps'"),
        ("pretrain.duration", 20, "a number and a unit, like '60 epochs'"),
        ("pretrain.duration", "0 epochs", "longer than nothing"),
        ("pretrain.views.crop_area", [0.9, 0.2], "must rise within 0 and 1"),
        ("finetune.label_fractions", [0.01, 0.01], "named twice: 0.01"),
        ("finetune.label_fractions", [1.5], "a share of the labels above 0 and up to 1"),
        ("finetune.label_fractions", ["0_per_class"], "(you wrote '0_per_class')"),
        ("finetune.layers", [0, 4], "pretrain.head.depth is 3"),
        ("distill.teacher_layer", 3, "must be one of finetune.layers [0, 1, 2]"),
        ("distill.small.seeds", 9, "above finetune.seeds (3)"),
        ("finetune.overrides", {"0.1": {"layers": [0]}}, "must hold distill.teacher_layer (1)"),
        ("finetune.overrides", {"0.1": {"layers": [1, 3]}}, "0.1.layers [1, 3] must be among"),
        ("finetune.label_lists", {"0.5": "half.txt"}, "label_lists names 0.5, not in label_fract"),
        (
            "finetune.label_lists",
            {"0.1": "../x.txt"},
            "a file in stages/label_lists/, without a folder",
        ),
        ("data.image_size", 14, "data.image_size (14 pixels) is too small for pretrain.encoder"),
        ("data.image_size", 14, "stem small_stride2 needs 16 or more"),
        ("pretrain.views.size", 15, "pretrain.views.size (15 pixels) is too small"),
        ("pretrain.loss", {"kind": "nt_xent", "semi_hard": True}, "semi_hard is of nt_logistic"),
        ("pretrain.loss.kind", "barlow", "'nt_logistic' or 'margin_triplet' (you wrote 'barlow')"),
        ("pretrain.optimizer.nesterov", True, "adamw has no nesterov; leave it out"),
        ("pretrain.optimizer.trust_coefficient", 0.01, "adamw has no trust_coefficient"),
        ("probe.sgd", {}, "probe.sgd.duration: is missing"),
        ("evaluation.resize", "bicubic", "evaluation.resize: Input should be 'bicubic_tf2', 'bi"),
        ("data.source", "folder", "source folder needs root"),
        ("data.channels", 2, "data.channels: Input should be 1 or 3 (you wrote 2)"),
        ("runtime.threads", "many", "runtime.threads: Input should be a valid integer"),
    ],
)
def test_an_impossible_value_is_named_with_what_is_allowed(
    written: dict[str, Any], key: str, value: Any, part: str
):
    assert part in message_for(written, key, value)


@pytest.mark.parametrize("kind", ["nt_logistic", "margin_triplet"])
@pytest.mark.parametrize("memory", ["simclr", "moco"])
def test_a_memory_is_for_nt_xent_alone(written: dict[str, Any], kind: str, memory: str):
    written["pretrain"]["loss"]["kind"] = kind
    check_params(written)
    message = message_for(written, "pretrain.memory.kind", memory)
    assert f"loss.kind {kind} knows no memory (memory.kind is {memory})" in message


def test_files_are_decoded_on_a_gpu_where_views_are_made(written: dict[str, Any]):
    written["pretrain"]["decode_on"] = "gpu"
    assert "needs the views there" in message_for(written, "runtime.views_on", "cpu")


def test_linear_evaluation_by_sgd_needs_its_settings(written: dict[str, Any]):
    written["probe"]["method"] = "sgd"
    check_params(written)
    assert "method sgd needs sgd: duration" in message_for(written, "probe.sgd", None)


def test_torchvisions_brightness_multiplies(written: dict[str, Any]):
    written["pretrain"]["views"]["convention"] = "torchvision"
    message = message_for(written, "pretrain.views.brightness_kind", "v1")
    assert "brightness_kind v1 (adds) is of convention official only" in message


def test_stems_need_the_pixels_that_the_networks_say():
    assert SMALLEST_IMAGE == STRIDE


def test_a_label_fraction_may_be_trained_from_layers_of_its_own(written: dict[str, Any]):
    written["finetune"]["overrides"] = {"0.1": {"layers": [1]}, "0.01": {"duration": "9 steps"}}
    finetune = check_params(written).finetune
    assert [finetune.layers_at(f) for f in ("0.1", "0.01", "10_per_class")] == [
        [1],
        [0, 1, 2],
        [0, 1, 2],
    ]


def test_every_mistake_is_listed_at_once(written: dict[str, Any]):
    written["pretrain"]["temperature"] = -1
    message = message_for(written, "finetune.seeds", 0)
    assert "pretrain.temperature" in message
    assert "finetune.seeds" in message


def test_params_are_frozen(written: dict[str, Any]):
    params = check_params(written)
    with pytest.raises(ValueError, match="frozen"):
        params.pretrain.temperature = 0.5  # ty: ignore[invalid-assignment]


def test_a_missing_file_says_what_to_do(tmp_path: Path):
    with pytest.raises(UserError, match="python -m pipeline profile quick"):
        load_params(tmp_path / "params.yaml")


def test_broken_yaml_is_the_users_mistake(tmp_path: Path):
    broken = tmp_path / "params.yaml"
    broken.write_text("data: [1,\n", encoding="utf-8")
    with pytest.raises(UserError, match="not valid YAML"):
        load_params(broken)
    broken.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"params.yaml is empty(.|\n)*pipeline profile quick"):
        load_params(broken)


@pytest.mark.parametrize(
    ("duration", "n_images", "batch_size", "steps"),
    [
        ("10 epochs", 1000, 100, 100),
        ("10 epochs", 1050, 100, 100),  # a last partial batch is left out
        ("3 epochs", 50, 100, 3),  # fewer images than a batch: a step an epoch
        ("0.5 epochs", 1000, 100, 5),
        ("7 steps", 1000, 100, 7),
        ("2500 images", 1000, 100, 25),
        ("2.5e3 images", 1000, 100, 25),
        ("0.001 epochs", 1000, 100, 1),
    ],
)
def test_durations_become_steps_once(duration: str, n_images: int, batch_size: int, steps: int):
    assert duration_in_steps(duration, n_images, batch_size) == steps


@pytest.mark.parametrize(
    ("processes", "hosts", "micro_batch", "allowed"),
    [(2, 1, 64, True), (2, 2, 32, True), (1, 2, 48, False), (2, 2, 48, False)],
)
def test_a_process_has_its_part_of_the_batch_of_all_hosts(
    written: dict[str, Any], processes: int, hosts: int, micro_batch: int, allowed: bool
):
    written["pretrain"] |= {"batch_size": 256, "batch_norm_images": 16}
    written["runtime"] |= {"processes": processes, "hosts": hosts, "meet_at": "host-0:29500"}
    written["runtime"] |= {"micro_batch": micro_batch}
    if allowed:
        assert check_params(written).runtime.world_size == processes * hosts
        return
    with pytest.raises(UserError, match=f"the {256 // processes // hosts} images of a process's"):
        check_params(written)


def test_label_fractions_keep_their_spelling(written: dict[str, Any]):
    written["finetune"]["label_fractions"] = [0.01, "10_per_class", 1.0]
    assert check_params(written).finetune.label_fractions == ["0.01", "10_per_class", "1.0"]


def test_a_grid_of_equal_ratios_is_the_papers_list(written: dict[str, Any]):
    written["transfer"]["l2_grid"] = {"from": 0.000001, "to": 100000.0, "n": 45}
    grid = check_params(written).transfer.l2_grid
    assert (grid[0], grid[4], grid[44], len(grid)) == (1e-6, 1e-5, 1e5, 45)
    assert grid[1] == pytest.approx(10**-5.75)


@pytest.mark.parametrize("grid", [{"from": 1, "to": 2}, {"from": 0, "to": 1, "n": 3}, []])
def test_a_grid_that_is_none_is_refused(written: dict[str, Any], grid: Any):
    assert "probe.l2_grid: " in message_for(written, "probe.l2_grid", grid)
