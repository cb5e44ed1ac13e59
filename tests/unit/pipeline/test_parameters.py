"""Params of one run: typed, checked before anything runs, the file's comments kept."""

import difflib
from typing import Any

import pytest
import yaml

from pipeline import profiles
from pipeline.parameters import ChainParameters, read_settings
from pipeline.params_text import with_values
from stages.errors import UserError


def changed_lines(before: str, after: str) -> list[str]:
    compared = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line[2:].strip() for line in compared if line.startswith("+ ")]


def test_overrides_change_their_lines_and_no_other():
    before = profiles.text_of("smoke")
    asked = ChainParameters(overrides={"pretrain.temperature": 0.5, "pretrain.seed": 7})
    after = asked.params_text(before)
    lines = changed_lines(before, after)
    assert len(lines) == 2
    assert lines[0].startswith("temperature: 0.5")
    assert yaml.safe_load(after)["pretrain"]["seed"] == 7


def test_a_profile_takes_the_place_of_what_is_written():
    asked = ChainParameters(profile="quick", overrides={"pretrain.seed": 7})
    after = yaml.safe_load(asked.params_text(profiles.text_of("smoke")))
    assert after["profile"] == "quick"
    assert after["pretrain"]["seed"] == 7


@pytest.mark.parametrize(
    ("text", "key", "value", "expected"),
    [
        ("a: 1 # one\nb: 2\n", "a", [1, 2], "a: [1, 2] # one\nb: 2\n"),
        ("a:\n  b: 1\n# end\n", "a.c", 2, "a:\n  {b: 1, c: 2}\n# end\n"),
        ("a:\nb: 2\n", "a", "x", "a: x\nb: 2\n"),
        ("a: 1\n", "b.c", 2, "a: 1\nb: {c: 2}\n"),
        ("a: {b: null}\n", "a.b", {"0.1": {"c": 1}}, "a: {b: {'0.1': {c: 1}}}\n"),
    ],
)
def test_value_is_put_where_it_belongs(text: str, key: str, value: Any, expected: str):
    assert with_values(text, {key: value}) == expected


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"pretrain.temprature": 0.5}, r"pretrain\.temprature: no such key; known here: .*temper"),
        ({"pretrain.temperature": -1}, r"params of this run can't be used:\n.*greater than 0"),
        ({"pretrain.seed.x": 1}, r"pretrain\.seed holds a value, not further keys"),
        ({"pretrian.seed": 1}, r"pretrian: no such key"),
    ],
)
def test_bad_override_is_named_before_anything_runs(overrides: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        ChainParameters(overrides=overrides).params_text(profiles.text_of("smoke"))


def test_unknown_profile_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"there is no profile fast; there are: .*smoke"):
        ChainParameters(profile="fast")


def test_settings_of_the_command_line_are_read_as_yaml():
    words = ["finetune.label_fractions=[0.01]", "data.root=photos=1", "data.name=null"]
    assert read_settings(words) == {
        "finetune.label_fractions": [0.01],
        "data.root": "photos=1",
        "data.name": None,
    }
    for word in ("pretrain.seed", "=1", "pretrain.seed=[1"):
        with pytest.raises(UserError, match="--set"):
            read_settings([word])
