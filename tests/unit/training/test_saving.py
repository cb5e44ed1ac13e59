"""Saving while training goes on, to disks that fill up or forget, for one trainer at a time."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from stages.errors import UserError
from stages.training import checkpoint
from stages.training.runtime import Runtime
from stages.training.saving import Saver, resume_together
from stages.training.sole import sole_trainer
from stages.training.state import TrainState

CPU = Runtime(torch.device("cpu"))
on_linux = pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's always full disk")


def a_state(step: int, width: int = 40) -> TrainState:
    torch.manual_seed(step)
    model = nn.Linear(width, width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, width)).sum().backward()
    optimizer.step()
    return TrainState(model, optimizer, step=step)


def a_saver(folder: Path, every_seconds: float = 0.0) -> Saver:
    return Saver(folder / "last.pt", "mine", CPU, every_seconds, step=0)


def step_in(folder: Path) -> int:
    state = a_state(0)
    resume_together(folder / "last.pt", state, "mine", CPU)
    return state.step


def test_training_goes_on_while_the_state_as_it_was_is_written(tmp_path: Path):
    state, saver = a_state(5), a_saver(tmp_path)
    as_it_was = checkpoint.snapshot(state, "mine")["state"]
    saver.begin(state)
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.zero_()
    state.optimizer.zero_grad()
    state.step += 1
    saver.wait()
    written = checkpoint.load(tmp_path / "last.pt")["state"]
    torch.testing.assert_close(written, as_it_was, rtol=0, atol=0)


def test_a_state_is_saved_when_it_is_due_and_not_before(tmp_path: Path):
    saver = a_saver(tmp_path, every_seconds=1000)
    assert not saver.after_step(a_state(1), stop=False, last=False)
    saver.close()
    assert not (tmp_path / "last.pt").exists()
    saver = a_saver(tmp_path)
    saver.after_step(a_state(2), stop=False, last=False)
    saver.close()
    assert step_in(tmp_path) == 2


def test_who_is_told_to_stop_has_the_state_on_disk_before_going(tmp_path: Path):
    saver = a_saver(tmp_path, every_seconds=1000)
    assert saver.after_step(a_state(3), stop=True, last=False)
    assert step_in(tmp_path) == 3
    assert saver.saved_step == 3


def test_after_a_rollback_the_next_save_is_a_whole_interval_away(tmp_path: Path):
    saver = a_saver(tmp_path, every_seconds=0.5)
    time.sleep(0.6)
    saver.restart(4)
    saver.after_step(a_state(5), stop=False, last=False)
    saver.close()
    assert not (tmp_path / "last.pt").exists()
    assert saver.saved_step == 4


@on_linux
@pytest.mark.parametrize("stop", [False, True])
def test_a_disk_that_fills_up_is_told_and_the_last_good_state_kept(tmp_path: Path, stop: bool):
    saver = a_saver(tmp_path)
    saver.save_and_wait(a_state(1))
    (tmp_path / "last.pt.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match="can't be saved: no space left on the disk"):  # noqa: PT012
        for step in (2, 3):  # at an interval the step after tells what the thread met
            saver.after_step(a_state(step), stop=stop, last=False)
            saver.close()
            (tmp_path / "last.pt.partial").unlink(missing_ok=True)
            (tmp_path / "last.pt.partial").symlink_to("/dev/full")
    assert step_in(tmp_path) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_file_system_that_fills_up_keeps_the_last_good_state(small_disk: Path):
    saver = a_saver(small_disk)
    saver.save_and_wait(a_state(1, width=300))  # 0.7 MB with its momentum
    with pytest.raises(UserError, match="step 2 can't be saved: no space left"):
        saver.save_and_wait(a_state(2, width=300))
    assert sorted(path.name for path in small_disk.iterdir()) == ["last.pt"]
    state = a_state(0, width=300)
    resume_together(small_disk / "last.pt", state, "mine", CPU)
    assert state.step == 1


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "other", "gone"])
def test_a_damaged_state_gives_way_to_the_one_before(tmp_path: Path, damage: str):
    path = tmp_path / "last.pt"
    checkpoint.save(path, a_state(6), "mine")
    checkpoint.save(path, a_state(7), "mine")
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        weights = a_state(7).model.weight.detach().numpy().tobytes()
        data[data.index(weights) + 100] ^= 1
        assert torch.load(_written(tmp_path / "x", data), weights_only=True)  # it would not notice
    damaged = {"flipped": data, "cut": data[:1000], "emptied": b"", "other": b"not a state" * 99}
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(damaged[damage])
    state = a_state(0)
    story = checkpoint.resume(path, state, "mine")
    assert story.startswith(f"continuing at step 6 from {checkpoint.before(path)}")
    assert ("can't be read" in story) == (damage != "gone")
    expected = checkpoint.snapshot(a_state(6), "mine")["state"]
    torch.testing.assert_close(state.state_dict(), expected, rtol=0, atol=0)


def _written(path: Path, data: bytearray) -> Path:
    path.write_bytes(data)
    return path


def test_a_run_that_comes_back_finds_its_state_behind_that_of_another(tmp_path: Path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, a_state(6), "mine")
    checkpoint.save(path, a_state(2), "of other params")
    state = a_state(0)
    assert "belongs to other params" in checkpoint.resume(path, state, "mine")
    assert state.step == 6


@pytest.mark.kill
def test_a_second_trainer_is_refused_by_name_until_the_first_is_gone(tmp_path: Path):
    ready, told = os.pipe()
    first = os.fork()
    if first == 0:
        with sole_trainer(tmp_path / "runs/0.01", CPU):
            os.write(told, b"!")
            time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    begun = time.monotonic()
    with (
        pytest.raises(
            UserError, match=rf"process {first} on .*, since .*, is training in .*0\.01\."
        ),
        sole_trainer(tmp_path / "runs/0.01", CPU),
    ):
        pytest.fail("two trainers")
    assert time.monotonic() - begun > 4  # one that is just leaving would have been waited for
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    with sole_trainer(tmp_path / "runs/0.01", CPU):
        pass
