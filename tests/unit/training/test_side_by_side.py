"""Several trainings at once: what comes back, and how they end."""

import os
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from threading import Thread

import psutil
import pytest
import torch

from stages.errors import Interrupted, StageError, UserError
from stages.training.runtime import Runtime
from stages.training.side_by_side import WorkerFailedError, side_by_side

CPU = Runtime(torch.device("cpu"))


def seen_by(number: int, runtime: Runtime) -> tuple[int, int, int, bool]:
    time.sleep(0.05)  # long enough for each worker to take its share
    return number, os.getpid(), torch.get_num_threads(), runtime.is_alone


def weights_after_a_step(seed: int, _runtime: Runtime) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    model(torch.ones(1, 3)).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    return model


def test_results_come_in_the_order_of_the_tasks_from_processes_with_one_thread_each():
    tasks = [partial(seen_by, number) for number in range(5)]
    results = side_by_side(tasks, CPU, at_once=2)
    assert [number for number, *_ in results] == [0, 1, 2, 3, 4]
    processes = {process for _, process, *_ in results}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert {(threads, alone) for *_, threads, alone in results} == {(1, False)}


def test_a_thread_begun_meanwhile_has_ended_before_the_next_fork():
    begun = []

    def meanwhile() -> Thread:
        begun.append(Thread(target=time.sleep, args=(0.5,)))
        begun[0].start()
        return begun[0]

    side_by_side([partial(seen_by, number) for number in range(2)], CPU, 2, meanwhile)
    assert not begun[0].is_alive()


def test_forking_beside_threads_is_meant_and_warns_of_nothing():
    """From Python 3.12 on os.fork warns of them; -W error could not show it, as it is cleared."""
    beside = Thread(target=time.sleep, args=(1,))
    beside.start()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        side_by_side([partial(seen_by, number) for number in range(2)], CPU, 2)
    beside.join()
    assert [str(warning.message) for warning in told] == []


@pytest.mark.parametrize(("at_once", "n_tasks"), [(1, 3), (4, 1)])
def test_one_at_a_time_stays_in_this_process(at_once: int, n_tasks: int):
    done = []
    results = side_by_side(
        [partial(seen_by, number) for number in range(n_tasks)],
        CPU,
        at_once,
        meanwhile=lambda: done.append(True),
    )
    assert {process for _, process, *_ in results} == {os.getpid()}
    assert done == [True]


def test_modules_come_back_as_one_after_the_other_makes_them():
    tasks = [partial(weights_after_a_step, seed) for seed in range(3)]
    for ours, theirs in zip(side_by_side(tasks, CPU, 3), side_by_side(tasks, CPU, 1), strict=True):
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor)


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def refuses(_runtime: Runtime) -> None:
    raise UserError("no such list")


def breaks(_runtime: Runtime) -> None:
    raise ZeroDivisionError("a fault of ours")


def is_killed(_runtime: Runtime) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def waits(_runtime: Runtime) -> None:
    time.sleep(60)


@pytest.mark.parametrize(
    ("task", "error", "words"),
    [
        (refuses, UserError, "no such list"),
        (breaks, WorkerFailedError, "in breaks"),
        (is_killed, StageError, "no message"),
    ],
)
def test_the_first_error_stops_the_others_and_is_the_one_told(task, error, words: str):
    begun, before = time.monotonic(), children()
    with pytest.raises(error, match=words) as caught:
        side_by_side([waits, task], CPU, 2)
    assert not isinstance(caught.value, Interrupted)
    assert time.monotonic() - begun < 30
    assert children() <= before


def leaves(_runtime: Runtime) -> None:
    os._exit(0)


def test_a_worker_that_left_without_a_result_is_told_of():
    with pytest.raises(StageError, match="ended with code 0 and no message"):
        side_by_side([partial(seen_by, 0), leaves], CPU, 2)


def much(_runtime: Runtime) -> bytes:
    return bytes(2**22)  # more than a pipe holds


def test_a_stop_in_the_middle_of_a_result_does_not_cut_it():
    def stop_them() -> None:
        time.sleep(1)  # until they wait for the pipe to be read
        for child in psutil.Process().children():
            child.terminate()

    with pytest.raises(Interrupted, match="stopped on SIGTERM"):
        side_by_side([much, much], CPU, 2, stop_them)


STAGE = """
import sys, time
import torch
from functools import partial
from pathlib import Path
from stages.errors import Interrupted, run_stage
from stages.training.runtime import Runtime, stop_on_signals
from stages.training.side_by_side import side_by_side

def train(number, runtime):
    with stop_on_signals() as stop:
        Path(f"started-{number}").touch()
        while not stop:
            time.sleep(0.01)
        Path(f"saved-{number}").touch()
        raise Interrupted(f"training {number} saved")

run_stage(lambda: side_by_side(
    [partial(train, n) for n in range(3)], Runtime(torch.device("cpu")), 2
))
"""


def started(folder: Path, root: Path) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """The stage above in a process of its own, once two trainings are on; and its workers."""
    stage = subprocess.Popen(
        [sys.executable, "-c", STAGE],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    limit = time.monotonic() + 120
    while len(list(folder.glob("started-*"))) < 2:
        assert stage.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.05)
    return stage, psutil.Process(stage.pid).children()


@pytest.mark.kill
@pytest.mark.parametrize("whole_group", [False, True])  # a kill of the stage; Ctrl-C reaches all
def test_a_stop_signal_saves_every_training_and_leaves_no_process(
    tmp_path: Path, root: Path, whole_group: bool
):
    stage, workers = started(tmp_path, root)
    if whole_group:
        os.killpg(stage.pid, signal.SIGINT)
    else:
        stage.send_signal(signal.SIGTERM)
    _, errors = stage.communicate(timeout=60)
    assert stage.returncode == 75
    assert "saved" in errors
    assert "Traceback" not in errors
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]
    assert psutil.wait_procs(workers, timeout=10)[1] == []


@pytest.mark.kill
def test_workers_whose_stage_is_killed_save_and_stop(tmp_path: Path, root: Path):
    stage, workers = started(tmp_path, root)
    stage.kill()
    stage.communicate(timeout=60)
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]
