"""The online probe looks from outside: what is learnt is the same with it and without it."""

import csv
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from stages import pretrain
from stages.data.index import read_index
from stages.data.store import ImageStore
from stages.errors import Interrupted, UserError
from stages.evaluation.features import state_digest
from stages.params import Params, check_params
from stages.records import read_json
from stages.training.images import open_images
from stages.training.online_probe import OnlineProbe, open_online_probe
from stages.training.pretraining import build_state
from stages.training.products import read_card
from stages.training.recipes import architecture_of
from stages.training.runtime import Runtime
from stages.training.state import TrainState

CPU = Runtime(torch.device("cpu"))
Write = Callable[..., Params]


@pytest.fixture
def write(
    tmp_path: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_noise_shards: Callable[..., Path],
) -> Write:
    """Writes params of a tiny training beside real shards, and gives them."""
    (tmp_path / "data").mkdir()
    made = make_noise_shards(tmp_path / "made", per_class=40, side=16, validation_images=12)
    made.rename(tmp_path / "data/shards")
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load((root / "pipeline/profiles/smoke.yaml").read_text(encoding="utf-8"))
    values["data"] |= {"image_size": 16}
    values["pretrain"] |= {"duration": "6 steps", "warmup": None, "batch_size": 16}
    values["pretrain"]["online_probe"] = {"every": "3 steps", "images": 20, "k": 3}
    values["runtime"] |= {"device": "cpu", "threads": 1, "log_every_steps": 2}

    def write(**online_probe: Any) -> Params:
        values["pretrain"]["online_probe"] |= online_probe
        Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        return check_params(values)

    return write


def opened(params: Params) -> OnlineProbe:
    probe = open_online_probe(params, 48, 16, CPU)
    assert probe is not None
    return probe


def a_state(params: Params) -> TrainState:
    return build_state(params.pretrain, architecture_of(params), 16, CPU)


def all_of_one_class(*arguments: Any, **named: Any) -> ImageStore:
    store = open_images(*arguments, **named)
    return replace(store, _classes=np.zeros_like(store.classes))


def test_the_encoder_its_mode_and_every_random_number_stay_as_they_were(write: Write):
    params = write()
    state = a_state(params)
    state.model.get_submodule("encoder.stem").eval()  # a part that is frozen stays frozen
    modes = [module.training for module in state.model.modules()]
    digest, drawn = state_digest(state.model), torch.get_rng_state()
    scores = opened(params)(state)
    assert state_digest(state.model) == digest
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [module.training for module in state.model.modules()] == modes
    assert all(weight.grad is None for weight in state.model.parameters())
    assert set(scores) == {"online_knn", "online_linear"}
    assert all(0 <= score <= 1 for score in scores.values())


def test_an_encoder_that_gives_the_classes_away_scores_full_marks(
    write: Write, monkeypatch: pytest.MonkeyPatch
):
    """The probe's own arithmetic: features that are the class, and features that say nothing."""
    probe = opened(write())

    def telling(_: object, store: Any, *__: object) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.from_numpy(store.classes), 4).float()

    monkeypatch.setattr("stages.training.online_probe.outputs", telling)
    state = a_state(write())
    assert probe(state) == {"online_knn": 1.0, "online_linear": 1.0}
    shuffled = np.random.default_rng(0).permutation(probe.validation.classes)
    probe.validation.classes[:] = shuffled
    monkeypatch.setattr(
        "stages.training.online_probe.outputs",
        lambda _, store, *__: torch.ones(store.n_images, 4) + torch.arange(4),
    )
    assert probe(state)["online_linear"] < 0.8


def test_pretraining_learns_the_same_with_the_probe_without_it_and_with_other_labels(
    write: Write, monkeypatch: pytest.MonkeyPatch
):
    weights, curves = [], []
    for every, labels in (("3 steps", "true"), (None, "true"), ("3 steps", "one class")):
        write(every=every)
        if labels == "one class":
            monkeypatch.setattr("stages.training.online_probe.open_images", all_of_one_class)
        pretrain.main()
        weights.append(read_card(Path("artifacts/pretrain"))["weights_sha256"])
        curves.append(Path("plots/pretrain.csv").read_text(encoding="utf-8").splitlines())
    assert len(set(weights)) == 1
    assert "online_knn" in curves[0][0]
    assert "online_knn" not in curves[1][0]
    assert [line.split(",")[0] for line in curves[0][1:]] == ["2", "3", "4", "6"]
    assert read_json(Path("metrics/pretrain.json"))["online_knn"] == 1.0  # all of one class


def test_test_images_are_never_opened(write: Write):
    params = write()
    split = read_index(Path("data/shards")).split("test")
    for name in (split.members_name, *(shard.name for shard in split.shards)):
        Path("data/shards", name).unlink()
    assert opened(params)(a_state(params))


def test_it_learns_from_the_first_labelled_images_of_the_shards(write: Write):
    probe = opened(write(images=10))
    keys = open_images(write(), "train", with_labels=True).keys
    assert list(probe.labelled.keys) == list(keys[:10])
    assert probe.validation.n_images == 10
    assert not set(probe.labelled.keys) & set(probe.validation.keys)


def test_without_labels_it_says_what_to_do(write: Write, monkeypatch: pytest.MonkeyPatch):
    params = write()
    monkeypatch.setattr(
        "stages.training.online_probe.open_images",
        lambda *arguments, **named: open_images(*arguments, **named).with_labels_of(set()),
    )
    with pytest.raises(UserError, match=r"needs labelled images.*\n.*online_probe.every: null"):
        opened(params)


@pytest.mark.parametrize("cut_at", [3, 6])
def test_a_look_that_was_cut_off_is_taken_when_the_run_continues(
    write: Write, monkeypatch: pytest.MonkeyPatch, cut_at: int
):
    """Images at an address may be out of reach, also after the last step."""

    def curve() -> list[dict[str, str]]:
        timed = {"images_per_second", "waited_share"}
        with Path("plots/pretrain.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [{name: row[name] for name in row.keys() - timed} for row in rows]

    write(every="3 steps")
    pretrain.main()
    unbroken = curve()
    shutil.rmtree("artifacts/pretrain")
    look = OnlineProbe.__call__

    def cut_off(probe: OnlineProbe, state: TrainState) -> dict[str, float]:
        if state.step == cut_at:
            raise Interrupted("the bucket can't be reached")
        return look(probe, state)

    with monkeypatch.context() as patch:
        patch.setattr(OnlineProbe, "__call__", cut_off)
        with pytest.raises(Interrupted):
            pretrain.main()
    pretrain.main()
    assert curve() == unbroken
