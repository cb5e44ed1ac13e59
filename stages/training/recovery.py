"""What a run does when its numbers stop being finite, or its representation collapses.

A rollback is a pure function of the params. Marks, states to go back to, are kept at fixed steps
and not by the clock. Weights that are about to overflow look good for some steps, so the run goes
back to the last mark that it outlived by a whole interval, and to an older one should that not
help; from there on every learning rate is multiplied by a factor. A run that rolled back ends where
it always does, killed and continued on the way or not.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.errors import StageError
from stages.training import checkpoint
from stages.training.batches import Batch
from stages.training.finite import Finding, NonFinite, broken_tensor, find_first
from stages.training.loop import Watched
from stages.training.runtime import Runtime
from stages.training.saving import load_together
from stages.training.state import TrainState
from stages.training.watch import has_collapsed

ADVICE = "A lower learning rate, a longer warm-up or float32 precision usually helps."
MARKS, MARKS_KEPT = "good-?????????.pt", 2


@dataclass(frozen=True)
class Guard:
    """What to do about numbers that are not finite, and about a collapse.

    Attributes:
        keeps_start: a run keeps the state it starts from, so that a cause can be looked for even
            before the first save.
        rolls_back: instead of stopping at a number that is not finite.
        mark_every_steps: the interval of marks.
        lr_factor: each rollback multiplies all later learning rates by it.
        most_rollbacks: of a run; then it stops.
        stops_at_collapse: else it only says so, once.
        out_dim: P, where z is watched for a collapse; 0: it is not.
    """

    keeps_start: bool = False
    rolls_back: bool = False
    mark_every_steps: int = 1
    lr_factor: float = 0.5
    most_rollbacks: int = 3
    stops_at_collapse: bool = False
    out_dim: int = 0

    def mark_due(self, state: TrainState) -> bool:
        return self.rolls_back and state.step % self.mark_every_steps == 0

    def is_good(self, state: TrainState) -> bool:
        """Whether the state may be rolled back to: finite all over, and not collapsed."""
        collapsed = self.out_dim > 0 and has_collapsed(state.curve, self.out_dim)
        return not collapsed and broken_tensor(state) is None

    def new_collapse(self, state: TrainState) -> bool:
        """Whether the rows so far show a collapse that the state's events do not hold yet."""
        told = any(event["kind"] == "collapse" for event in state.events)
        return self.out_dim > 0 and not told and has_collapsed(state.curve, self.out_dim)


