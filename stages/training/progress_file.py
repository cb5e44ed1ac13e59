"""How far a stage's trainings are, as files for whoever watches from outside.

Written only where the watcher names a folder; one file for each training, and one that says how
many there will be. Numbers, so that nobody reads the log.
"""

import math
import os
import re
import time
from pathlib import Path

from stages.records import PROGRESS_FOLDER, write_json

TRAININGS = "trainings.json"
WRITE_EVERY_SECONDS = 2.0


def expect_trainings(count: int) -> None:
    """Say how many trainings the stage is made of: those after the first have no file yet."""
    if PROGRESS_FOLDER in os.environ:
        write_json(Path(os.environ[PROGRESS_FOLDER], TRAININGS), {"trainings": count})


class ProgressFile:
    """The file of one training, written at most every two seconds; none where nobody watches.

    Args:
        name: of the training.
        step: where it starts or continues.
        total_steps: where it ends.
    """

    def __init__(self, name: str, step: int, total_steps: int) -> None:
        folder = os.environ.get(PROGRESS_FOLDER)
        file_name = re.sub(r"[^\w.-]+", "-", name)
        self.path = None if folder is None else Path(folder, "training", f"{file_name}.json")
        self.first_step, self.total_steps = step, total_steps
        self.begun, self.written_at = time.perf_counter(), -math.inf
        self.row: dict[str, float] = {}
        self.tell(step)

    def watch(self, row: dict[str, float]) -> None:
        """Keep the numbers logged last, to be written with the next step."""
        self.row = {name: row[name] for name in ("loss", "images_per_second") if name in row}

    def tell(self, step: int) -> None:
        now = time.perf_counter()
        waits = step < self.total_steps and now - self.written_at < WRITE_EVERY_SECONDS
        if self.path is None or waits:
            return
        self.written_at = now
        done = step - self.first_step  # below 0 after a rollback to an earlier mark
        seconds_left = (now - self.begun) / done * (self.total_steps - step) if done > 0 else None
        write_json(
            self.path,
            {
                "step": step,
                "total_steps": self.total_steps,
                "seconds_left": None if seconds_left is None else round(seconds_left, 1),
                **self.row,
            },
        )
