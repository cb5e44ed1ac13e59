"""A run that dies under a plain worker, by the server's own rules: who has the last word on it.

The worker says Crashed twice: once before the flow's hook, which runs in a process of its own, and
once after it. Here the test speaks for the worker, so each case takes a moment; with a real one:
test_lost_runs.py.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from pipeline import lost_runs
from pipeline.flows import simclr_chain
from pipeline.lost_runs import RETRIES, Record, after_a_crash, look_after_lost_runs
from stages.records import write_json
from tests.served.conftest import Server

pytestmark = pytest.mark.flow


class WorkersRun:
    """A flow run of a deployment with a work pool, and what happens to it; no worker is there."""

    def __init__(self, server: Server) -> None:
        self.server = server
        flow = server("/flows/", {"name": "simclr-chain"})["id"]
        pools = [pool["name"] for pool in server("/work_pools/filter", {})]
        if "nobodys" not in pools:
            server("/work_pools/", {"name": "nobodys", "type": "process"})
        asked = {"name": "of-a-worker", "flow_id": flow, "work_pool_name": "nobodys"}
        deployment = server("/deployments/", asked)["id"]
        self.id: str = server(f"/deployments/{deployment}/create_flow_run", {})["id"]
        self.starts()

    def starts(self) -> None:
        """As the worker says it: with the number of the process that it started."""
        self.is_now("RUNNING", force=True)
        self.server(f"/flow_runs/{self.id}", {"infrastructure_pid": "1234"}, "PATCH")

    def leaves(self, pid: int, ended: str = "") -> Record:
        """Its record; of this process if the number is that."""
        started = psutil.Process(pid).create_time() if psutil.pid_exists(pid) else 0.0
        at = lost_runs.server()
        record = Record(self.id, at, socket.gethostname(), pid, started, ended)
        write_json(record.path, asdict(record))
        return record

    def is_now(self, state: str, *, force: bool = False) -> str:
        """Propose a state; what the server makes of it."""
        asked = {"state": {"type": state}, "force": force}
        return self.server(f"/flow_runs/{self.id}/set_state", asked)["status"]

    def hook(self) -> None:
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(self.id)
        assert run.state is not None
        after_a_crash(simclr_chain, run, run.state)

    @property
    def state(self) -> str:
        return self.server.state(self.id)


@pytest.fixture
def workers_run(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[WorkersRun]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lost_runs, "WORKER_HAS_SECONDS", 0.5)
    with temporary_settings({PREFECT_API_URL: f"{server.url}/api"}):
        yield WorkersRun(server)


@pytest.fixture
def nobody() -> int:
    """The number of a process that is gone."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_run_that_died_under_a_worker_is_put_back_when_the_worker_has_spoken(
    workers_run: WorkersRun, nobody: int
):
    for tries in range(1, RETRIES + 2):
        if tries > 1:
            workers_run.starts()
        workers_run.leaves(nobody)
        workers_run.is_now("CRASHED")
        workers_run.hook()
        assert workers_run.state == "Crashed"
        assert workers_run.is_now("CRASHED") == "ABORT"  # the worker's word changes nothing then
        said = look_after_lost_runs()
        assert len(said) == (tries <= RETRIES)
        assert workers_run.state == ("AwaitingRetry" if tries <= RETRIES else "Crashed")
        assert look_after_lost_runs() == []


def test_the_workers_word_is_waited_for(workers_run: WorkersRun, nobody: int):
    workers_run.leaves(nobody)
    workers_run.is_now("CRASHED")
    workers_run.hook()
    begun = time.monotonic()
    assert len(look_after_lost_runs()) == 1
    assert time.monotonic() - begun > 0.3


def test_a_run_that_waits_for_its_next_try_is_cancelled_at_once(
    workers_run: WorkersRun, nobody: int
):
    workers_run.leaves(nobody)
    (line,) = look_after_lost_runs()  # as when the worker was killed with it
    assert line.endswith("was Running on the page and is Crashed; it is tried again")
    assert workers_run.state == "AwaitingRetry"
    workers_run.is_now("CANCELLING")
    assert workers_run.state == "Cancelled"


def test_a_run_that_died_while_it_was_cancelled_is_not_tried_again(
    workers_run: WorkersRun, nobody: int
):
    workers_run.leaves(nobody)
    workers_run.is_now("CANCELLING")
    assert len(look_after_lost_runs()) == 1
    assert workers_run.state == "Cancelled"
    assert look_after_lost_runs() == []


def test_a_run_that_ended_well_but_could_not_say_so_to_its_worker_is_completed(
    workers_run: WorkersRun, nobody: int
):
    workers_run.leaves(nobody, ended="completed")
    workers_run.is_now("CRASHED")
    workers_run.hook()
    (line,) = look_after_lost_runs()
    assert line.endswith("was Crashed on the page and is Completed")
    assert workers_run.state == "Completed"


def test_a_run_that_died_before_it_left_a_record_is_tried_again(workers_run: WorkersRun):
    workers_run.is_now("CRASHED")
    workers_run.hook()
    assert len(look_after_lost_runs()) == 1
    assert workers_run.state == "AwaitingRetry"


def test_a_run_that_says_itself_that_it_was_ended_is_put_back_by_itself(workers_run: WorkersRun):
    record = workers_run.leaves(os.getpid())
    workers_run.is_now("CRASHED")
    workers_run.hook()
    assert workers_run.state == "AwaitingRetry"
    assert not record.path.exists()
