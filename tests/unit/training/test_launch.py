"""Several processes, on one host and on two: they meet, end alike, and leave nobody behind."""

import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from stages.errors import Interrupted, StageError, UserError
from stages.sections.runtime import RuntimeParams
from stages.training.alike import ending_alike
from stages.training.launch import how_they_ended, relaunched
from stages.training.meeting import Meeting
from stages.training.runtime import Runtime
from stages.training.slurm import is_in_step

Start = Callable[..., subprocess.Popen[str]]
LONG = {"pretrain": {"duration": "5000 steps"}, "runtime": {"log_every_steps": 1}}

SAVED = {"exit_code": 75, "message": "saved"}
MISTAKE = {"exit_code": 2, "message": "no such folder"}


@pytest.mark.parametrize(
    ("told", "codes", "error", "words"),
    [
        ([], {}, None, ""),
        ([SAVED, SAVED], {}, Interrupted, "saved"),
        ([SAVED, MISTAKE], {0: 2, 1: -15}, UserError, "no such folder"),
        ([{"exit_code": 1, "message": "loss"}, SAVED], {0: 1}, StageError, "loss"),
        ([SAVED], {0: -15, 1: -9}, Interrupted, "process 1 of m was ended by SIGKILL"),
        ([SAVED], {1: -11}, StageError, r"process 1 of m crashed \(SIGSEGV\)"),
        ([], {3: 1}, StageError, r"exit code 1\); the reason is above"),
        ([SAVED], {0: 1}, StageError, r"exit code 1\); the reason is above"),
        ([SAVED, SAVED], {0: 75, 1: 75}, Interrupted, "saved"),
    ],
)
def test_the_ends_of_many_become_one(
    told: list[Any], codes: dict[int, int], error: type[StageError] | None, words: str
):
    failures: Any = {rank: SimpleNamespace(exitcode=code) for rank, code in codes.items()}
    ended = how_they_ended("m", told, failures)
    if error is None:
        assert ended is None
        return
    assert type(ended) is error
    with pytest.raises(error, match=words):
        raise ended


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} of this host(.|\n)*is in use"):
            Meeting.at(f"127.0.0.1:{port}")


def test_the_host_whose_address_is_met_at_keeps_the_store():
    assert Meeting.at("127.0.0.1:0").settings["is_host"]
    assert not Meeting.at("192.0.2.7:29500").settings["is_host"]  # kept for documentation


