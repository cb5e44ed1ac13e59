"""A small checkout with a graph of its own, for tests of what drives dvc; a webhook's receiver."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline import notify
from pipeline.notify import WEBHOOK

# It counts its steps in a file, saves and exits 75 when told to stop, and continues where it was.
TRAINER = """
import pathlib, signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
saved = pathlib.Path("runs/step")
saved.parent.mkdir(exist_ok=True)
step = int(saved.read_text()) if saved.exists() else 0
while step < int(sys.argv[1]):
    step += 1
    print("step", step, flush=True)
    saved.write_text(str(step))
    if told:
        sys.exit(75)
    time.sleep(0.05)
pathlib.Path("model").write_text(str(step))
"""

GRAPH = r"""
stages:
  shard:
    cmd:
      - mkdir -p data metrics && cp source data/images
      - 'echo "{\"images\": 3}" > metrics/shard.json'
    deps: [source]
    outs: [data/images]
    metrics: [metrics/shard.json: {cache: false}]
  train:
    cmd: python trainer.py 5
    deps: [data/images, trainer.py]
    outs: [model]
  score:
    matrix: {fraction: ["0.1", 10_per_class]}
    cmd: cp model score-${item.fraction}
    deps: [model]
    outs: ["score-${item.fraction}"]
  other:
    cmd: cp source other
    deps: [source]
    outs: [other]
"""


@pytest.fixture
def checkout(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a git repository with dvc, params.yaml and a graph of five stages."""
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    (tmp_path / ".dvc").mkdir()
    shutil.copy(root / ".dvc/config", ".dvc/config")
    shutil.copy(root / "pipeline/profiles/smoke.yaml", "params.yaml")
    Path("dvc.yaml").write_text(GRAPH)
    Path("trainer.py").write_text(TRAINER)
    Path("source").write_text("three pictures")
    return tmp_path


class Receiver(ThreadingHTTPServer):
    """A server that people's chat stands for; it turns the first posts away when told to."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.turned_away = 0
        self.turn_away = 0
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/secret"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.turn_away > self.server.turned_away:
            self.server.turned_away += 1
            self.send_error(503)
            return
        self.server.got.append(json.loads(body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(notify, "WAITS", (0.01, 0.01))
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv(WEBHOOK, server.address)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
