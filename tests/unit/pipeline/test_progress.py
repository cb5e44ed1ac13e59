"""How far a stage is, read from what its trainings leave on disk."""

from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from pipeline.dvc import Workspace
from pipeline.page import Page, StageBar
from pipeline.progress import duration, read_progress
from stages.records import write_json


def training(folder: Path, name: str, step: int, **facts: float) -> None:
    write_json(folder / "training" / f"{name}.json", {"step": step, "total_steps": 200, **facts})


def test_one_training_is_told_by_its_step(tmp_path: Path):
    training(tmp_path, "pretrain", 50, loss=3.21, images_per_second=1234.5, seconds_left=300)
    seen = read_progress(tmp_path)
    assert seen is not None
    assert seen.share == 0.25
    assert seen.line == "step 50 of 200, loss 3.21, 1,234 images/s, about 5 min left"


def test_what_cannot_be_read_stops_the_bar_and_no_training(tmp_path: Path):
    workspace = Workspace(tmp_path)
    write_json(workspace.progress_of("pretrain") / "training/pretrain.json", {"step": 50})
    page = Page()
    bar = StageBar(page, workspace, "pretrain")
    bar.moved_at = 0
    with disable_run_logger():
        bar.tick()
    assert page.failed


def test_several_trainings_share_a_bar_with_those_to_come(tmp_path: Path):
    write_json(tmp_path / "trainings.json", {"trainings": 4})
    training(tmp_path, "seed-0", 200, seconds_left=0)
    training(tmp_path, "seed-1", 100, loss=0.5, images_per_second=10, seconds_left=60)
    seen = read_progress(tmp_path)
    assert seen is not None
    assert seen.share == (1 + 0.5) / 4
    assert seen.line == "1 of 4 trainings done, at step 100 of 200, loss 0.5, 10 images/s"


def test_stage_that_trains_nothing_has_no_progress(tmp_path: Path):
    assert read_progress(tmp_path / "shard") is None


@pytest.mark.parametrize(
    ("seconds", "said"), [(42.4, "42 s"), (89, "89 s"), (300, "5 min"), (7500, "2 h 05 min")]
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str):
    assert duration(seconds) == said
