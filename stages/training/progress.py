"""How far a run is: a bar on a terminal, plain lines elsewhere, and a file for whoever watches."""

import math
import sys
import time

from tqdm import tqdm

from stages.errors import say
from stages.training.progress_file import ProgressFile
from stages.training.runtime import Runtime
from stages.training.state import TrainState

SHOWN = ("loss", "contrastive_accuracy", "effective_rank", "online_knn")
PLAIN_LINE_SECONDS = 10.0  # between lines in a log file


class Progress:
    """A bar with rate and time left on a terminal, plain lines elsewhere."""

    def __init__(self, name: str, total_steps: int, state: TrainState, runtime: Runtime) -> None:
        self.name, self.total_steps, self.runtime = name, total_steps, runtime
        self.told_at = -math.inf
        self.on_terminal = runtime.is_main and runtime.is_alone and sys.stderr.isatty()
        self._begin(state.step)

    def _begin(self, step: int) -> None:
        self.start_step, self.begun = step, time.perf_counter()
        self.file = (
            ProgressFile(self.name, step, self.total_steps) if self.runtime.is_main else None
        )
        self.bar = tqdm(
            total=self.total_steps,
            initial=step,
            desc=self.name,
            unit="step",
            disable=not self.on_terminal,
        )

    def restart(self, step: int) -> None:
        """After a rollback: rate and time left are of what is done from this step on."""
        self.bar.close()
        self._begin(step)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, step: int) -> None:
        self.bar.update()
        if self.file is not None:
            self.file.tell(step)

    def tell(self, row: dict[str, float]) -> None:
        if self.file is not None:
            self.file.watch(row)
        shown = {name: row[name] for name in SHOWN if name in row}
        if self.on_terminal:
            self.bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()})
            return
        now = time.perf_counter()
        last = row["step"] == self.total_steps
        if not self.runtime.is_main or (now - self.told_at < PLAIN_LINE_SECONDS and not last):
            return
        self.told_at = now
        done = row["step"] - self.start_step
        left = (now - self.begun) / max(done, 1) * (self.total_steps - row["step"])
        facts = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
        say(
            f"{self.name}: step {row['step']:.0f}/{self.total_steps}, {facts}, "
            f"{row['images_per_second']:.0f} images/s, {_clock(left)} left"
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
