"""Records of runs whose process is gone: whose they are, and how often a run is tried again."""

import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from prefect.client.schemas.objects import State, StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import AwaitingRetry, Crashed, Running

from pipeline.lost_runs import (
    AGAIN,
    RETRIES,
    Record,
    forget,
    look_after_lost_runs,
    on_record,
    read_record,
    server,
    tries_in,
)
from stages.records import write_json

NOBODY = "http://127.0.0.1:9/api"  # nobody listens there: whoever asks it fails


@pytest.fixture
def dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    """What the first try of a run has left, whose process was killed."""
    monkeypatch.chdir(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = psutil.Process(child.pid).create_time()
    child.communicate()
    with temporary_settings({PREFECT_API_URL: NOBODY}):
        record = Record(str(uuid4()), server(), socket.gethostname(), child.pid, started)
    write_json(record.path, asdict(record))
    return record


def test_a_run_that_is_tried_again_is_not_lost_because_its_first_process_is(dead: Record):
    with temporary_settings({PREFECT_API_URL: NOBODY}):
        assert look_after_lost_runs(but=dead.flow_run) == []  # asks nobody
        assert dead.path.exists()
        with on_record(dead.flow_run):
            assert look_after_lost_runs() == []
            found = read_record(dead.path)
            assert found is not None
            assert found.pid == os.getpid()


def test_the_record_of_a_later_try_is_not_removed_with_that_of_an_earlier_one(dead: Record):
    later = replace(dead, pid=os.getpid())
    write_json(later.path, asdict(later))
    forget(dead)
    assert read_record(dead.path) == later
    forget(later)
    assert read_record(dead.path) is None


def test_waiting_for_its_turn_takes_no_try_away_from_a_run():
    waiting = State(type=StateType.RUNNING, name="Waiting")
    waited = [Running(), waiting, Running(), waiting, Running()]
    assert tries_in([*waited, Crashed()]) == 0
    by_hand = AwaitingRetry(message="asked for on the page")
    lost = [*waited, Crashed(), AwaitingRetry(message=AGAIN)]
    assert tries_in([*lost, by_hand, *lost]) == RETRIES
