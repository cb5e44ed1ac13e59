"""A team's server: asked for a password, shared by runs of one workspace, acting by itself."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from pipeline import holder
from pipeline.holder import hold
from pipeline.notify import WEBHOOK

pytestmark = pytest.mark.flow
PASSWORD = "team:a-secret"
BUSY = 503  # another one writes to the server's database just now; clients ask again
START_SECONDS = 180  # of a server on a busy machine


class Server:
    """A Prefect server on loopback that asks for a password."""

    def __init__(self, folder: Path, **settings: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/api"
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
        self.env = {
            **kept,
            "DO_NOT_TRACK": "1",
            "PREFECT_HOME": str(folder),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_API_AUTH_STRING": PASSWORD,
            "PREFECT_SERVER_API_AUTH_STRING": PASSWORD,
            **settings,
        }
        self.log = folder / "server.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "prefect", "server", "start", "--port", str(self.port)],
                env=self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.env["PREFECT_API_URL"] = self.url
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(OSError):
                self.ask("GET", "/version")
                return
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.5)

    def ask(self, method: str, path: str, body: Any = None, password: str = PASSWORD) -> Any:
        """What the API answers. Raises HTTPError."""
        request = urllib.request.Request(
            f"{self.url}{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
            method=method,
        )
        if password:
            word = base64.b64encode(password.encode()).decode()
            request.add_header("Authorization", f"Basic {word}")
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    text = answer.read()
                    return json.loads(text) if text else None
            except HTTPError as error:
                if error.code != BUSY:
                    raise
                error.close()
                time.sleep(0.5)

    def runs(self) -> list[dict[str, Any]]:
        return self.ask("POST", "/flow_runs/filter", {"sort": "EXPECTED_START_TIME_ASC"})

    def wait_for(self, what: Callable[[], Any], seconds: float = 120) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.3)
        return found

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("prefect"))
    yield started
    started.close()


@pytest.fixture
def start(server: Server, checkout: Path, root: Path) -> Iterator[Callable[..., "Run"]]:
    """Starts `python -m pipeline` in the checkout, for that server."""
    started: list[Run] = []

    def run(*words: str, **settings: str) -> Run:
        env = {**server.env, "PYTHONPATH": str(root), **settings}
        started.append(Run([sys.executable, "-m", "pipeline", *words], env, len(started)))
        return started[-1]

    yield run
    for one in started:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()


class Run:
    """A command and what it prints."""

    def __init__(self, words: list[str], env: dict[str, str], number: int) -> None:
        self.log = Path(f"run-{number}.log").absolute()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                words, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def ended(self) -> tuple[int, str]:
        return self.process.wait(timeout=180), self.said


def test_a_server_with_a_password_refuses_strangers(server: Server):
    assert server.ask("GET", "/version")
    for password in ("", "team:guessed"):
        with pytest.raises(HTTPError) as refused:
            server.ask("POST", "/flow_runs/filter", {}, password)
        refused.value.close()
        assert refused.value.code == 401


def test_runs_that_meet_wait_skip_or_are_cancelled_and_say_for_whom(
    server: Server, start: Callable[..., Run], checkout: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(holder, "POLL_SECONDS", 0.5)
    with hold(checkout, "flow run 'amber-owl'", wait=False):
        runs = {
            overlap: start("run", "--targets", "shard", "--overlap", overlap)
            for overlap in ("queue", "skip", "cancel_new")
        }
        assert runs["skip"].ended()[0] == 0
        assert runs["cancel_new"].ended()[0] == 75
        there = f"flow run 'amber-owl' (process {os.getpid()} on "
        assert f"nothing was run: the workspace is held by {there}" in runs["skip"].said
        ends = {run["state"]["name"]: run["state"]["message"] for run in server.runs()}
        assert ends["Skipped"].startswith(f"nothing was run: the workspace is held by {there}")
        assert ends["Cancelled"] == ends["Skipped"]

        def waits() -> Any:
            return next((r for r in server.runs() if r["state"]["name"] == "Waiting"), None)

        assert server.wait_for(waits)["state"]["message"].startswith(f"for {there}")
        assert not Path("data").exists()
    code, said = runs["queue"].ended()
    assert code == 0, said
    assert "1 stages up to date; 1 had to be run: shard" in said

    code, said = start("run", "--targets", "shard").ended()
    assert code == 0, said
    assert server.runs()[-1]["state"]["message"] == "nothing changed: 1 stages are up to date"


def test_a_push_that_breaks_is_tried_again_and_the_run_says_where_its_results_are(
    server: Server, start: Callable[..., Run], checkout: Path
):
    Path("storage").write_text("in the way")
    remote = ["dvc", "remote", "add", "--quiet", "--default", "shared", "storage"]
    subprocess.run([sys.executable, "-m", *remote], check=True)
    run = start("run", "--targets", "shard")
    server.wait_for(lambda: "Retry 1/3" in run.said or run.process.poll() is not None)
    assert Path("data/images").exists()
    Path("storage").unlink()
    code, said = run.ended()
    assert code == 0, said
    assert "; results are at the remote shared" in server.runs()[-1]["state"]["message"]
    assert len([path for path in Path("storage").rglob("*") if path.is_file()]) == 1


def test_a_failed_run_tells_a_webhook_why(
    start: Callable[..., Run], receiver: Any, monkeypatch: pytest.MonkeyPatch
):
    Path("trainer.py").write_text("import sys; print('error: no images'); sys.exit(2)")
    code, said = start("run", "--targets", "train", **{WEBHOOK: receiver.address}).ended()
    assert code == 2, said
    (word,) = receiver.got
    assert (word["event"], word["state"]) == ("failed", "Failed")
    assert word["message"].startswith("stage train can't run as things are set (exit code 2):")
    assert "error: no images" in word["message"]
    assert word["text"].startswith(word["run"])


def test_three_failed_runs_pause_the_deployment_by_an_automation(server: Server, root: Path):
    made = subprocess.run(
        [
            *(sys.executable, "-m", "prefect", "automation", "create", "--from-file"),
            root / "pipeline/docs/automations.yaml",
        ],
        env=server.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    listed = server.ask("POST", "/automations/filter", {})
    assert {one["name"] for one in listed} == {
        "simclr-a-run-has-a-day",
        "simclr-three-failures-end-the-schedule",
    }
    flow = server.ask("POST", "/flows/", {"name": "simclr-chain"})["id"]
    deployment = server.ask("POST", "/deployments/", {"name": "nightly", "flow_id": flow})["id"]
    time.sleep(3)  # the server's triggers are read again when automations change
    for _ in range(3):
        assert not server.ask("GET", f"/deployments/{deployment}")["paused"]
        run = server.ask("POST", f"/deployments/{deployment}/create_flow_run", {})["id"]
        failed = {"state": {"type": "FAILED"}, "force": True}
        server.ask("POST", f"/flow_runs/{run}/set_state", failed)
    server.wait_for(lambda: server.ask("GET", f"/deployments/{deployment}")["paused"], 60)
