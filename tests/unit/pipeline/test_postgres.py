"""A team's server on PostgreSQL, with a worker: as pipeline/docs/compose.yaml sets them up."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.pipeline.servers import Run, Server

pytestmark = [pytest.mark.flow, pytest.mark.slow]


@pytest.fixture
def database() -> Iterator[str]:
    """The address of a new PostgreSQL on loopback, Debian's."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        pytest.skip("needs PostgreSQL: apt install postgresql")
    # It refuses to run as root, and root's temporary folders are closed to others.
    switch = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    as_user = [] if os.geteuid() else switch
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if as_user:
        shutil.chown(folder, "postgres", "postgres")
    (folder / "password").write_text("a-database-secret")
    (folder / "password").chmod(0o644)  # the folder is closed to others
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def run(*words: str | Path) -> None:
        subprocess.run([*as_user, *words], check=True, capture_output=True, cwd=folder)

    program = found[-1]
    scram = ("-A", "scram-sha-256", "--pwfile", folder / "password")
    run(program / "initdb", "-D", folder / "data", "-U", "prefect", *scram)
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder}"
    control = (program / "pg_ctl", "-D", folder / "data")
    run(*control, "-o", options, "-l", folder / "log", "-w", "start")
    try:
        address = f"prefect:a-database-secret@127.0.0.1:{port}"
        subprocess.run(
            [program / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "prefect", "prefect"],
            env={**os.environ, "PGPASSWORD": "a-database-secret"},
            check=True,
        )
        yield address
    finally:
        run(*control, "-m", "immediate", "stop")
        shutil.rmtree(folder)


def test_postgres_server_and_worker_as_the_compose_file_sets_them_run_the_chain(
    database: str, checkout: Path, root: Path, tmp_path_factory: pytest.TempPathFactory
):
    services = yaml.safe_load((root / "pipeline/docs/compose.yaml").read_text())["services"]
    assert all(port.startswith("127.0.0.1:") for port in services["server"]["ports"])
    assert "ports" not in services["database"]
    settings = {
        key: value.replace("prefect:${POSTGRES_PASSWORD}@database:5432", database)
        for key, value in services["server"]["environment"].items()
        if not key.endswith("AUTH_STRING")
    }
    assert database in settings["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    server = Server(tmp_path_factory.mktemp("prefect"), settings)
    worker = None
    try:
        for name in ("pipeline", "stages"):
            (checkout / name).symlink_to(root / name)
        shutil.copy(root / "prefect.yaml", checkout)

        def prefect(*words: str) -> None:
            command = [sys.executable, "-m", "prefect", *words]
            done = subprocess.run(
                command, env=server.env, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr

        prefect("work-pool", "create", "simclr", "--type", "process")
        prefect("--no-prompt", "deploy", "--all")
        worker = Run(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "simclr"], server.env, 0
        )
        prefect("deployment", "run", "simclr-chain/nightly")

        def ended(name: str) -> Any:
            deployment = server.ask("GET", f"/deployments/name/{name}")["id"]
            states = [run["state"] for run in server.runs() if run["deployment_id"] == deployment]
            return next((state for state in states if state["type"] == "COMPLETED"), None)

        looked = server.wait_for(lambda: ended("simclr-lost-runs/lost-runs"), 240)
        assert looked["message"] == "no run was lost"  # the server asked, as the worker started
        state = server.wait_for(lambda: ended("simclr-chain/nightly"), 240)
        assert state["message"].startswith("5 stages are up to date; new results of ")
        assert Path("score-0.1").read_text() == "5"
    finally:
        if worker is not None:
            os.killpg(worker.process.pid, signal.SIGTERM)
            worker.process.wait(timeout=60)
        server.close()
