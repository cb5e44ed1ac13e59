"""Several small trainings at once on a CPU, each on a core of its own.

A small network's step is too short to share. Tuning the quick profile's baseline on two cores took
in 6,700 images/s with two trainings side by side, 4,200 with one on two threads. Each runs in a
forked process (torch is imported once) on one thread, with its own working state, and hands back
what it made.

Why forking is safe here although torch and numpy keep threads, of which Python 3.12 and later
warn: no Python thread of ours is on at a fork (`meanwhile` starts after it and is waited for), and
those of BLAS and OpenMP are idle pools. OpenBLAS ends its own around a fork, and a child that
computes on one thread never asks OpenMP for one. Importing torch afresh in each worker instead
(spawn, forkserver) would cost every stage seconds.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from multiprocessing.sharedctypes import Synchronized
from threading import Thread
from types import FrameType
from typing import Any, TypeVar

import torch

from stages.errors import STOP_SIGNALS, Interrupted, StageError, end_with_parent
from stages.training.runtime import Runtime

Result = TypeVar("Result")
Task = Callable[[Runtime], Result]


class WorkerFailedError(Exception):
    """A training ended by a fault of ours; the text is its traceback."""


def side_by_side(
    tasks: Sequence[Task[Result]],
    runtime: Runtime,
    at_once: int,
    meanwhile: Callable[[], Thread | None] = lambda: None,
) -> list[Result]:
    """Run every task and return the results in their order.

    Args:
        tasks: each is called with the runtime it is to use, in a process of its own; what it
            returns must be picklable.
        runtime: of this process. On a GPU, and under torchrun, tasks run one after the other.
        at_once: 0: as many as the threads of this process; 1: one after the other, on all threads.
        meanwhile: done in this process when the others have started; a thread that it starts is
            returned, and waited for at the end: at the next fork it could hold an import lock.

    Raises:
        Interrupted: a stop signal came; every task that was running has saved its state.
        StageError: the first that a task raised; the others were told to stop.
        WorkerFailedError: a task broke.
    """
    n_workers = min(at_once or torch.get_num_threads(), len(tasks))
    alone = runtime.device.type != "cpu" or runtime.world_size > 1
    if alone or n_workers < 2 or sys.platform != "linux":
        thread = meanwhile()
        results = [task(runtime) for task in tasks]
        if thread is not None:
            thread.join()
        return results
    fork = multiprocessing.get_context("fork")
    next_task = fork.Value("l", 0)
    crew: dict[Connection, ForkProcess] = {}
    for _ in range(n_workers):
        ours, theirs = fork.Pipe(duplex=False)
        worker = fork.Process(
            target=_work, args=(tasks, replace(runtime, is_alone=False), next_task, theirs)
        )
        with warnings.catch_warnings():  # see above why it is safe
            warnings.filterwarnings("ignore", "This process .* multi-threaded", DeprecationWarning)
            worker.start()
        theirs.close()
        crew[ours] = worker
    with _stopping_together(list(crew.values())) as stop:
        thread = meanwhile()
        done = _collect(crew, stop, len(tasks))
    if thread is not None:
        thread.join()
    return [done[number] for number in range(len(tasks))]


class _Stop:
    """Tells every worker to stop, once."""

    def __init__(self, workers: Sequence[ForkProcess]) -> None:
        self.workers, self.asked = workers, False

    def __call__(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        if not self.asked:
            self.asked = True
            for worker in self.workers:
                worker.terminate()


@contextmanager
def _stopping_together(workers: Sequence[ForkProcess]) -> Generator[_Stop]:
    """Pass stop signals on to the workers, and leave none behind."""
    stop = _Stop(workers)
    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        if any(worker.is_alive() for worker in workers):
            stop()
        for worker in workers:
            worker.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def _collect(crew: dict[Connection, ForkProcess], stop: _Stop, n_tasks: int) -> dict[int, Any]:
    """Results by the number of their task, once all workers are done."""
    results: dict[int, Any] = {}
    errors: list[Exception] = []
    open_ends = set(crew)
    while open_ends:
        for end in wait(list(open_ends)):
            assert isinstance(end, Connection)
            try:
                number, data = pickle.loads(end.recv_bytes())  # from our own process
            except (EOFError, OSError):  # the latter in the middle of a result
                open_ends.discard(end)
                worker = crew[end]
                worker.join()
                if worker.exitcode and not errors:
                    errors.append(_lost(worker.exitcode, stop))
                    stop()
                continue
            if isinstance(data, Exception):
                errors.append(data)
                stop()
            else:
                results[number] = data
    if not errors and len(results) < n_tasks:
        errors.append(_lost(0, stop))
    if errors:
        raise errors[0]
    return results


def _lost(exit_code: int, stop: _Stop) -> Exception:
    """A worker that ended without a word."""
    if stop.asked:
        return Interrupted("stopped before there was anything new to save; run it again")
    return StageError(
        f"a training process ended with code {exit_code} and no message.\n"
        "  If the machine ran out of memory, lower runtime.trainings_at_once; the same command "
        "continues the others."
    )


def _work(
    tasks: Sequence[Task[Any]], runtime: Runtime, next_task: "Synchronized[int]", end: Connection
) -> None:
    """Take tasks until none is left; send each result, or the error that came instead."""
    end_with_parent(os.getppid())
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # the parent passes it on
    torch.set_num_threads(1)
    number = 0
    try:
        while True:
            with next_task.get_lock():
                number = next_task.value
                next_task.value += 1
            if number >= len(tasks):
                return
            _send(end, number, tasks[number](runtime))
    except (StageError, OSError) as error:  # those that have a message for the user
        _send(end, number, error)
    except Exception:
        _send(end, number, WorkerFailedError(traceback.format_exc()))


def _send(end: Connection, number: int, data: object) -> None:
    """Send it whole: what a stop signal cuts in two can't be read, nor what follows it."""
    message = pickle.dumps((number, data))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        end.send_bytes(message)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    raise Interrupted(f"stopped on {name} between two steps.\n  The same command continues there.")
