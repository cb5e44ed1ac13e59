"""A Prefect server, the chain served from a folder, and what happens to both of them."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

BUSY = 503  # another one writes to the server's database just now; clients ask again
IN_HALF_A_DAY = f"0 {(datetime.now(UTC).hour + 12) % 24} * * *"
IDENTITY = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """What the condition gives once it gives something; fails when the time is up."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.2)
    return found


class Server:
    """`prefect server start` with a database of its own; its port is kept over a restart."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.home, self.url = home, f"http://127.0.0.1:{port}"
        programs = str(Path(sys.executable).parent)
        self.env = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["prefect", "server", "start"],
                env=self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_for(self.is_up, 180, "server start")

    def __enter__(self) -> "Server":
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def is_up(self) -> bool:
        assert self.process is not None
        log = self.home / "server.log"
        assert self.process.poll() is None, log.read_text()[-2000:]
        try:
            self("/health", method="GET")
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    def kill(self) -> None:
        kill_tree(self.process)

    def __call__(self, path: str, body: Any = None, method: str = "POST") -> Any:
        """Ask the API."""
        request = urllib.request.Request(
            f"{self.url}/api{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json"},
            method=method,
        )
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    text = answer.read()
                return json.loads(text) if text else None
            except urllib.error.HTTPError as error:
                error.close()
                if error.code != BUSY:
                    raise
            time.sleep(0.5)

    def run(self, flow_run: str) -> dict[str, Any]:
        return self(f"/flow_runs/{flow_run}", method="GET")

    def planned(self) -> list[dict[str, Any]]:
        """The runs that schedules will start, the next one first."""
        scheduled = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
        runs = self("/flow_runs/filter", {**scheduled, "sort": "EXPECTED_START_TIME_ASC"})
        return [run for run in runs if run["auto_scheduled"]]

    def state(self, flow_run: str) -> str:
        return self.run(flow_run)["state"]["name"]

    def tasks(self, flow_run: str, name: str) -> list[str]:
        """The states of a run's tasks of that name."""
        asked = {"flow_runs": {"id": {"any_": [flow_run]}}}
        found = self("/task_runs/filter", asked)
        return [task["state"]["name"] for task in found if task["name"] == name]


class Served:
    """`python -m pipeline serve` in a folder, on a schedule whose hour no test sees."""

    def __init__(self, folder: Path, server: Server, root: Path) -> None:
        self.folder, self.server = folder, server
        self.env = {**server.env, "PYTHONPATH": str(root)}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = self.folder / "serve.log"
        with log.open("ab") as output:
            start = output.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "serve", "--cron", IN_HALF_A_DAY],
                cwd=self.folder,
                env=self.env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        def is_served() -> bool:
            assert self.process is not None
            text = log.read_bytes()[start:].decode()
            assert self.process.poll() is None, text
            return "being served" in text

        wait_for(is_served, 120, "serve")

    def create_run(self, of: str = "simclr", **parameters: Any) -> str:
        deployment = self.server(f"/deployments/name/simclr-chain/{of}", method="GET")["id"]
        asked = {"parameters": {"parameters": parameters}}
        return self.server(f"/deployments/{deployment}/create_flow_run", asked)["id"]

    def flow_process(self, flow_run: str) -> psutil.Process | None:
        record = self.folder / f"runs/flow-runs/{flow_run}.json"
        return psutil.Process(json.loads(record.read_text())["pid"]) if record.exists() else None

    def end(self) -> None:
        kill_tree(self.process)


def kill_tree(process: "subprocess.Popen[bytes] | None") -> None:
    if process is None or process.poll() is not None:
        return
    tree = psutil.Process(process.pid)
    for one in [tree, *tree.children(recursive=True)]:
        one.kill()
    process.wait(timeout=20)


def alive_in(folder: Path) -> list[str]:
    """The commands that run in a folder or below it."""
    found = []
    for process in psutil.process_iter():
        try:
            inside = Path(process.cwd()).is_relative_to(folder)
            if inside and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("prefect")) as started:
        yield started


@pytest.fixture
def serve(server: Server, root: Path) -> Iterator[Callable[[Path], Served]]:
    """Serves the chain from a folder; everything that it started is ended."""
    made: list[Served] = []

    def start(folder: Path) -> Served:
        made.append(Served(folder, server, root))
        made[-1].start()
        return made[-1]

    yield start
    for served in made:
        served.end()
