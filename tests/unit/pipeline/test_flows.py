"""The Prefect flow: light to import, one task a stage, and no process that outlives it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest


def python(code: str, root: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_importing_the_command_line_brings_neither_prefect_nor_torch(root: Path):
    code = "import pipeline.cli, sys; print([m for m in ('torch', 'prefect') if m in sys.modules])"
    assert python(code, root) == "[]"


def test_importing_the_flow_leaves_torch_out(root: Path):
    code = "import pipeline.flows, sys; print('torch' in sys.modules)"
    assert python(code, root) == "False"


def test_the_server_of_the_locked_prefect_can_be_imported(root: Path):
    assert python("import prefect.server.api.server; print('yes')", root) == "yes"


class Run:
    """`python -m pipeline run` in a checkout, with the embedded server."""

    def __init__(self, checkout: Path, root: Path, prefect_home: Path) -> None:
        self.env = {**os.environ, "PYTHONPATH": str(root), "PREFECT_HOME": str(prefect_home)}
        self.env.pop("PREFECT_API_URL", None)
        self.log = checkout / "run.log"  # a file: a pipe would stay open as long as the server
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "run", *words],
                env=self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A shell that starts the tests in its background has them ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        return self.process

    def __call__(self, *words: str) -> tuple[int, str]:
        code = self.start(*words).wait(timeout=300)
        return code, self.log.read_text()

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            tree = psutil.Process(self.process.pid)
            for process in [*tree.children(recursive=True), tree]:
                process.kill()
            self.process.wait(timeout=10)


@pytest.fixture(scope="module")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests here: making a new database takes the server ten seconds."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture
def run(checkout: Path, root: Path, prefect_home: Path) -> Iterator[Run]:
    started = Run(checkout, root, prefect_home)
    yield started
    started.end()


def processes_in(checkout: Path) -> list[str]:
    """The commands that run in the checkout: dvc, the trainer, Prefect's server."""
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            if process.cwd() == str(checkout) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


@pytest.mark.flow
def test_flow_runs_the_graph_then_finds_nothing_to_do(checkout: Path, run: Run):
    code, output = run("--targets", "score@0.1")
    assert code == 0, output
    assert "3 stages up to date; 3 had to be run: shard, train, score@0.1" in output
    assert "Task run 'train' - step 5" in output  # its log is streamed
    assert Path("score-0.1").read_text() == "5"
    assert not Path("score-10_per_class").exists()

    code, output = run("--concurrency", "2")
    assert code == 0, output
    assert "5 stages up to date; 2 had to be run" in output

    code, output = run()
    assert code == 0, output
    assert "5 stages up to date; 0 had to be run: -" in output


@pytest.mark.flow
def test_stage_with_the_users_mistake_is_not_retried_and_what_follows_it_not_run(
    checkout: Path, run: Run
):
    Path("trainer.py").write_text("import sys; print('error: no images'); sys.exit(2)")
    code, output = run()
    assert code == 2, output
    assert output.count("Running stage 'train':\n") == 1
    assert "Traceback" not in output
    last = output[output.rindex("error: stage train") :]
    assert last.startswith("error: stage train can't run as things are set (exit code 2):")
    assert "error: no images" in last
    assert Path("other").exists()  # does not follow the failed stage
    assert not Path("score-0.1").exists()


@pytest.mark.flow
def test_interrupted_stage_is_retried_and_continues_at_its_step(checkout: Path, run: Run):
    text = Path("trainer.py").read_text()
    once = "step == 2 and not pathlib.Path('runs/stopped').exists()"
    cut = f"    if {once}:\n        pathlib.Path('runs/stopped').touch(); sys.exit(75)\n"
    Path("trainer.py").write_text(text.replace("    if told:\n", f"{cut}    if told:\n"))
    code, output = run("--targets", "train")
    assert code == 0, output
    assert [line.split()[-1] for line in output.splitlines() if " - step " in line] == list("12345")


@pytest.mark.flow
@pytest.mark.kill
def test_run_that_takes_longer_than_it_was_given_saves_and_the_next_continues(
    checkout: Path, run: Run
):
    graph = Path("dvc.yaml").read_text()
    Path("dvc.yaml").write_text(graph.replace("trainer.py 5", "trainer.py 2000"))
    code, output = run("--targets", "train", "--minutes", "0.15")
    assert code == 75, output
    assert "the time limit of 0.15 minutes is up; what ran has saved" in output
    assert output.count("Running stage 'train':\n") == 1  # not retried
    assert not any("trainer.py" in command for command in processes_in(checkout))
    step = int(Path("runs/step").read_text())
    assert 0 < step < 2000

    Path("dvc.yaml").write_text(graph.replace("trainer.py 5", f"trainer.py {step + 1}"))
    code, output = run("--targets", "train")
    assert code == 0, output
    assert f" - step {step + 1}\n" in output
    assert f" - step {step}\n" not in output


@pytest.mark.flow
@pytest.mark.kill
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_stopped_run_leaves_no_process_and_its_stage_saved(
    checkout: Path, run: Run, sent: signal.Signals
):
    graph = Path("dvc.yaml").read_text()
    Path("dvc.yaml").write_text(graph.replace("trainer.py 5", "trainer.py 2000"))
    process = run.start("--targets", "train")
    saved = Path("runs/step")
    deadline = time.monotonic() + 120
    while not saved.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(0.5)
    assert any("trainer.py" in command for command in processes_in(checkout))

    os.kill(process.pid, sent)
    code = process.wait(timeout=60)
    output = run.log.read_text()

    deadline = time.monotonic() + 10  # the embedded server takes a moment
    while processes_in(checkout) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_in(checkout) == []
    step = int(saved.read_text())
    assert 0 < step < 2000
    assert code == 75, output
    assert output.count("Running stage 'train':\n") == 1  # stopped, so not retried
    time.sleep(1)
    assert int(saved.read_text()) == step
