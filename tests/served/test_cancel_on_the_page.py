"""Cancel, pressed in a browser while a network trains: it saves, stops, and nothing is left."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.served.conftest import IDENTITY, Served, Server, alive_in, wait_for

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.flow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]
LONG = {"pretrain.duration": "100000 steps", "pretrain.warmup": None, "data.train_limit": 600}


@pytest.fixture
def folder(tmp_path: Path, root: Path) -> Path:
    """This project in a folder and a repository of its own, with the smoke profile."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        if (root / name).is_file() and not name.startswith(("metrics/", "plots/", "dvc.lock")):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, tmp_path / name)
    shutil.copy(root / "pipeline/profiles/smoke.yaml", tmp_path / "params.yaml")
    if (root / "data/raw").is_dir():  # fetched before: no download
        shutil.copytree(root / "data/raw", tmp_path / "data/raw")
    for words in (["init", "-q"], ["add", "-A"], [*IDENTITY, "commit", "-qm", "copy"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


@pytest.fixture
def page(server: Server) -> Iterator["playwright.Page"]:
    """A page of headless Chromium that notes what it asks of other machines."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        ours = (server.url, server.url.replace("http", "ws"), "data:", "blob:")
        elsewhere: list[str] = []
        page.on("request", lambda asked: elsewhere.append(asked.url))
        yield page
        browser.close()
        assert [url for url in elsewhere if not url.startswith(ours)] == []


def step_in(workspace: Path) -> int:
    file = workspace / "runs/progress/pretrain/training/pretrain.json"
    return json.loads(file.read_text())["step"] if file.exists() else 0


def test_cancel_saves_stops_and_leaves_no_process_and_the_next_run_continues(
    folder: Path, server: Server, serve: Callable[[Path], Served], page: "playwright.Page"
):
    served = serve(folder)
    asked = {"targets": ["pretrain"], "overrides": LONG}
    run = served.create_run(**asked)
    progress = wait_for(
        lambda: list((folder / "runs/workspaces").glob("*/runs/progress/pretrain/training/*")),
        240,
        "training",
    )
    workspace = progress[0].parents[4]
    wait_for(lambda: step_in(workspace) > 5, 60, "steps")

    page.goto(f"{server.url}/runs/flow-run/{run}")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Confirm").click()
    begun = time.monotonic()
    wait_for(lambda: alive_in(workspace) == [], 30, "the end of every process")
    ended_after = time.monotonic() - begun
    wait_for(lambda: server.state(run) == "Cancelled", 30, "the state")
    page.get_by_text("Cancelled", exact=True).first.wait_for(timeout=30_000)
    assert ended_after < 25

    step = step_in(workspace)
    log = (workspace / "runs/logs/pretrain.log").read_text()
    assert log.count("starting at step 0") == 1  # stopped, so not retried
    assert "stopped on SIGTERM" in log
    assert "and saved it" in log
    assert (workspace / "runs/pretrain/last.pt").exists()
    time.sleep(2)
    assert step_in(workspace) == step
    assert "profile: smoke" in (folder / "params.yaml").read_text()
    assert "100000 steps" not in (folder / "params.yaml").read_text()

    again = served.create_run(**asked)
    wait_for(
        lambda: "continuing at step" in (workspace / "runs/logs/pretrain.log").read_text(),
        300,
        "resume",
    )
    continued = (
        (workspace / "runs/logs/pretrain.log").read_text().partition("continuing at step ")[2]
    )
    assert int(continued.split()[0]) >= step
    server(f"/flow_runs/{again}/set_state", {"state": {"type": "CANCELLING"}})
    wait_for(lambda: server.state(again) == "Cancelled", 60, "second cancel")
    assert alive_in(workspace) == []
