"""A team's server: asked for a password, shared by runs of one workspace, acting by itself."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import psutil
import pytest

from pipeline import holder
from pipeline.holder import hold
from pipeline.notify import WEBHOOK
from tests.unit.pipeline.servers import Run, Server

pytestmark = pytest.mark.flow


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
        cancelled = start("run", "--targets", "other")
        assert runs["skip"].ended()[0] == 0
        assert runs["cancel_new"].ended()[0] == 75
        there = f"flow run 'amber-owl' (process {os.getpid()} on "
        assert f"nothing was run: the workspace is held by {there}" in runs["skip"].said
        ends = {run["state"]["name"]: run["state"]["message"] for run in server.runs()}
        assert ends["Skipped"].startswith(f"nothing was run: the workspace is held by {there}")
        assert ends["Cancelled"] == ends["Skipped"]

        def waiting() -> Any:
            found = [r for r in server.runs() if r["state"]["name"] == "Waiting"]
            return found if len(found) == 2 else None

        for run in server.wait_for(waiting):
            assert run["state"]["message"].startswith(f"for {there}")
            if run["parameters"]["parameters"]["targets"] == ["other"]:
                cancelling = {"state": {"type": "CANCELLING"}}
                server.ask("POST", f"/flow_runs/{run['id']}/set_state", cancelling)
        code, said = cancelled.ended()  # while the workspace is held
        assert code == 75, said
        assert "cancelled on the page" in said
        assert not Path("data").exists()
    code, said = runs["queue"].ended()
    assert code == 0, said
    assert "1 stages up to date; 1 had to be run: shard" in said


# The first stage looks into the folder each time, as that of the project does.
LOOKING = """
stages:
  listing:
    cmd: ls photos > listing
    always_changed: true
    outs: [listing: {persist: true}]
  shard:
    cmd: cp listing shard
    deps: [listing]
    outs: [shard]
  train:
    cmd: wc --lines < shard > model
    deps: [shard]
    outs: [model]
  other:
    cmd: cp source other
    deps: [source]
    outs: [other]
"""


def test_a_run_without_news_says_so_and_new_images_run_what_follows_from_them(
    server: Server, start: Callable[..., Run], checkout: Path
):
    Path("dvc.yaml").write_text(LOOKING)
    Path("photos").mkdir()
    Path("photos/cat.png").touch()
    subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet"], check=True)
    said = {}
    for picture in ("cat.png", "dog.png"):
        Path("photos", picture).touch()
        code, printed = start("run").ended()
        assert code == 0, printed
        said[picture] = server.runs()[-1]["state"]["message"]
        assert f" - {said[picture]}" in printed  # in the log as on the page
    assert said["cat.png"] == (
        "nothing changed: 4 stages are up to date (run with the same result: listing)"
    )
    assert said["dog.png"] == "4 stages are up to date; new results of listing, shard, train"
    assert Path("model").read_text() == "2\n"


@pytest.mark.slow  # test_sharing breaks one too; this adds the retry of the page
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


def test_cancel_while_results_are_sent_ends_the_push_and_then_the_run(
    server: Server, start: Callable[..., Run], checkout: Path
):
    pytest.importorskip("s3fs")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes what comes, answers nothing
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for words in (
            ["add", "--default", "storage", "s3://results/simclr"],
            ["modify", "storage", "endpointurl", address],
        ):
            subprocess.run([sys.executable, "-m", "dvc", "remote", *words, "--quiet"], check=True)
        keys = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret"}
        run = start("run", "--targets", "shard", **keys)
        silent.settimeout(120)
        with silent.accept()[0]:
            (sending,) = [one for one in server.runs() if one["state"]["type"] == "RUNNING"]
            cancelling = {"state": {"type": "CANCELLING"}}
            server.ask("POST", f"/flow_runs/{sending['id']}/set_state", cancelling)
            code, said = run.ended()
            left = [one.info["cmdline"] for one in psutil.process_iter(["cmdline"])]
    assert code == 75, said
    assert "stopped: cancelled on the page" in said
    assert "Retry 1/3" not in said
    assert not [words for words in left if {"push", "shard"} <= {*(words or [])}]
    assert server.ask("GET", f"/flow_runs/{sending['id']}")["state"]["name"] == "Cancelled"
    assert Path("data/images").exists()


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
