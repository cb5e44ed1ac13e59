"""Who hears Cancel, by a real server: the runner first, and the run itself where that fails."""

import threading
import time
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_API_URL, temporary_settings

from pipeline import cancel_watch, holder
from pipeline.cancel_watch import CancelledOnThePage, CancelWatch
from pipeline.holder import hold
from pipeline.turn import turn_in
from tests.served.conftest import Server, wait_for

pytestmark = pytest.mark.flow

NOBODY = "http://127.0.0.1:9/api"


@pytest.fixture
def run(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A run that goes on, in the place of which the test asks."""
    flow = server("/flows/", {"name": "simclr-chain"})["id"]
    run: str = server("/flow_runs/", {"flow_id": flow, "state": {"type": "RUNNING"}})["id"]
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", run)
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__NAME", "second")
    monkeypatch.setattr(cancel_watch, "ASK_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(cancel_watch, "RUNNER_HAS_SECONDS", 0.3)
    monkeypatch.delenv("PREFECT__FLOW_RUN_ID", raising=False)
    with temporary_settings({PREFECT_API_URL: f"{server.url}/api"}):
        yield run


def set_state(server: Server, run: str, state: str) -> None:
    server(f"/flow_runs/{run}/set_state", {"state": {"type": state}, "force": True})


def test_a_run_that_nobody_watches_over_hears_cancel_at_its_next_look(server: Server, run: str):
    watch = CancelWatch()
    watch.stop_if_asked()
    set_state(server, run, "CANCELLING")
    with pytest.raises(CancelledOnThePage):
        watch.stop_if_asked()


def test_a_server_that_is_down_cancels_nothing(server: Server, run: str):
    set_state(server, run, "CANCELLING")
    with temporary_settings({PREFECT_API_URL: NOBODY}):
        assert not CancelWatch().was_asked_for()


def test_a_runner_is_given_time_to_pass_it_on_unless_it_is_gone(
    server: Server, run: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", run)
    watch, orphan = CancelWatch(), CancelWatch()
    orphan.parent = -1  # as when another process has become its parent
    set_state(server, run, "CANCELLING")
    assert orphan.was_asked_for()
    assert not watch.was_asked_for()
    time.sleep(0.35)
    assert watch.was_asked_for()


def test_a_cancel_that_was_taken_back_leaves_the_runner_its_time_again(
    server: Server, run: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", run)
    watch = CancelWatch()
    for state in ("CANCELLING", "RUNNING", "CANCELLING"):
        set_state(server, run, state)
        assert not watch.was_asked_for()
        time.sleep(0.35)


def test_a_cancel_is_not_overwritten_by_the_run_whose_turn_has_come(
    server: Server, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", run)  # so it leaves the cancel to its runner
    monkeypatch.setattr(cancel_watch, "RUNNER_HAS_SECONDS", 600.0)
    monkeypatch.setattr(holder, "POLL_SECONDS", 0.1)
    ended: list[str] = []

    def wait_for_the_turn() -> None:
        try:
            with turn_in(tmp_path, "queue"):
                ended.append("had its turn")
        except CancelledOnThePage as reason:
            ended.append(str(reason))

    with disable_run_logger():
        settings = copy_context()  # those of Prefect are no thread's but ours
        waiting = threading.Thread(target=settings.run, args=[wait_for_the_turn])
        with hold(tmp_path, "flow run 'first'", wait=False):
            waiting.start()
            wait_for(lambda: server.state(run) == "Waiting", 20, "the wait")
            assert "flow run 'first'" in server.run(run)["state"]["message"]
            set_state(server, run, "CANCELLING")
        waiting.join(timeout=20)
    assert ended == ["cancelled on the page while it waited; nothing was run"]
    assert server.state(run) == "Cancelling"  # as the server's rules leave it to whoever ends it
