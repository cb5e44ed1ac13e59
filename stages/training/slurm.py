"""Hosts of a Slurm allocation: srun starts the stage once on each, and they meet on the first."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from stages.errors import (
    INTERRUPTED,
    STOP_SIGNALS,
    USER_MISTAKE,
    Interrupted,
    StageError,
    UserError,
)
from stages.training.meeting import Meeting

FIRST_PORT, PORTS = 20_000, 20_000  # a job meets at one of these, by its number


def is_in_step(hosts: int) -> bool:
    """Whether srun has started this process as the task of one host.

    Raises:
        UserError: it has, but not as one task on each of `hosts`.
    """
    if "SLURM_STEP_ID" not in os.environ:
        return False
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    if (tasks, nodes) != (hosts, hosts):
        raise UserError(
            f"srun started {tasks} tasks on {nodes} nodes, and runtime.hosts is {hosts}.\n"
            "  Start one task on each node (it starts runtime.processes itself), or run the stage "
            "without srun: it calls it."
        )
    return True


def meeting_of_step() -> Meeting:
    """On the first node of the step, at a port that other jobs are unlikely to use."""
    first = _scontrol("hostnames", os.environ["SLURM_STEP_NODELIST"]).split()[0]
    address = re.search(r"\bNodeAddr=(\S+)", _scontrol("node", first))
    number = int(os.environ["SLURM_JOB_ID"]) * 31 + int(os.environ["SLURM_STEP_ID"])
    endpoint = f"{address[1] if address else first}:{FIRST_PORT + number % PORTS}"
    return Meeting.at(endpoint, is_here=os.environ["SLURM_NODEID"] == "0")


def _scontrol(*words: str) -> str:
    command = ["scontrol", "show", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def through_srun(words: Sequence[str], hosts: int, options: Sequence[str]) -> None:
    """Run a stage (`-m stages.NAME ...`) on every host, in this allocation or one of its own.

    Raises:
        Interrupted: the hosts were told to stop, and saved.
        UserError: there is no srun, or the stage can't run as things are set.
        StageError: it failed.
    """
    command = [
        *("srun", f"--nodes={hosts}", f"--ntasks={hosts}", "--ntasks-per-node=1"),
        *("--kill-on-bad-exit=0", *options, sys.executable, *words),
    ]
    try:
        srun = subprocess.Popen(command, start_new_session=True)
    except FileNotFoundError:
        raise UserError(
            "runtime.launcher is slurm, but there is no srun here.\n"
            "  Run this on a machine of a Slurm cluster, or set runtime.launcher to rendezvous."
        ) from None

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        if srun.poll() is None:
            srun.send_signal(signal.SIGUSR1)  # srun hands it to its tasks, and waits for them

    before = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        code = srun.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    module = words[1]
    if code == INTERRUPTED:
        raise Interrupted(f"{module} was stopped and saved.\n  The same command continues it.")
    if code == USER_MISTAKE:
        raise UserError(f"{module} can't run as things are set; the reason is above.")
    if code != 0:
        raise StageError(f"srun of {module} ended with code {code}; the reason is above.")
