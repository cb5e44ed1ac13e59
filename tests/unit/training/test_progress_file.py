"""What a training tells those who watch from outside."""

from pathlib import Path

import pytest
import torch
from torch import nn

from stages.records import PROGRESS_FOLDER, read_json
from stages.training.progress import Progress
from stages.training.progress_file import ProgressFile, expect_trainings
from stages.training.runtime import Runtime
from stages.training.state import TrainState

NAME = "finetune/0.01 layer 1 seed 0"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(PROGRESS_FOLDER, str(tmp_path))
    return tmp_path / "training/finetune-0.01-layer-1-seed-0.json"


def test_first_and_last_step_are_told_and_those_between_every_few_seconds(
    file: Path, clock: list[float]
):
    told = ProgressFile(NAME, 40, 100)
    assert read_json(file) == {"step": 40, "total_steps": 100, "seconds_left": None}
    steps = []
    for step in range(41, 101):
        clock[0] += 0.5
        told.watch({"step": step, "loss": 2.5, "lr": 0.1, "images_per_second": 64.0})
        told.tell(step)
        steps.append(read_json(file)["step"])
    assert sorted(set(steps)) == [40, *range(44, 101, 4)]
    assert read_json(file) == {
        "step": 100,
        "total_steps": 100,
        "seconds_left": 0.0,
        "loss": 2.5,
        "images_per_second": 64.0,
    }


def test_time_left_counts_the_steps_since_the_training_continued(file: Path, clock: list[float]):
    told = ProgressFile(NAME, 90, 100)
    clock[0] += 4
    told.tell(92)
    assert read_json(file)["seconds_left"] == 16.0  # 2 s a step, 8 to go
    clock[0] += 4
    told.tell(85)  # back at an earlier mark
    assert read_json(file)["seconds_left"] is None


def test_stage_says_how_many_trainings_it_is_made_of(file: Path):
    expect_trainings(9)
    assert read_json(file.parents[1] / "trainings.json") == {"trainings": 9}


def test_nothing_is_written_where_nobody_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(PROGRESS_FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    expect_trainings(9)
    ProgressFile(NAME, 0, 100).tell(100)
    assert list(tmp_path.iterdir()) == []


def test_after_a_rollback_time_left_is_of_the_steps_done_since(
    clock: list[float], capsys: pytest.CaptureFixture[str]
):
    model = nn.Linear(1, 1)
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=1.0))
    with Progress("test", 100, state, Runtime(torch.device("cpu"))) as progress:
        clock[0] += 1000
        progress.restart(10)
        assert progress.bar.n == 10
        clock[0] += 5
        progress.tell({"step": 15, "loss": 2.5, "images_per_second": 8.0})
    assert "step 15/100, loss 2.5, 8 images/s, 1 min 25 s left" in capsys.readouterr().out