def test_more_processes_than_gpus_are_refused_before_any_waits_for_another(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    asked = RuntimeParams(processes=4)
    words = r"runtime\.processes is 4, and torch finds 2 GPUs"
    with pytest.raises(UserError, match=words):
        relaunched("stages.pretrain", asked)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # as torchrun by hand sets it
    with pytest.raises(UserError, match=words):
        Runtime.start("auto", 0)


@pytest.fixture
def lone_group() -> Iterator[Runtime]:
    """A group of one process with a real store, that takes itself for one of two."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Runtime(torch.device("cpu"), 0, 2)
    dist.destroy_process_group()


def test_lost_contact_is_told_in_torchs_words_unless_a_reason_was_left(lone_group: Runtime):
    lost = RuntimeError("[gloo/tcp/pair.cc:547] Connection closed by peer\nmore")
    quoted = r"is gone \(RuntimeError: \[gloo/tcp/pair\.cc:547\] Connection closed by peer\)"
    with pytest.raises(Interrupted, match=quoted), ending_alike(lone_group):
        raise lost
    with pytest.raises(ZeroDivisionError), ending_alike(lone_group):
        raise ZeroDivisionError("no images\nand more")
    with pytest.raises(UserError), ending_alike(lone_group):
        raise UserError("what follows the first is not told")
    first = r"failed \(ZeroDivisionError: no images\)"
    with pytest.raises(StageError, match=first) as told, ending_alike(lone_group):
        raise lost
    assert told.value.exit_code == 1


def test_srun_with_a_task_per_process_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    assert not is_in_step(2)
    for name, value in (("ID", "0"), ("NUM_TASKS", "16"), ("NUM_NODES", "2")):
        monkeypatch.setenv(f"SLURM_STEP_{name}", value)
    with pytest.raises(UserError, match=r"16 tasks on 2 nodes, and runtime\.hosts is 2"):
        is_in_step(2)


def wait_for(process: subprocess.Popen[str], words: str) -> str:
    """Read what a stage says up to the line with these words."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            return said
    pytest.fail(f"it ended without {words!r}: {said}")


def ended(process: subprocess.Popen[str], code: int) -> str:
    output, _ = process.communicate(timeout=400)  # a crowded machine is slow
    assert process.returncode == code, output
    assert "Traceback" not in output
    return output


def processes_in(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            here = process.cwd() == str(folder.resolve())
            if here and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def left_in(folder: Path, seconds: float = 30) -> list[psutil.Process]:
    """Processes that are still there after so long."""
    deadline = time.monotonic() + seconds
    while (found := processes_in(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


@pytest.mark.kill
@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for a signal")
def test_two_processes_of_which_any_is_killed_end_where_unbroken_ones_do(
    make_workspace: Callable[..., Path], start_pretraining: Start
):
    settings: dict[str, dict[str, Any]] = {
        "pretrain": {"duration": "60 steps"},
        "runtime": {"processes": 2, "save_every_seconds": 0.05, "log_every_steps": 1},
    }
    unbroken, killed = make_workspace("unbroken", settings), make_workspace("killed", settings)
    ended(start_pretraining(unbroken), 0)

    stage = start_pretraining(killed)
    wait_for(stage, "step 1/60")
    time.sleep(0.3)
    psutil.Process(stage.pid).children()[1].kill()
    said = ended(stage, 75)
    assert "was ended by SIGKILL" in said
    assert said.count("stopped:") == 1
    assert left_in(killed) == []

    stage = start_pretraining(killed)
    assert "continuing at step" in wait_for(stage, "images; ")
    stage.kill()  # the agent; its workers save by themselves
    stage.communicate(timeout=400)
    assert left_in(killed) == []

    stage = start_pretraining(killed)
    assert "continuing at step" in wait_for(stage, "images; ")
    stage.send_signal(signal.SIGUSR1)
    said = ended(stage, 75)
    assert said.count("stopped: pretrain stopped on SIGTERM after step") == 1
    assert left_in(killed) == []

    ended(start_pretraining(killed), 0)
    for folder in ("artifacts/pretrain/model.safetensors", "plots/pretrain.csv"):
        ours, theirs = (one / folder for one in (killed, unbroken))
        if folder.endswith(".csv"):
            assert first_columns(ours) == first_columns(theirs)
        else:
            assert ours.read_bytes() == theirs.read_bytes()


def first_columns(path: Path) -> list[list[str]]:
    """Step, epoch, loss: what no clock decides."""
    return [row.split(",")[:3] for row in path.read_text().splitlines()]


@pytest.fixture
def two_hosts() -> Iterator[tuple[tuple[str, ...], tuple[str, ...], str]]:
    """Commands that put a process on one of two hosts, and the first one's address."""
    names = [f"simclr-{os.getpid()}-{one}" for one in "ab"]
    ends = [f"sim{os.getpid()}{one}" for one in "ab"]  # names of interfaces are short
    steps = [
        *(["ip", "netns", "add", name] for name in names),
        ["ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1]],
    ]
    for number, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
        steps += [
            ["ip", "link", "set", end, "netns", name],
            ["ip", "-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", end],
            ["ip", "-n", name, "link", "set", end, "up"],
            ["ip", "-n", name, "link", "set", "lo", "up"],
        ]
    try:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            pytest.skip("network namespaces need root and iproute2")
        for step in steps:
            if subprocess.run(step, capture_output=True, check=False).returncode:
                pytest.skip(f"not permitted here: {' '.join(step)}")
        first, second = (("ip", "netns", "exec", name) for name in names)
        yield first, second, "10.77.0.1"
    finally:
        for name in names if os.geteuid() == 0 else []:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.mark.kill
def test_two_hosts_meet_stop_together_and_go_on_together(
    two_hosts: tuple[Any, Any, str],
    make_workspace: Callable[..., Path],
    start_pretraining: Start,
):
    first, second, address = two_hosts
    hosts = {"hosts": 2, "meet_at": f"{address}:29417"}
    shared = make_workspace("shared", {**LONG, "runtime": {**LONG["runtime"], **hosts}})

    stages = [start_pretraining(shared, *host) for host in (first, second)]
    main = wait_for_any(stages, "step 1/5000")
    stages[1 - main].send_signal(signal.SIGTERM)  # ip execs: this is the stage itself
    said = [ended(stage, 75) for stage in stages]
    assert all("stopped: pretrain stopped on" in one for one in said)
    assert (shared / "runs/pretrain/last.pt").exists()
    assert left_in(shared) == []

    text = (shared / "params.yaml").read_text()  # fewer steps: another run, which starts afresh
    (shared / "params.yaml").write_text(text.replace("5000 steps", "20 steps"))
    stages = [start_pretraining(shared, *host) for host in (first, second)]
    said = [ended(stage, 0) for stage in stages]
    assert sum("step 20/20" in one for one in said) == 1  # the main process speaks
    assert (shared / "artifacts/pretrain/model.safetensors").exists()


def wait_for_any(stages: list[subprocess.Popen[str]], words: str) -> int:
    """Which of two stages says it: the one with the main process."""
    with selectors.DefaultSelector() as ready:
        for number, stage in enumerate(stages):
            assert stage.stdout is not None
            os.set_blocking(stage.stdout.fileno(), False)
            ready.register(stage.stdout, selectors.EVENT_READ, number)
        heard, deadline = ["", ""], time.monotonic() + 400
        while time.monotonic() < deadline:
            for key, _ in ready.select(timeout=1):
                heard[key.data] += os.read(key.fd, 65536).decode()
                if words in heard[key.data]:
                    for stage in stages:
                        assert stage.stdout is not None
                        os.set_blocking(stage.stdout.fileno(), True)
                    return key.data
    pytest.fail(f"neither said {words!r}: {heard}")


SLURM = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmctldPort=17001
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port=17011 CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port=17012 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A cluster of two nodes on this machine; the environment that names it."""
    needed = ("slurmctld", "slurmd", "srun", "munged")
    if os.geteuid() != 0 or any(shutil.which(one) is None for one in needed):
        pytest.skip("needs root, and Debian's slurm-wlm and munge")
    folder = tmp_path / "slurm"
    folder.mkdir()
    host = subprocess.run(["hostname", "-s"], capture_output=True, text=True, check=True).stdout
    conf = folder / "slurm.conf"
    conf.write_text(SLURM.format(folder=folder, host=host.strip()))
    env = {"SLURM_CONF": str(conf)}
    all_env = {**os.environ, **env}
    munge = ["munge", "--no-input"]
    ours = []
    if subprocess.run(munge, capture_output=True, check=False).returncode:
        Path("/run/munge").mkdir(exist_ok=True)
        shutil.chown("/run/munge", "munge", "munge")
        command = ["runuser", "-u", "munge", "--", "munged", "--foreground"]
        ours.append(subprocess.Popen(command))
    daemons = (["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"])
    try:
        for daemon in daemons:
            ours.append(
                subprocess.Popen(
                    daemon, env=all_env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            )
            time.sleep(1)
        deadline = time.monotonic() + 60
        while subprocess.run(
            ["srun", "--nodes=2", "true"], env=all_env, capture_output=True, check=False
        ).returncode:
            assert time.monotonic() < deadline, (folder / "slurmctld.log").read_text()
            time.sleep(1)
        yield env
    finally:
        for process in reversed(ours):
            process.terminate()
            process.wait(timeout=30)


@pytest.mark.slow
@pytest.mark.kill
def test_slurm_starts_a_stage_on_each_node_and_its_warning_saves(
    slurm: dict[str, str], make_workspace: Callable[..., Path], start_pretraining: Start
):
    launcher = {"hosts": 2, "launcher": "slurm"}
    folder = make_workspace("slurm-run", {**LONG, "runtime": {**LONG["runtime"], **launcher}})
    stage = start_pretraining(folder, **slurm)
    wait_for(stage, "step 1/5000")
    job = subprocess.run(
        ["squeue", "--noheader", "--format=%i"],
        env={**os.environ, **slurm},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    subprocess.run(["scancel", "--signal=USR1", *job], env={**os.environ, **slurm}, check=True)
    assert "saved it" in ended(stage, 75)
    stage = start_pretraining(folder, **slurm)
    assert "continuing at step" in wait_for(stage, "step ")
    stage.send_signal(signal.SIGTERM)
    assert "saved it" in ended(stage, 75)
    assert left_in(folder) == []
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("5000 steps", "20 steps"))
    ended(start_pretraining(folder, **slurm), 0)
    assert (folder / "artifacts/pretrain/model.safetensors").exists()