@dataclass
class Recovery:
    """Finds the cause of a number that is not finite, then rolls back or stops.

    Attributes:
        guard: what is asked for.
        name: of the run, for its messages.
        folder: of the working state.
        fingerprint: that the states in it must have.
        runtime: every process recovers together; the main one writes.
        batches: those of steps start..stop.
        train_step: of the method.
        lr_at: before any factor.
        stop: called before every step that is done again; may raise.
    """

    guard: Guard
    name: str
    folder: Path
    fingerprint: str
    runtime: Runtime
    batches: Callable[[int, int], Iterator[Batch]]
    train_step: Callable[[TrainState, Batch], Watched]
    lr_at: Callable[[int], float]
    stop: Callable[[], Any]

    @property
    def saved(self) -> Path:
        return self.folder / "last.pt"

    def marks(self) -> dict[int, Path]:
        """Every mark there is, by its step, the oldest first."""
        return {int(path.stem[5:]): path for path in sorted(self.folder.glob(MARKS))}

    def begin(self, state: TrainState) -> None:
        """Keep the state that a run starts from; marks of an older run go."""
        if not (self.runtime.is_main and (self.guard.rolls_back or self.guard.keeps_start)):
            return
        if state.step == 0:
            self._forget_marks_after(-1)
        if not self.marks():
            self.keep_mark(state)

    def keep_mark(self, state: TrainState) -> None:
        """Keep the state to roll back to, if it is good, beside the one before it."""
        if self.runtime.is_main and self.guard.is_good(state):
            mark = self.folder / f"good-{state.step:09d}.pt"
            checkpoint.save(mark, state, self.fingerprint, keep_before=False)
            for step in [step for step in self.marks() if step <= state.step][:-MARKS_KEPT]:
                self.marks()[step].unlink()

    def _forget_marks_after(self, step: int) -> None:
        for at, path in self.marks().items():
            if at > step:
                path.unlink()

    def recover(self, state: TrainState, broken: NonFinite) -> str:
        """Roll back to a mark; what was done, in a line.

        Raises:
            StageError: rollback is not asked for, would not help, or has been tried too often.
        """
        events, lr = state.events, self.lr_at(broken.step - 1) * state.lr_factor
        finding = self._cause(state, broken.step)
        cause = str(finding) if isinstance(finding, Finding) else finding
        head = f"{self.name}: {broken} (learning rate {lr:.3g}); {cause}."
        if isinstance(finding, Finding) and not finding.curable:
            raise StageError(
                f"{head}\n  No learning rate mends that: look at the images and pretrain.views. "
                f"{self._kept()}"
            )
        if not self.guard.rolls_back:
            raise StageError(f"{head}\n  {self._kept()} {ADVICE}")
        done = [event for event in events if event["kind"] == "rollback"]
        if len(done) >= self.guard.most_rollbacks:
            raise StageError(
                f"{head}\n  It was rolled back {len(done)} times before, as often as allowed "
                f"(learning rate times {state.lr_factor:.3g}). {self._kept()} {ADVICE}"
            )
        tried = {event["to_step"] for event in done}
        target = self._as_main_chooses(lambda: self._mark_to_try(broken.step, tried))
        if target is None or not self._load(target, state):
            raise StageError(f"{head}\n  There is no good state to roll back to. {ADVICE}")
        event = {
            "kind": "rollback",
            "from_step": broken.step,
            "to_step": state.step,
            "lr_factor": self.guard.lr_factor,
            "cause": cause,
        }
        state.events = [*events, event]
        if self.runtime.is_main:
            self._forget_marks_after(state.step)
            checkpoint.save(self.saved, state, self.fingerprint)
        return (
            f"{head}\n  rolled back to step {state.step}; learning rates are multiplied by "
            f"{state.lr_factor:.3g} from here on"
        )

    def _mark_to_try(self, broken_step: int, tried: set[int]) -> Path | None:
        """The newest that was outlived by a whole interval and not tried; else the oldest."""
        marks = self.marks()
        outlived = set(range(broken_step - self.guard.mark_every_steps + 1)) & set(marks)
        return marks.get(max(outlived - tried, default=min(marks, default=-1)))

    def _latest_before(self, step: int) -> Path | None:
        marks = [path for at, path in self.marks().items() if at < step]
        latest = max((self.saved, *marks), key=lambda path: self._step_of(path, step))
        return latest if self._step_of(latest, step) >= 0 else None

    def _as_main_chooses(self, choose: Callable[[], Path | None]) -> Path | None:
        """A saved state, the same in every process.

        The main process alone knows when its writes are done: another that looked for itself could
        find a file that is just being replaced, and would do other steps than the rest.
        """
        chosen = choose() if self.runtime.is_main else None
        name = self.runtime.from_main("" if chosen is None else chosen.name)
        return self.folder / name if name else None

    def _cause(self, state: TrainState, step: int) -> Finding | str:
        """Repeat what led to the step, from the latest state that was saved before it."""
        latest = self._as_main_chooses(lambda: self._latest_before(step))
        if latest is None or not self._load(latest, state):
            return "no state from before it was saved, so the cause can't be looked for"
        found = find_first(
            state,
            self.batches(state.step, step),
            self.train_step,
            lr_at=lambda at: self.lr_at(at) * state.lr_factor,
            broken_step=step,
            runtime=self.runtime,
            stop=self.stop,
        )
        return found or "it did not happen again when the steps were repeated"

    def _step_of(self, path: Path, before: int = sys.maxsize) -> int:
        """The step of a saved state of this run that is from before a step; else -1."""
        with suppress(*checkpoint.UNREADABLE):
            saved = checkpoint.load(path)
            if saved["fingerprint"] == self.fingerprint and saved["state"]["step"] < before:
                return saved["state"]["step"]
        return -1

    def _load(self, path: Path, state: TrainState) -> bool:
        state.step = -1
        load_together(path, state, self.fingerprint, self.runtime)
        return state.step >= 0

    def _kept(self) -> str:
        kept = max((self.saved, *self.marks().values()), key=self._step_of)
        if self._step_of(kept) < 0:
            return "No state had been saved yet."
        return f"The last good state is kept in {kept}."
