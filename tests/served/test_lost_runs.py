"""What is killed with -9: the page tells the truth afterwards, and the work goes on."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_WORKER_QUERY_SECONDS

from pipeline.serving import ON_SCHEDULE
from tests.served.conftest import (
    IDENTITY,
    IN_HALF_A_DAY,
    Served,
    Server,
    alive_in,
    kill_tree,
    wait_for,
)

pytestmark = [pytest.mark.flow, pytest.mark.kill]

# It says where it starts, counts its steps in a file, and saves when told to stop.
TRAINER = """
import pathlib, signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
saved = pathlib.Path("runs/step")
step = int(saved.read_text()) if saved.exists() else 0
print("begins at step", step, flush=True)
while step < int(pathlib.Path("steps").read_text()):
    step += 1
    saved.write_text(str(step))
    if told:
        sys.exit(75)
    time.sleep(0.05)
pathlib.Path("model").write_text(str(step))
"""


@pytest.fixture
def folder(tmp_path: Path, root: Path) -> Path:
    """A project of one stage that goes on until the file `steps` says it is enough."""
    (tmp_path / ".dvc").mkdir()
    shutil.copy(root / ".dvc/config", tmp_path / ".dvc/config")
    shutil.copy(root / "pipeline/profiles/smoke.yaml", tmp_path / "params.yaml")
    graph = "stages: {train: {cmd: python trainer.py, deps: [trainer.py], outs: [model]}}\n"
    (tmp_path / "dvc.yaml").write_text(graph)
    (tmp_path / "trainer.py").write_text(TRAINER)
    (tmp_path / "steps").write_text("1000000")
    for name in ("pipeline", "stages", "prefect.yaml"):  # a worker finds the flow in the project
        (tmp_path / name).symlink_to(root / name)
    for words in (["init", "-q"], ["add", "-A"], [*IDENTITY, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


def step_of(folder: Path) -> int:
    file = folder / "runs/step"
    text = file.read_text() if file.exists() else ""
    return int(text or 0)


def trains(folder: Path, after: int = 0) -> bool:
    return step_of(folder) > after


def trains_still(folder: Path) -> bool:
    return "trainer.py" in " ".join(alive_in(folder))


def starts(folder: Path) -> list[int]:
    lines = (folder / "runs/logs/train.log").read_text().splitlines()
    return [int(line.split()[-1]) for line in lines if line.startswith("begins at")]


def finish(folder: Path) -> None:
    (folder / "enough").write_text("0")
    (folder / "enough").replace(folder / "steps")  # the trainer never sees it half written


def test_killed_run_is_tried_again_and_continues_at_its_step(
    folder: Path, server: Server, serve: Callable[[Path], Served]
):
    served = serve(folder)
    run = served.create_run()
    planned = wait_for(server.planned, 90, "what the schedule will start")
    assert int(planned[0]["expected_start_time"][11:13]) == int(IN_HALF_A_DAY.split()[1])
    assert planned[0]["parameters"] == ON_SCHEDULE
    wait_for(lambda: trains(folder, 5), 90, "training")
    flow = served.flow_process(run)
    assert flow is not None
    flow.kill()
    begun = time.monotonic()
    wait_for(lambda: len(starts(folder)) == 2, 90, "second try")
    again = time.monotonic() - begun
    assert starts(folder)[1] > 5
    assert server.tasks(run, "train").count("Crashed") == 1
    finish(folder)
    wait_for(lambda: server.state(run) == "Completed", 60, "end")
    assert server.run(run)["run_count"] == 2
    history = server(f"/flow_run_states/?flow_run_id={run}", method="GET")
    assert [state["name"] for state in history].count("Crashed") == 1  # the second try is none
    assert again < 60


def test_run_whose_serve_was_killed_hears_cancel_and_a_dead_one_is_tried_again_later(
    folder: Path, server: Server, serve: Callable[[Path], Served]
):
    served = serve(folder)
    orphan = served.create_run()
    wait_for(lambda: trains(folder), 90, "training")
    assert served.process is not None
    served.process.kill()
    served.process.wait()
    step = step_of(folder)
    wait_for(lambda: trains(folder, step + 20), 30, "training without serve")
    server(f"/flow_runs/{orphan}/set_state", {"state": {"type": "CANCELLING"}})
    wait_for(lambda: server.state(orphan) == "Cancelled", 30, "cancel without serve")
    wait_for(lambda: alive_in(folder) == [], 10, "no process left")
    assert len(starts(folder)) == 1

    served = serve(folder)
    lost = served.create_run()
    wait_for(lambda: len(starts(folder)) == 2, 90, "next run")
    flow = served.flow_process(lost)
    assert flow is not None
    served.process.kill()  # as when the machine goes down
    flow.kill()
    wait_for(lambda: alive_in(folder) == [], 30, "the trainer saves and ends")
    step = step_of(folder)
    assert server.state(lost) == "Running"  # which is not true
    finish(folder)
    served = serve(folder)
    wait_for(lambda: server.state(lost) != "Running", 10, "the truth on the page")
    wait_for(lambda: server.state(lost) == "Completed", 90, "the retry")
    assert starts(folder)[2] >= step > starts(folder)[1]


def test_training_goes_on_without_the_server_and_its_end_is_told_when_it_is_back(
    folder: Path, server: Server, serve: Callable[[Path], Served]
):
    served = serve(folder)
    run = served.create_run()
    wait_for(lambda: trains(folder, 5), 90, "training")
    server.kill()
    try:
        for _ in range(3):
            step = step_of(folder)
            wait_for(lambda: trains(folder, step + 20), 20, "training without the server")  # noqa: B023
        finish(folder)
        wait_for((folder / "dvc.lock").exists, 60, "the stage's end")
        wait_for(lambda: not trains_still(folder), 20, "the trainer's end")
    finally:
        server.start()
    wait_for(lambda: server.state(run) == "Completed", 90, "the truth on the page")
    assert len(starts(folder)) == 1


@pytest.fixture
def start_worker(folder: Path, server: Server) -> Iterator[Callable[[], Any]]:
    """Starts a worker of what prefect.yaml deploys."""
    for words in ("prefect work-pool create simclr --type process", "prefect deploy --all"):
        # On a terminal, as a person does it, who is asked nothing.
        command = ["script", "--quiet", "--return", "--command", words, "/dev/null"]
        subprocess.run(
            command, cwd=folder, env=server.env, stdin=subprocess.DEVNULL, check=True, timeout=120
        )
    started: list[subprocess.Popen[bytes]] = []

    def start() -> "subprocess.Popen[bytes]":
        words = ["prefect", "worker", "start", "--pool", "simclr"]
        started.append(subprocess.Popen(words, cwd=folder, env=server.env, start_new_session=True))
        return started[-1]

    yield start
    for worker in started:
        kill_tree(worker)


@pytest.mark.slow  # two minutes: a worker asks every ten seconds, and each run imports Prefect
def test_worker_tries_a_killed_run_again_so_does_the_next_worker_and_cancel_ends_it(
    folder: Path, server: Server, start_worker: Callable[[], Any]
):
    worker = start_worker()
    served = Served(folder, server, folder)
    run = served.create_run("nightly")
    wait_for(lambda: trains(folder, 5), 240, "training")
    flow = served.flow_process(run)
    assert flow is not None
    flow.kill()
    wait_for(lambda: server.state(run) == "Crashed", 60, "the truth on the page")
    wait_for(lambda: len(starts(folder)) == 2, 240, "second try")
    assert starts(folder)[1] > 5
    assert server.state(run) == "Running"

    flow = served.flow_process(run)
    assert flow is not None
    worker.kill()  # as when the machine goes down
    flow.kill()
    worker.wait()
    wait_for(lambda: alive_in(folder) == [], 30, "the trainer saves and ends")
    step = step_of(folder)
    assert server.state(run) == "Running"  # which is not true
    start_worker()
    wait_for(lambda: len(starts(folder)) == 3, 240, "third try")
    assert starts(folder)[2] >= step

    server(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    wait_for(lambda: server.state(run) == "Cancelled", 60, "cancel under a worker")
    wait_for(lambda: not trains_still(folder), 10, "the trainer's end")
    time.sleep(2 * PREFECT_WORKER_QUERY_SECONDS.value())
    assert len(starts(folder)) == 3  # cancelled, so not tried again
    assert server.state(run) == "Cancelled"
