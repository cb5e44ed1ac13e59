"""What every test may lean on."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")  # before matplotlib is imported: no display needed

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Figures from slow, obvious programs: $GOLDEN_DIR, or those beside the tests."""
    named = os.environ.get("GOLDEN_DIR")
    if named:
        return Path(named)
    for folder in (ROOT / "tests/golden/data", ROOT.parent / "shared/reference/golden"):
        if folder.is_dir() and any(folder.iterdir()):
            return folder
    pytest.skip("no golden data: tests/golden/data is empty and GOLDEN_DIR is not set")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of moto's server, a process of its own."""
    pytest.importorskip("moto")
    log = tmp_path_factory.mktemp("moto") / "log.txt"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + 60
    try:
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
