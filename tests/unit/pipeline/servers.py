"""A Prefect server with a password, and commands that talk to it: for tests of a team's set-up."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.error import HTTPError

PASSWORD = "team:a-secret"
BUSY = 503  # another one writes to the server's database just now; clients ask again
START_SECONDS = 180  # of a server on a busy machine


class Server:
    """A Prefect server on loopback that asks for a password."""

    def __init__(self, folder: Path, settings: Mapping[str, str] = MappingProxyType({})) -> None:
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
