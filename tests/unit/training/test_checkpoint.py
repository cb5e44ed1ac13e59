"""A state on disk is whole or absent, and continued only by its own run."""

from pathlib import Path

import pytest
import torch
from torch import nn

from stages.training import checkpoint
from stages.training.state import TrainState


def a_state(seed: int) -> TrainState:
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return TrainState(model, optimizer, step=7, curve=[{"step": 7, "loss": 0.5}], seconds=1.5)


def test_a_saved_state_comes_back_bit_for_bit(tmp_path: Path):
    saved, other = a_state(0), a_state(1)
    checkpoint.save(tmp_path / "last.pt", saved, "mine")
    story = checkpoint.resume(tmp_path / "last.pt", other, "mine")
    assert story.startswith("continuing at step 7")
    torch.testing.assert_close(other.state_dict(), saved.state_dict(), rtol=0, atol=0)


def test_a_state_of_another_run_is_not_continued(tmp_path: Path):
    checkpoint.save(tmp_path / "last.pt", a_state(0), "theirs")
    mine = a_state(1)
    mine.step = 0
    story = checkpoint.resume(tmp_path / "last.pt", mine, "mine")
    assert "belongs to other params, data or code" in story
    assert mine.step == 0


@pytest.mark.parametrize("keep_bytes", [0, 10, 1000])
def test_a_state_cut_short_starts_afresh_and_says_so(tmp_path: Path, keep_bytes: int):
    path = tmp_path / "last.pt"
    checkpoint.save(path, a_state(0), "mine")
    path.write_bytes(path.read_bytes()[:keep_bytes])
    assert "can't be read" in checkpoint.resume(path, a_state(1), "mine")


def test_a_state_that_would_run_code_is_refused(tmp_path: Path):
    path = tmp_path / "last.pt"
    torch.save({"fingerprint": "mine", "state": Path("x")}, path)  # a pickled object
    with_code = checkpoint.resume(path, a_state(1), "mine")
    assert with_code.startswith("starting at step 0")


def test_a_save_that_fails_keeps_the_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "last.pt"
    checkpoint.save(path, a_state(0), "mine")
    before = path.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(path, a_state(1), "mine")
    assert path.read_bytes() == before
