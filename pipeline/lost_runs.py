"""Runs whose process is gone without a word: what the page says of them is made true.

A run that is killed with -9, or that ends while the server is down, tells nobody. So each leaves a
record in runs/flow-runs, and whoever comes later looks whether its process still lives: `serve`
when it starts and every minute, each run at its start, and under a plain worker the deployment
`lost-runs` of prefect.yaml, which the server runs when the worker starts and when a run of the
chain died under it. A lost run is tried again, up to twice, if it came from a deployment; it
continues where its stages saved.
"""

import os
import socket
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_logger
from prefect.settings import get_current_settings
from prefect.states import AwaitingRetry, Cancelled, Completed, Crashed, Failed

from stages.records import read_json, write_json

FOLDER = Path("runs/flow-runs")
LOOK_EVERY_SECONDS = 60.0
RETRIES = 2
# A worker says once more that a run crashed, right after the hook below, and would be the last to
# speak if the run were put back before that.
WORKER_HAS_SECONDS = 10.0
NOBODY = 0  # no process has this number, on Linux at least
GONE = "its process ended without a word"
AGAIN = f"{GONE}; it continues where it saved"


@dataclass(frozen=True)
class Record:
    """The process of a flow run, and how it ended if it came to its end."""

    flow_run: str
    server: str
    host: str
    pid: int
    started: float  # when the process was, seconds since the epoch; a number alone is given again
    ended: str = ""  # "completed", or why it failed
    crashed: float | None = None  # when its worker found it dead, seconds since the epoch

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.flow_run}.json"

    def is_alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            alive = process.status() != psutil.STATUS_ZOMBIE
            return alive and abs(process.create_time() - self.started) < 1
        except psutil.NoSuchProcess:
            return False


def server() -> str:
    """Which server the runs of this process are known to."""
    settings = get_current_settings()
    return settings.api.url or f"embedded, {settings.home}"


@contextmanager
def on_record(flow_run: str | None) -> Generator[None]:
    """Leave a record of this process's run, for those who come when it was lost."""
    if flow_run is None:
        yield
        return
    process = psutil.Process()
    record = Record(flow_run, server(), socket.gethostname(), process.pid, process.create_time())
    write_json(record.path, asdict(record))
    try:
        yield
    except Exception as error:
        write_json(record.path, asdict(replace(record, ended=str(error) or repr(error))))
        raise
    # Not removed: that the server heard of the end is for whoever looks next to see.
    write_json(record.path, asdict(replace(record, ended="completed")))


def read_record(path: Path) -> Record | None:
    """None where it is of another version, or somebody else was faster and has removed it."""
    try:
        return Record(**read_json(path))
    except (TypeError, ValueError, FileNotFoundError):
        return None


def look_after_lost_runs(but: str | None = None) -> list[str]:
    """Tell the server of every run here that is over without its knowing; a line for each.

    Args:
        but: not of this flow run, which asks: a record of it is of an earlier try.
    """
    said = []
    for path in sorted(FOLDER.glob("*.json")):
        record = read_record(path)
        if record is None or record.flow_run == but:
            continue
        ours = record.host == socket.gethostname() and record.server == server()
        if ours and not record.is_alive():
            wait_for_its_worker(record)
            with get_client(sync_client=True) as client:
                said += tell_the_end(client, record)
            forget(record)
    return said


def wait_for_its_worker(record: Record) -> None:
    """Until a worker that found the run dead has had its say; where there is none, not at all."""
    if record.crashed is not None:
        time.sleep(
            min(max(record.crashed + WORKER_HAS_SECONDS - time.time(), 0), WORKER_HAS_SECONDS)
        )


def is_current(record: Record) -> bool:
    """Whether no later try of the run has put its own record there."""
    return read_record(record.path) == record


def forget(record: Record) -> None:
    if is_current(record):
        record.path.unlink(missing_ok=True)


