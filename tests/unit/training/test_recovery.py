"""Runs that really diverge: the cause is named, and a rollback is a function of the params."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from stages.data.views import ViewRecipe
from stages.errors import Interrupted, StageError
from stages.models.batch_norm import use_global_batch_norm
from stages.models.simclr import build_encoder, build_simclr
from stages.optim.build import build_optimizer
from stages.records import PROGRESS_FOLDER, read_json
from stages.training import checkpoint
from stages.training.batches import Batch, ViewLoader
from stages.training.loop import Watched
from stages.training.recovery import Guard
from stages.training.runtime import Runtime
from stages.training.session import Session
from stages.training.state import TrainState
from stages.training.steps import Step, contrastive_step
from stages.training.watch import contrastive_watch
from tests.unit.training.in_memory import InMemory

CPU = Runtime(torch.device("cpu"))
STEPS = 12
FAR_TOO_HIGH = 1e10  # of LARS: float32 overflows in the fourth step
ROLLS_BACK = Guard(rolls_back=True, mark_every_steps=2, lr_factor=1e-5)

Wrap = Callable[[Step], Step]


def noise() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (50, 1, 16, 16), dtype=torch.uint8, generator=generator)


def run(
    folder: Path,
    guard: Guard,
    lr: float = FAR_TOO_HIGH,
    pixels: Tensor | None = None,
    wrap: Wrap = lambda step: step,
    poisoned_step: int | None = None,
    runtime: Runtime = CPU,
    **changes: Any,
) -> TrainState:
    pixels = noise() if pixels is None else pixels
    store: Any = InMemory(pixels, len(pixels), np.arange(len(pixels), dtype=np.uint64) * 977)
    rows = runtime.rows(8)
    loader = ViewLoader(store, ViewRecipe.official(16), 8, n_views=2, seed=3, rows=rows)
    torch.manual_seed(0)
    model = build_simclr(build_encoder(10, 0.0625, stem="small_stride2", in_channels=1), out_dim=8)
    if runtime.world_size > 1:
        use_global_batch_norm(model, dist.group.WORLD)
    state = TrainState(model.train(), build_optimizer("lars", model, lr, 1e-4))
    settings: dict[str, Any] = {
        "name": "test",
        "folder": folder,
        "fingerprint": "same",
        "total_steps": STEPS,
        "warmup_steps": 2,
        "peak_lr": lr,
        "batch_size": 8,
        "steps_per_epoch": 6,
        "save_every_seconds": 1e9,
        "log_every_steps": 3,
        "guard": guard,
    }

    def batches(start: int, stop: int) -> Iterator[Batch]:
        for step, batch in enumerate(loader.batches(start, stop), start):
            if step == poisoned_step and runtime.rank == runtime.world_size - 1:
                batch.views_VBCHW[0, 0, 0, 0, 0] = torch.nan
            yield batch

    Session(**{**settings, **changes}).run(
        runtime,
        state,
        batches,
        wrap(contrastive_step(runtime, 0.2, "float32", "none")),
        lambda watched: contrastive_watch(watched, 0.2),
        loader.waited,
    )
    return state


def acting_once(step_number: int, act: Callable[[TrainState, Batch], object]) -> Wrap:
    """Do something just before a step, the first time that it is taken."""
    done = []

    def wrap(step: Step) -> Step:
        def wrapped(state: TrainState, batch: Batch) -> Watched:
            if state.step == step_number and not done:
                done.append(act(state, batch))
            return step(state, batch)

        return wrapped

    return wrap


def test_a_diverging_run_stops_and_names_step_learning_rate_and_first_tensor(tmp_path: Path):
    with pytest.raises(StageError) as stopped:
        run(tmp_path, Guard(keeps_start=True))
    told = str(stopped.value)
    assert "the loss is not finite at step 4 (learning rate 9.76e+09)" in told
    assert "first seen in the output of encoder." in told
    assert ", step 4 (in the step before: learning rate 1e+10, largest output " in told
    (kept_in,) = tmp_path.iterdir()
    assert f"The last good state is kept in {kept_in}" in told
    kept = checkpoint.load(kept_in)["state"]
    assert kept["step"] == 0
    assert all(torch.isfinite(t).all() for t in kept["model"].values())


def test_a_diverging_run_rolls_back_to_its_mark_and_ends_at_a_lower_learning_rate(tmp_path: Path):
    state = run(tmp_path, ROLLS_BACK)
    assert [event["kind"] for event in state.events] == ["rollback"] * 2
    # The mark at step 2 holds weights that are about to overflow, so the older one is next.
    assert [(event["from_step"], event["to_step"]) for event in state.events] == [(4, 2), (4, 0)]
    assert state.events[0]["cause"].startswith("first seen in the output of encoder.")
    assert state.lr_factor == pytest.approx(1e-10)
    assert [row["step"] for row in state.curve] == [3, 6, 9, 12]
    assert all(np.isfinite(list(row.values())).all() for row in state.curve)
    assert state.curve[0]["lr"] == pytest.approx(FAR_TOO_HIGH * 1e-10)
    assert checkpoint.load(tmp_path / "last.pt")["state"]["events"] == state.events


@pytest.mark.parametrize("stopped_at", [3, 5, 9])
def test_a_run_that_rolls_back_ends_where_it_does_unbroken_wherever_it_is_stopped(
    tmp_path: Path, stopped_at: int
):
    unbroken = run(tmp_path / "unbroken", ROLLS_BACK)
    stop = acting_once(stopped_at, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(tmp_path / "broken", ROLLS_BACK, wrap=stop)
    continued = run(tmp_path / "broken", ROLLS_BACK)
    assert continued.events == unbroken.events
    mine, theirs = continued.state_dict(), unbroken.state_dict()
    for part in ("model", "optimizer", "step"):
        torch.testing.assert_close(mine[part], theirs[part], rtol=0, atol=0)


def test_rollbacks_are_bounded(tmp_path: Path):
    barely = Guard(rolls_back=True, mark_every_steps=6, lr_factor=0.5, most_rollbacks=2)
    with pytest.raises(StageError, match="rolled back 2 times before, as often as allowed"):
        run(tmp_path, barely)
    assert len(checkpoint.load(tmp_path / "last.pt")["state"]["events"]) == 2


def test_no_rollback_is_tried_for_images_that_are_not_finite(tmp_path: Path):
    with pytest.raises(StageError, match=r"first seen in an image among the input views, step 8"):
        run(tmp_path, ROLLS_BACK, lr=0.5, poisoned_step=7)


def test_a_state_that_is_not_finite_is_never_saved(tmp_path: Path):
    """Weights that break between two rows of the curve, with a save after every step."""

    def spoil(state: TrainState, _: Batch) -> None:
        next(iter(state.model.parameters())).data.fill_(torch.inf)

    with pytest.raises(StageError, match="not finite at step 8"):
        run(tmp_path, Guard(), 0.5, wrap=acting_once(7, spoil), save_every_seconds=1e-9)
    saved = checkpoint.load(tmp_path / "last.pt")["state"]
    assert 1 <= saved["step"] <= 7  # a save that is under way when the next is due is not repeated
    assert all(bool(weights.isfinite().all()) for weights in saved["model"].values())


def test_a_stop_says_so_where_the_state_was_not_worth_saving(tmp_path: Path):
    def spoil_and_stop(state: TrainState, _: Batch) -> None:
        next(iter(state.model.parameters())).data.fill_(torch.inf)
        os.kill(os.getpid(), signal.SIGTERM)

    spoilt = acting_once(7, spoil_and_stop)
    words = "after step 8 of 12, whose numbers are not finite; the state of step 0 is kept"
    with pytest.raises(Interrupted, match=words):
        run(tmp_path, Guard(), 0.5, wrap=spoilt, log_every_steps=100)
    assert list(tmp_path.iterdir()) == []


def test_a_mark_made_again_leaves_nothing_of_the_one_before(tmp_path: Path):
    """A run that is killed does some steps again, and their marks with them."""
    stopped = acting_once(3, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(tmp_path, ROLLS_BACK, 0.5, wrap=stopped)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, ROLLS_BACK, 0.5, wrap=acting_once(9, lambda *_: 1 / 0))
    run(tmp_path, ROLLS_BACK, 0.5)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"last.pt", "last.before.pt", "good-000000010.pt", "good-000000012.pt"}


def test_who_watches_sees_a_run_go_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(PROGRESS_FOLDER, str(tmp_path / "progress"))
    seen = []

    def wrap(step: Step) -> Step:
        def wrapped(state: TrainState, batch: Batch) -> Watched:
            if state.lr_factor < 1 and not seen:  # the first step after the first rollback
                told = read_json(tmp_path / "progress/training/test.json")
                seen.append((state.step, told["step"]))
            return step(state, batch)

        return wrapped

    run(tmp_path / "run", ROLLS_BACK, wrap=wrap)
    assert seen == [(2, 2)]


def test_black_images_collapse_and_the_run_stops_or_goes_on_as_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    black = torch.zeros(50, 1, 16, 16, dtype=torch.uint8)
    with pytest.raises(StageError, match="z has collapsed by step 9"):
        run(tmp_path / "stops", Guard(stops_at_collapse=True, out_dim=8), 0.5, black)
    state = run(tmp_path / "warns", Guard(out_dim=8), 0.5, black, total_steps=18)
    assert state.events == [{"kind": "collapse", "step": 9}]
    assert capsys.readouterr().out.count("warning: test: z has collapsed") == 1
    assert run(tmp_path / "noise", Guard(out_dim=8), 0.5, total_steps=18).events == []


def test_rows_tell_gradient_weights_and_how_far_an_update_moved_them(tmp_path: Path):
    row = run(tmp_path, Guard(), 0.5).curve[-1]
    assert {"grad_norm", "param_norm", "update_ratio", "waited_share"} <= set(row)
    assert row["grad_norm"] > 0
    assert 0 < row["update_ratio"] < row["param_norm"]


def after_a_second(write: Callable[..., None]) -> Callable[..., None]:
    """A slow disk: the file that is to be replaced is there all the while."""

    def late(path: Path, saved: dict[str, Any], **how: bool) -> None:
        time.sleep(1)
        write(path, saved, **how)

    return late


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meet"
    patience = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=patience)
    runtime = Runtime(torch.device("cpu"), rank, 2)
    told = ""
    state = run(Path(folder, "rolls back"), ROLLS_BACK, runtime=runtime)
    try:
        run(Path(folder, "stops"), ROLLS_BACK, 0.5, poisoned_step=7, runtime=runtime)
    except StageError as error:
        told = str(error)
    late = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write", after_a_second(checkpoint.write))
        try:
            where, always = Path(folder, "saves late"), {"save_every_seconds": 0}
            run(where, Guard(keeps_start=True), 0.5, poisoned_step=7, runtime=runtime, **always)
        except StageError as error:
            late = str(error)
    learnt = {
        "model": state.model.state_dict(),
        "events": state.events,
        "told": told,
        "late": late,
    }
    torch.save(learnt, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.equality
def test_processes_roll_back_together_and_hear_what_one_of_them_found(tmp_path: Path):
    """The images of the second process alone are poisoned; both name them as the cause."""
    mp.spawn(worker, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    torch.testing.assert_close(first["model"], second["model"], rtol=0, atol=0)
    assert [event["kind"] for event in first["events"]] == ["rollback"] * len(first["events"])
    assert first["events"] == second["events"] != []
    assert "an image among the input views, step 8" in first["told"]
    assert first["told"] == second["told"]
    assert "an image among the input views, step 8" in first["late"]
    assert first["late"] == second["late"]
