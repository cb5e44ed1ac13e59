"""A training run from its last saved state to its end: steps, log, saves, stops."""

import csv
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from stages.errors import Interrupted, StageError
from stages.optim.schedules import warmup_cosine
from stages.training import checkpoint
from stages.training.batches import Batch, Waited
from stages.training.loop import Watched, fit
from stages.training.runtime import Runtime, StopRequest, stop_on_signals
from stages.training.state import TrainState
from stages.training.steps import Step


@dataclass(frozen=True)
class Session:
    """What a run is called, how long it is, and where and how often it is saved and logged.

    Attributes:
        name: shown in the log.
        folder: holds the working state `last.pt`.
        fingerprint: of everything that decides the result.
        total_steps: of the whole run.
        warmup_steps: of linear warm-up; the rest is a cosine to 0.
        peak_lr: the learning rate at the end of warm-up.
        batch_size: images per step over all processes.
        steps_per_epoch: of the data, for the log.
        save_every_seconds: the most work a kill can cost.
        log_every_steps: steps between rows of the curve.
    """

    name: str
    folder: Path
    fingerprint: str
    total_steps: int
    warmup_steps: int
    peak_lr: float
    batch_size: int
    steps_per_epoch: int
    save_every_seconds: float
    log_every_steps: int

    @property
    def state_file(self) -> Path:
        return self.folder / "last.pt"

    def lr_at(self, step: int) -> float:
        return warmup_cosine(step, self.peak_lr, self.warmup_steps, self.total_steps)

    def run(
        self,
        runtime: Runtime,
        state: TrainState,
        batches: Callable[[int, int], Iterator[Batch]],
        train_step: Step,
        describe: Callable[[Watched], dict[str, float]],
        waited: Waited,
    ) -> None:
        """Continue from the saved state, if there is one, to the last step.

        Raises:
            Interrupted: a stop signal came; the state is saved.
            StageError: the loss is not finite; the last good state is kept.
        """
        story = checkpoint.resume(self.state_file, state, self.fingerprint)
        if runtime.is_main:
            _say(f"{self.name}: {self.total_steps} steps of {self.batch_size} images; {story}")
        with stop_on_signals() as stop, _Progress(self, state, runtime) as progress:
            after = _AfterStep(self, runtime, state, describe, stop, waited, progress)
            try:
                fit(
                    state,
                    batches(state.step, self.total_steps),
                    train_step,
                    lr_at=self.lr_at,
                    total_steps=self.total_steps,
                    after_step=after,
                )
            except Interrupted:  # no more data came (a network that died): what was learnt is kept
                if runtime.is_main and state.step > 0:
                    self.save(state)
                raise

    def save(self, state: TrainState) -> None:
        checkpoint.save(self.state_file, state, self.fingerprint)


class _AfterStep:
    """Logging, saving and stopping, once after each step."""

    def __init__(
        self,
        session: Session,
        runtime: Runtime,
        state: TrainState,
        describe: Callable[[Watched], dict[str, float]],
        stop: StopRequest,
        waited: Waited,
        progress: "_Progress",
    ) -> None:
        self.session, self.runtime, self.describe = session, runtime, describe
        self.stop, self.waited, self.progress = stop, waited, progress
        self.begun = self.saved_at = self.logged_at = time.perf_counter()
        self.seconds_before, self.waited_before = state.seconds, state.waited_seconds
        self.logged_step = state.step

    def __call__(self, state: TrainState, watched: Watched) -> None:
        now = time.perf_counter()
        state.seconds = self.seconds_before + now - self.begun
        state.waited_seconds = self.waited_before + self.waited.seconds
        last = state.step == self.session.total_steps
        if state.step % self.session.log_every_steps == 0 or last:
            self._log(state, watched, now)
        self.progress.advance()
        stopping = self.runtime.any_process(bool(self.stop))
        due = now - self.saved_at >= self.session.save_every_seconds
        if self.runtime.is_main and (stopping or due or last):
            self.session.save(state)
            self.saved_at = now
        if stopping and not last:
            raise Interrupted(
                f"{self.session.name} stopped on {self.stop.signal_name or 'another process'} "
                f"after step {state.step} of {self.session.total_steps}, and saved it.\n"
                "  The same command continues there."
            )

    def _log(self, state: TrainState, watched: Watched, now: float) -> None:
        row = self.describe(watched)
        images = (state.step - self.logged_step) * self.session.batch_size
        row = {
            "step": state.step,
            "epoch": round(state.step / self.session.steps_per_epoch, 4),
            **row,
            "lr": self.session.lr_at(state.step - 1),
            "images_per_second": round(images / max(now - self.logged_at, 1e-9), 1),
        }
        broken = [name for name, value in row.items() if not math.isfinite(value)]
        if broken:
            raise StageError(
                f"{self.session.name}: {', '.join(broken)} is not a finite number at step "
                f"{state.step} (learning rate {row['lr']:.3g}).\n  The last good state is kept in "
                f"{self.session.state_file}. A lower learning rate, a longer warm-up or float32 "
                "precision usually helps."
            )
        state.curve.append(row)
        self.logged_at, self.logged_step = now, state.step
        self.progress.tell(row)


class _Progress:
    """A bar with rate and time left on a terminal, plain lines elsewhere."""

    def __init__(self, session: Session, state: TrainState, runtime: Runtime) -> None:
        self.session, self.runtime = session, runtime
        self.start_step, self.begun = state.step, time.perf_counter()
        self.told_at = -math.inf
        self.on_terminal = runtime.is_main and runtime.is_alone and sys.stderr.isatty()
        self.bar = tqdm(
            total=session.total_steps,
            initial=state.step,
            desc=session.name,
            unit="step",
            disable=not self.on_terminal,
        )

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self) -> None:
        self.bar.update()

    def tell(self, row: dict[str, float]) -> None:
        shown = {name: row[name] for name in SHOWN if name in row}
        if self.on_terminal:
            self.bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()})
            return
        now = time.perf_counter()
        last = row["step"] == self.session.total_steps
        if not self.runtime.is_main or (now - self.told_at < PLAIN_LINE_SECONDS and not last):
            return
        self.told_at = now
        done = row["step"] - self.start_step
        left = (now - self.begun) / max(done, 1) * (self.session.total_steps - row["step"])
        facts = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
        _say(
            f"{self.session.name}: step {row['step']:.0f}/{self.session.total_steps}, {facts}, "
            f"{row['images_per_second']:.0f} images/s, {_clock(left)} left"
        )


SHOWN = ("loss", "contrastive_accuracy", "effective_rank")
PLAIN_LINE_SECONDS = 10.0  # between lines in a log file


def write_curve(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write a curve as CSV, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {name: f"{x:.6g}" if isinstance(x, float) else x for name, x in row.items()}
            for row in rows
        )
    partial.replace(path)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


_say = partial(print, flush=True)
