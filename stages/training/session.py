"""A training run from its last saved state to its end: steps, log, saves, stops, rollbacks."""

import csv
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from stages.errors import Interrupted, StageError, StoppedTogether, say
from stages.optim.schedules import warmup_cosine
from stages.training.batches import Batch, Waited
from stages.training.event_files import EventFiles
from stages.training.finite import FiniteWatch, NonFinite
from stages.training.loop import Watched, fit
from stages.training.progress import Progress
from stages.training.recovery import Guard, Recovery
from stages.training.runtime import Runtime, StopRequest, stop_on_signals
from stages.training.saving import Saver, resume_together
from stages.training.state import TrainState
from stages.training.steps import Step
from stages.training.watch import UpdateWatch


class Probe(Protocol):
    """A look at the state from outside, at intervals; its numbers join the curve's row."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def is_due(self, step: int, total_steps: int) -> bool: ...

    def __call__(self, state: TrainState) -> dict[str, float]: ...


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
        guard: what is done about numbers that are not finite, and about a collapse.
        tensorboard: folder of event files; None: none are written.
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
    guard: Guard = field(default_factory=Guard)
    tensorboard: str | None = None

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
        probe: Probe | None = None,
    ) -> None:
        """Continue from the saved state, if there is one, to the last step.

        Raises:
            Interrupted: a stop signal came; the state is saved.
            StageError: a number is not finite, or z has collapsed; the last good state is kept.
            UserError: the state can't be saved.
        """
        with stop_on_signals() as stop:  # before anything is said, so that every process listens
            story = resume_together(self.state_file, state, self.fingerprint, runtime)
            if runtime.is_main:
                say(f"{self.name}: {self.total_steps} steps of {self.batch_size} images; {story}")
            self._train(runtime, state, batches, train_step, describe, waited, probe, stop)

    def _train(
        self,
        runtime: Runtime,
        state: TrainState,
        batches: Callable[[int, int], Iterator[Batch]],
        train_step: Step,
        describe: Callable[[Watched], dict[str, float]],
        waited: Waited,
        probe: Probe | None,
        stop: StopRequest,
    ) -> None:
        every = self.save_every_seconds
        with (
            Saver(self.state_file, self.fingerprint, runtime, every, state.step) as saver,
            Progress(self.name, self.total_steps, state, runtime) as progress,
        ):
            after = _AfterStep(self, runtime, describe, stop, waited, progress, probe, saver)
            recovery = Recovery(
                self.guard,
                self.name,
                self.folder,
                self.fingerprint,
                runtime,
                batches,
                train_step,
                self.lr_at,
                lambda: self.stop_if_asked(runtime, stop, state),
            )
            recovery.begin(state)
            with self._event_files(runtime, state) as after.event_files:
                after.complete_row(state)
            while state.step < self.total_steps:
                after.begin(state)
                try:
                    with self._event_files(runtime, state) as after.event_files:
                        fit(
                            state,
                            batches(state.step, self.total_steps),
                            after.watched(train_step),
                            lr_at=lambda step: self.lr_at(step) * state.lr_factor,
                            total_steps=self.total_steps,
                            after_step=partial(after, recovery),
                        )
                except NonFinite as found:
                    broken = NonFinite(found.step, found.what)  # holds no frame, so no batches
                except Interrupted:  # no more data came (a network that died): keep what was learnt
                    if runtime.is_main and state.step > saver.saved_step:
                        saver.begin(state)
                    raise
                else:
                    return
                saver.close()
                story = recovery.recover(state, broken)
                saver.restart(state.step)
                progress.restart(state.step)
                if runtime.is_main:
                    say(story)

    def stop_if_asked(self, runtime: Runtime, stop: StopRequest, state: TrainState) -> None:
        """Between two steps that are done again to find a cause; nothing is saved."""
        if runtime.any_process(bool(stop)):
            raise StoppedTogether(
                f"{self.name} stopped on {stop.signal_name or 'another process'} while the cause "
                f"of a number that is not finite was looked for, at step {state.step}.\n"
                "  The same command continues from the last good state."
            )

    def _event_files(self, runtime: Runtime, state: TrainState) -> EventFiles:
        folder = self.tensorboard if runtime.is_main else None
        return EventFiles(folder, self.name, after_step=state.step)


class _AfterStep:
    """Watching, logging, saving and stopping, once after each step."""

    def __init__(
        self,
        session: Session,
        runtime: Runtime,
        describe: Callable[[Watched], dict[str, float]],
        stop: StopRequest,
        waited: Waited,
        progress: Progress,
        probe: Probe | None,
        saver: Saver,
    ) -> None:
        self.session, self.runtime, self.describe = session, runtime, describe
        self.saver = saver
        self.stop, self.waited, self.progress, self.probe = stop, waited, progress, probe
        self.event_files = EventFiles(None, session.name, after_step=0)

    def begin(self, state: TrainState) -> None:
        """Before the first step, and again after a rollback."""
        self.finite, self.updates = FiniteWatch(), UpdateWatch()
        self.begun = self.logged_at = time.perf_counter()
        self.seconds_before = state.seconds
        self.waited_before = state.waited_seconds - self.waited.seconds
        self.waited_logged = self.waited.seconds
        self.logged_step = state.step

    def watched(self, train_step: Step) -> Step:
        """The step, with the weights remembered where the curve will tell how far they moved."""

        def step(state: TrainState, batch: Batch) -> Watched:
            if self._log_due(state.step + 1):
                self.updates.before_step(state)
            return train_step(state, batch)

        return step

    def __call__(self, recovery: Recovery, state: TrainState, watched: Watched) -> None:
        now = time.perf_counter()
        state.seconds = self.seconds_before + now - self.begun
        state.waited_seconds = self.waited_before + self.waited.seconds
        self.finite.note(state.step, watched["loss"])
        last = state.step == self.session.total_steps
        if self._log_due(state.step):
            # A short training's rows hold the norms of weights and gradient; that is enough there.
            self.finite.check(state, thoroughly=last or self.session.guard.keeps_start)
            self._log(state, watched, now)
            self._look_for_a_collapse(state)
        if self.session.guard.mark_due(state):
            self.finite.check(state)
            recovery.keep_mark(state)
        self.progress.advance(state.step)
        stopping = self.saver.after_step(state, stop=bool(self.stop), last=last)
        if stopping and not last:
            saved_step = int(self.runtime.from_main(str(self.saver.saved_step)))
            saved = (
                "and saved it"
                if saved_step == state.step
                else f"whose numbers are not finite; the state of step {saved_step} is kept"
            )
            raise StoppedTogether(
                f"{self.session.name} stopped on {self.stop.signal_name or 'another process'} "
                f"after step {state.step} of {self.session.total_steps}, {saved}.\n"
                "  The same command continues there."
            )

    def _log_due(self, step: int) -> bool:
        regular = step % self.session.log_every_steps == 0
        return regular or step == self.session.total_steps or self._probe_due(step)

    def _probe_due(self, step: int) -> bool:
        return self.probe is not None and self.probe.is_due(step, self.session.total_steps)

    def _log(self, state: TrainState, watched: Watched, now: float) -> None:
        images = (state.step - self.logged_step) * self.session.batch_size
        seconds = max(now - self.logged_at, 1e-9)
        row = {
            "step": state.step,
            "epoch": round(state.step / self.session.steps_per_epoch, 4),
            **self.describe(watched),
            **self.updates.after_step(state),
            "lr": self.session.lr_at(state.step - 1) * state.lr_factor,
            "images_per_second": round(images / seconds, 1),
            "waited_share": round((self.waited.seconds - self.waited_logged) / seconds, 4),
        }
        broken = [name for name, value in row.items() if not math.isfinite(value)]
        if broken:
            raise NonFinite(state.step, " and ".join(broken))
        state.curve.append(row)
        self._complete(state)
        self.logged_at, self.logged_step = time.perf_counter(), state.step
        self.waited_logged = self.waited.seconds

    def complete_row(self, state: TrainState) -> None:
        """What an interruption left undone: the probe reads images, which may be out of reach."""
        if not state.curve or state.curve[-1]["step"] != state.step or self.probe is None:
            return
        if self._probe_due(state.step) and not state.curve[-1].keys() >= set(self.probe.names):
            self._complete(state)
            self._look_for_a_collapse(state)

    def _complete(self, state: TrainState) -> None:
        """The probe's numbers join the last row, which is then told."""
        row = state.curve[-1]
        if self.probe is not None and self.runtime.is_main and self._probe_due(state.step):
            row |= self.probe(state)
        self.event_files.write(row)
        self.progress.tell(row)

    def _look_for_a_collapse(self, state: TrainState) -> None:
        guard = self.session.guard
        if state.step <= self.session.warmup_steps or not guard.new_collapse(state):
            return
        row = state.curve[-1]
        told = (
            f"{self.session.name}: z has collapsed by step {state.step}: its features deviate by "
            f"{row['z_std'] * guard.out_dim**0.5:.2g} of what even ones do, and its effective rank "
            f"is {row['effective_rank']:.3g} of {guard.out_dim}"
        )
        if guard.stops_at_collapse:
            raise StageError(
                f"{told}.\n  Look at the images and pretrain.views; a higher temperature, a lower "
                "learning rate or larger\n  batches usually help. To go on regardless: "
                "pretrain.on_collapse: warn."
            )
        state.events.append({"kind": "collapse", "step": state.step})
        if self.runtime.is_main:
            say(f"warning: {told}")


def write_curve(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write a curve as CSV, whole or not at all; a row may lack columns that others have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {name: f"{x:.6g}" if isinstance(x, float) else x for name, x in row.items()}
            for row in rows
        )
    partial.replace(path)
