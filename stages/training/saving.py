"""When a training is saved and continued, by one process or by several that must agree.

States are written aside while training goes on: a step waits for a copy, never for the disk. Only
marks, which a run may roll back to (see `recovery`), are written between two steps.
"""

import socket
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.errors import StageError, UserError, disk_message
from stages.training import checkpoint
from stages.training.runtime import Runtime
from stages.training.state import TrainState

_GO_ON, _STOP, _FAIL = 0, 1, 2  # what each process asks for after a step; the highest counts


def resume_together(path: Path, state: TrainState, fingerprint: str, runtime: Runtime) -> str:
    """Continue at the same step in every process; says what was done.

    Raises:
        UserError: the processes train different things.
        StageError: they found different states.
    """
    error = None
    if runtime.from_main(fingerprint) != fingerprint:
        error = UserError(
            f"the process on {socket.gethostname()} has other params, data or code than the main "
            "process.\n"
            "  Hosts that train together need the project in one folder that all share."
        )
    runtime.raise_together(error)
    return load_together(path, state, fingerprint, runtime)


def load_together(path: Path, state: TrainState, fingerprint: str, runtime: Runtime) -> str:
    """Load a saved state in every process; says what was done. No write may be under way.

    Raises:
        StageError: the processes found different states.
    """
    story = checkpoint.resume(path, state, fingerprint)
    step_of_main = int(runtime.from_main(str(state.step)))
    error = None
    if state.step != step_of_main:
        error = StageError(
            f"the main process stands at step {step_of_main}, the process on "
            f"{socket.gethostname()} at {state.step}: {story}.\n  Run the same command again."
        )
    runtime.raise_together(error)
    return story


class Saver:
    """Saves one training: at intervals, when it is told to stop, and at its end.

    The main process writes; a file is written in a thread, one at a time.
    """

    def __init__(
        self, path: Path, fingerprint: str, runtime: Runtime, every_seconds: float, step: int
    ) -> None:
        self.path, self.fingerprint, self.runtime = path, fingerprint, runtime
        self.every_seconds = every_seconds
        self.restart(step)
        self._writer: threading.Thread | None = None
        self._failure: BaseException | None = None

    def restart(self, step: int) -> None:
        """Training goes on from this step, whose state is on the disk."""
        self.saved_step, self._saved_at = step, time.perf_counter()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def after_step(self, state: TrainState, *, stop: bool, last: bool) -> bool:
        """Save if that is due; whether some process is to stop, upon which the state is saved.

        It is not if it isn't finite; `saved_step` of the main process tells.

        Raises:
            UserError: what was to be saved can't be; the last good state is kept.
        """
        failed = self._failure is not None
        asked = self.runtime.highest(_FAIL if failed else _STOP if stop else _GO_ON)
        if asked or last:
            self.save_and_wait(state)
        elif self.runtime.is_main and self._is_due():
            self.begin(state)
        return asked == _STOP

    def save_and_wait(self, state: TrainState) -> None:
        """No process goes on before the state is on the disk, and none if it can't be."""
        error = None
        if self.runtime.is_main:
            try:
                self.begin(state)
                self.wait()
            except OSError as problem:
                message = disk_message(problem)
                if message is None:
                    raise
                error = UserError(f"step {state.step} can't be saved: {message}")
        self.runtime.raise_together(error)

    def begin(self, state: TrainState) -> None:
        """Copy the state and let a thread write it, after the write before.

        Numbers that are not finite do not take the place of good ones: nothing is written then.

        Raises:
            OSError: the write before failed; the state saved before that is kept.
        """
        self.wait()
        saved = checkpoint.snapshot(state, self.fingerprint)

        def work() -> None:
            try:
                if _is_finite(saved):  # looked for here, where no step waits
                    checkpoint.write(self.path, saved)
                    self.saved_step = saved["state"]["step"]
            except BaseException as error:  # handed over, and raised where training sees it
                self._failure = error

        # No daemon: a process that ends for another reason still finishes what it has begun.
        self._writer = threading.Thread(target=work, name="save")
        self._writer.start()
        self._saved_at = time.perf_counter()

    def wait(self) -> None:
        """Return when what was begun is on the disk.

        Raises:
            OSError: it could not be written.
        """
        self.close()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Let what was begun come to its end, however it ends."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def _is_due(self) -> bool:
        busy = self._writer is not None and self._writer.is_alive()
        return not busy and time.perf_counter() - self._saved_at >= self.every_seconds


def _is_finite(saved: Any) -> bool:
    """Whether every number in every tensor of a saved state is."""
    if isinstance(saved, Tensor):
        if not saved.is_floating_point() or saved.numel() == 0:
            return True
        return bool(torch.stack(saved.aminmax()).isfinite().all())  # NaN passes through both
    if isinstance(saved, dict):
        return all(_is_finite(one) for one in saved.values())
    return not isinstance(saved, list | tuple) or all(_is_finite(one) for one in saved)
