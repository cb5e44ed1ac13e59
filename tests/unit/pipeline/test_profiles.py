"""Profiles: each is whole and valid, and a switch never loses what someone wrote."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline import profiles
from stages.errors import UserError
from stages.params import Params, check_params


def with_text_keys(values: Any) -> Any:
    """As JSON has it: keys are text."""
    return json.loads(json.dumps(values))


# Here a profile says only what differs from crop and flip, or from the other fractions.
BRIEF = {
    "supervised.overrides.",
    "finetune.overrides.",
    "finetune.label_lists.",
    "finetune.views.",
    "distill.views.",
    "probe.sgd.views.",
    "transfer.l2_grid.",  # a grid is its ends, or value by value
    "transfer.finetune.lr_grid.",
    "transfer.finetune.weight_decay_grid.",
    "transfer.finetune.views.",
    "transfer.scratch.lr_grid.",
    "transfer.scratch.weight_decay_grid.",
    "transfer.scratch.views.",
}


def keys(values: Any, prefix: str = "") -> set[str]:
    if not isinstance(values, dict) or prefix in BRIEF:
        return set()
    return {f"{prefix}{key}" for key in values} | {
        inner for key, value in values.items() for inner in keys(value, f"{prefix}{key}.")
    }


@pytest.mark.parametrize("name", ["smoke", "quick", "study", "gpu", "imagenet_v1", "imagenet"])
def test_profile_can_be_used_and_carries_its_own_name(name: str):
    assert check_params(yaml.safe_load(profiles.text_of(name))).profile == name
    assert profiles.purpose_of(name)


@pytest.mark.parametrize("name", ["smoke", "study", "gpu", "imagenet_v1", "imagenet"])
def test_profile_names_every_knob_that_quick_names(name: str):
    quick, other = (keys(yaml.safe_load(profiles.text_of(each))) for each in ("quick", name))
    assert quick == other


def test_quick_names_every_knob_there_is():
    params = Params.model_validate(yaml.safe_load(profiles.text_of("quick")))
    named = yaml.safe_load(profiles.text_of("quick"))
    for section, model in params:
        if section != "profile":
            missing = set(type(model).model_fields) - set(named[section])
            assert missing - {"lr_scaling"} == set(), section


def test_params_yaml_can_be_used(root: Path):
    check_params(yaml.safe_load((root / "params.yaml").read_text()))


def test_schema_in_the_repository_is_the_current_one(root: Path):
    written = (root / "pipeline/params.schema.json").read_text()
    assert written == profiles.schema_text(), "run: make schema"


@pytest.mark.parametrize("name", ["smoke", "quick", "study", "gpu", "imagenet_v1", "imagenet"])
def test_schema_accepts_the_profile_and_refuses_a_misspelt_key(name: str):
    schema = json.loads(profiles.schema_text())
    values = with_text_keys(yaml.safe_load(profiles.text_of(name)))
    jsonschema.validate(values, schema)
    values["pretrain"]["temprature"] = values["pretrain"].pop("temperature")
    with pytest.raises(jsonschema.ValidationError, match="temprature"):
        jsonschema.validate(values, schema)


def test_switch_writes_the_profile_and_names_what_changed(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text(profiles.text_of("quick"))
    changes = profiles.switch("smoke", path)
    assert path.read_text() == profiles.text_of("smoke")
    assert '  profile: "quick" -> "smoke"' in changes
    assert "  finetune.seeds: 3 -> 2" in changes
    assert not [line for line in changes if "report.title" in line]
    assert profiles.switch("smoke", path) == []


def test_values_kept_nowhere_else_are_not_overwritten(tmp_path: Path):
    path = tmp_path / "params.yaml"
    mine = profiles.text_of("quick").replace("temperature: 0.2", "temperature: 0.15")
    path.write_text(mine)
    with pytest.raises(UserError, match=r"pretrain\.temperature: 0\.2 -> 0\.15(.|\n)*--force"):
        profiles.switch("smoke", path)
    assert path.read_text() == mine

    profiles.switch("smoke", path, force=True)
    assert path.with_name("params.yaml.bak").read_text() == mine
    assert path.read_text() == profiles.text_of("smoke")


def test_what_can_not_be_written_leaves_the_old_file_where_it_is(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text("profile: mine\n", encoding="utf-8")
    path.with_name("params.yaml.partial").mkdir()  # as a full disk: the new file can't be made
    with pytest.raises(OSError, match="partial"):
        profiles.switch("smoke", path, force=True)
    assert path.read_text(encoding="utf-8") == "profile: mine\n"


def test_values_in_a_commit_may_be_overwritten(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text(profiles.text_of("quick").replace("temperature: 0.2", "temperature: 0.15"))
    git = [shutil.which("git") or "git", "-c", "user.name=A", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "params.yaml"], ["commit", "-qm", "mine"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    profiles.switch("smoke", path)
    assert path.read_text() == profiles.text_of("smoke")


def test_file_that_is_no_yaml_is_not_overwritten(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text("pretrain: [")
    with pytest.raises(UserError, match="--force"):
        profiles.switch("smoke", path)


def test_unknown_profile_is_refused_with_those_there_are(tmp_path: Path):
    with pytest.raises(
        UserError, match="no profile huge; the profiles are: smoke, quick, study, gpu"
    ):
        profiles.switch("huge", tmp_path / "params.yaml")
    assert not (tmp_path / "params.yaml").exists()