def tell_the_end(client: SyncPrefectClient, record: Record) -> list[str]:
    """Bring the server's idea of a run that is over up to date; a line if it was wrong."""
    try:
        run = client.read_flow_run(UUID(record.flow_run))
    except ObjectNotFound:
        return []
    shown = run.state
    if shown is None or shown.is_scheduled() or shown.is_pending() or not is_current(record):
        return []  # a later try is about to start, or has
    left_crashed = shown.is_crashed() and record.crashed is not None
    if shown.is_final() and not left_crashed:
        return []
    state = true_end(shown, record)
    if state.type != shown.type:
        client.set_flow_run_state(run.id, state, force=True)
        end_task_runs(client, run.id)
    forget(record)  # before the next try leaves its own
    again = state.is_crashed() and try_again(client, run)
    if state.type == shown.type and not again:
        return []
    said = f"run {run.name} was {shown.name} on the page and is {state.name}"
    return [f"{said}; it is tried again" if again else said]


def true_end(shown: State, record: Record) -> State:
    """The state that a run really is in, whose process is gone."""
    if shown.is_cancelling():
        return Cancelled(message="told to stop, and its process is gone")
    if record.ended == "completed":
        return Completed(message="it ended well while the server was not there")
    if record.ended:
        return Failed(message=record.ended)
    return Crashed(message=f"{GONE} (killed, or the machine went down)")


def end_task_runs(client: SyncPrefectClient, flow_run: UUID) -> None:
    """Those of a run that is over can't be running."""
    running = client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run])),
        task_run_filter=TaskRunFilter(
            state=TaskRunFilterState(type=TaskRunFilterStateType(any_=[StateType.RUNNING]))
        ),
    )
    for task in running:
        client.set_task_run_state(task.id, Crashed(message=f"{GONE}, with its run"), force=True)


def try_again(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Put a lost run of a deployment back on the list of what is due; whether it was."""
    if run.deployment_id is None or tries_in(client.read_flow_run_states(run.id)) >= RETRIES:
        return False
    # Of a run that is due and has a process the server expects somebody to end that when it is
    # cancelled: nobody would, and it would stay Cancelling.
    gone = {"infrastructure_pid": None}
    client.request("PATCH", "/flow_runs/{id}", path_params={"id": run.id}, json=gone)
    client.set_flow_run_state(run.id, AwaitingRetry(message=AGAIN), force=True)
    return True


def tries_in(states: Iterable[State]) -> int:
    """How often a run was put back by us, from all states it has been in.

    Not its run_count, which also grows when it has waited for its turn and is shown as running.
    """
    return sum(state.is_scheduled() and state.message == AGAIN for state in states)


def after_a_crash(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Prefect's hook: the runner saw the process of a run end without a word.

    Under a plain worker the run is only noted, for who looks later: the worker has the last word.
    """
    path = FOLDER / f"{flow_run.id}.json"
    record = read_record(path)
    says_so_itself = record is not None and record.pid == os.getpid()  # it was told to end
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run.id)
        end_task_runs(client, run.id)
        if run.work_pool_name is None or says_so_itself:
            path.unlink(missing_ok=True)  # before the next try leaves its own
            try_again(client, run)
            return
    if record is None:  # it had not come to leave one
        record = Record(str(run.id), server(), socket.gethostname(), NOBODY, 0.0)
    write_json(path, asdict(replace(record, crashed=time.time())))


def keep_looking() -> None:
    """Look now and every minute, in a thread that ends with the process."""
    threading.Thread(target=_look_for_ever, daemon=True).start()


def _look_for_ever() -> None:
    log = get_logger("lost_runs")
    while True:
        try:
            for line in look_after_lost_runs():
                log.warning(line)
        except Exception as error:  # the server is down, most likely: it is asked again
            log.warning("lost runs could not be looked after: %s", error)
        time.sleep(LOOK_EVERY_SECONDS)
