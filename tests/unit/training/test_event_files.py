import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stages.errors import UserError
from stages.training.event_files import EventFiles


def rows(first: int, last: int) -> list[dict[str, float]]:
    return [{"step": step, "loss": 1 / step, "lr": 0.5} for step in range(first, last + 1)]


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_rows_are_read_back_by_tensorboard_and_those_beyond_a_resumed_step_are_taken_back(
    tmp_path: Path,
):
    with EventFiles(str(tmp_path), "finetune/0.1 seed 0", after_step=0) as files:
        for row in rows(1, 4):
            files.write(row)
    folder = tmp_path / "finetune/0.1-seed-0"
    assert read(folder) == {
        "loss": [(step, pytest.approx(1 / step)) for step in (1, 2, 3, 4)],
        "lr": [(step, 0.5) for step in (1, 2, 3, 4)],
    }
    with EventFiles(str(tmp_path), "finetune/0.1 seed 0", after_step=2) as files:
        files.write({"step": 3, "loss": 7.0, "lr": 0.25})
    assert read(folder)["loss"] == [(1, 1.0), (2, 0.5), (3, 7.0)]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with EventFiles(None, "pretrain", after_step=0) as files:
        files.write(rows(1, 1)[0])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_the_users_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"tensorboard is not installed.\n.*pip install"):
        EventFiles("runs/tensorboard", "pretrain", after_step=0)
