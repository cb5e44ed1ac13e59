"""A run that is stopped continues where it was, and ends where an unbroken one does."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.data.views import ViewRecipe
from stages.errors import Interrupted, StageError
from stages.models.momentum import MomentumEncoder, NegativeQueue
from stages.models.simclr import build_encoder, build_simclr
from stages.optim.build import build_optimizer
from stages.training.batches import Batch, ViewLoader
from stages.training.loop import Watched
from stages.training.runtime import Runtime
from stages.training.session import Session
from stages.training.state import TrainState
from stages.training.steps import Step, contrastive_step
from stages.training.watch import contrastive_watch
from tests.unit.training.in_memory import InMemory

CPU = Runtime(torch.device("cpu"))
STEPS = 12


def a_loader() -> ViewLoader:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (50, 1, 16, 16), dtype=torch.uint8, generator=generator)
    hashes = np.arange(50, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    store: Any = InMemory(pixels, 50, hashes)
    return ViewLoader(store, ViewRecipe.official(16), 8, n_views=2, seed=3)


def a_state(memory: str) -> TrainState:
    torch.manual_seed(0)
    model = build_simclr(build_encoder(10, 0.0625, stem="small_stride2", in_channels=1), out_dim=8)
    beside: dict[str, Any] = {}
    if memory != "none":
        beside = {
            "momentum_encoder": MomentumEncoder(model, 0.9),
            "queue": NegativeQueue(40, 8, random_start=memory == "moco"),
        }
    return TrainState(model.train(), build_optimizer("lars", model, 0.5, 1e-4), beside=beside)


def a_session(folder: Path, **changes: Any) -> Session:
    settings: dict[str, Any] = {
        "name": "test",
        "folder": folder,
        "fingerprint": "same",
        "total_steps": STEPS,
        "warmup_steps": 2,
        "peak_lr": 0.5,
        "batch_size": 8,
        "steps_per_epoch": 6,
        "save_every_seconds": 1e9,
        "log_every_steps": 3,
    }
    return Session(**{**settings, **changes})


def run(
    folder: Path, memory: str, wrap: Callable[[Step], Step] = lambda step: step, **changes: Any
) -> TrainState:
    state, loader = a_state(memory), a_loader()
    a_session(folder, **changes).run(
        CPU,
        state,
        loader.batches,
        wrap(contrastive_step(CPU, 0.2, "float32", memory)),
        lambda watched: contrastive_watch(watched, 0.2),
        loader.waited,
    )
    return state


def signal_at(step_number: int, number: signal.Signals) -> Callable[[Step], Step]:
    def wrap(step: Step) -> Step:
        def wrapped(state: TrainState, batch: Batch) -> Watched:
            if state.step == step_number:
                os.kill(os.getpid(), number)
            return step(state, batch)

        return wrapped

    return wrap


@pytest.mark.parametrize("memory", ["none", "simclr", "moco"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_stopped_and_continued_run_ends_bit_for_bit_where_an_unbroken_one_does(
    tmp_path: Path, memory: str, number: signal.Signals
):
    unbroken = run(tmp_path / "unbroken", memory)
    with pytest.raises(Interrupted, match=f"stopped on {number.name} after step 6 of 12"):
        run(tmp_path / "broken", memory, signal_at(5, number))
    continued = run(tmp_path / "broken", memory)
    mine, theirs = continued.state_dict(), unbroken.state_dict()
    for part in ("model", "optimizer", "beside", "step"):
        torch.testing.assert_close(mine[part], theirs[part], rtol=0, atol=0)
    assert [row["step"] for row in continued.curve] == [3, 6, 9, 12]
    assert [row["loss"] for row in continued.curve] == [row["loss"] for row in unbroken.curve]


def test_a_run_that_is_over_does_nothing_more(tmp_path: Path):
    first = run(tmp_path, "none")
    again = run(tmp_path, "none", lambda step: lambda *_: pytest.fail("a step was taken"))
    assert again.step == STEPS
    torch.testing.assert_close(again.model.state_dict(), first.model.state_dict(), rtol=0, atol=0)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(tmp_path: Path):
    with pytest.raises(Interrupted):
        run(tmp_path, "none", signal_at(2, signal.SIGTERM))
    good = (tmp_path / "last.pt").read_bytes()

    def poison(step: Step) -> Step:
        def wrapped(state: TrainState, batch: Batch) -> Watched:
            return {**step(state, batch), "loss": torch.tensor(float("nan"))}

        return wrapped

    with pytest.raises(
        StageError, match=r"the loss is not finite at step 4 .*first seen in the loss, step 4"
    ):
        run(tmp_path, "none", poison)
    assert (tmp_path / "last.pt").read_bytes() == good


def test_an_error_while_views_are_made_is_raised_where_they_are_used(tmp_path: Path):
    loader = a_loader()
    loader.store.pixels = loader.store.pixels[:10]  # ty: ignore[unresolved-attribute]
    with pytest.raises(IndexError):
        list(loader.batches(0, 3))
