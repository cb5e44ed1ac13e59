"""One command becomes the processes of a training, on this host or on several.

Torch's elastic agent starts a host's workers and brings hosts together; it runs in the stage's own
process. It hides how its workers ended and tells of it in tracebacks, so they leave their message
and exit code in a folder, and this process ends with them.
"""

import json
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from stages.errors import (
    INTERRUPTED,
    LAUNCHER,
    STOP_SIGNALS,
    TOLD_IN,
    USER_MISTAKE,
    Interrupted,
    StageError,
    UserError,
)
from stages.sections.runtime import RuntimeParams
from stages.training.meeting import Meeting
from stages.training.runtime import require_gpus
from stages.training.slurm import is_in_step, meeting_of_step, through_srun

FAULTS = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)


def relaunched(module: str, runtime: RuntimeParams, arguments: Sequence[str] = ()) -> bool:
    """Run `module` in several processes if that is asked for and has not happened yet.

    Args:
        module: of the stage: "stages.pretrain".
        runtime: how many processes and hosts, and how they are started.
        arguments: of the module.

    Returns:
        True once all of them have ended well; False where this process is to do the work itself.

    Raises:
        Interrupted: they were told to stop, and saved; or one was killed from outside.
        UserError: a worker stopped on a mistake of the user's; or hosts did not meet.
        StageError: a worker failed.
    """
    if "LOCAL_RANK" in os.environ or runtime.hosts == runtime.processes == 1:
        return False
    command = ["-m", module, *arguments]
    if runtime.hosts == 1:
        _run_workers(command, runtime, Meeting.on_this_host())
    elif runtime.launcher == "rendezvous":
        assert runtime.meet_at is not None  # params are checked
        _run_workers(command, runtime, Meeting.at(runtime.meet_at))
    elif is_in_step(runtime.hosts):
        _run_workers(command, runtime, meeting_of_step())
    else:
        through_srun(command, runtime.hosts, runtime.slurm_options)
    return True


def _run_workers(command: list[str], runtime: RuntimeParams, meeting: Meeting) -> None:
    """This host's share of the processes, from start to end."""
    require_gpus(runtime.device, runtime.processes)  # before any host waits for another
    config = LaunchConfig(
        min_nodes=runtime.hosts,
        max_nodes=runtime.hosts,
        nproc_per_node=runtime.processes,
        run_id=" ".join(command) if runtime.hosts > 1 else uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=meeting.endpoint,
        rdzv_configs=meeting.settings,
        local_addr=meeting.own_address,
        max_restarts=0,
        signals_to_handle="SIGQUIT",  # the others are ours, see _passing_stops_on
    )
    failures: dict[int, ProcessFailure] = {}
    with tempfile.TemporaryDirectory() as folder, _quiet_agent(), _passing_stops_on():
        os.environ.update(meeting.environment)
        os.environ.update({TOLD_IN: folder, LAUNCHER: str(os.getpid())})
        if not runtime.threads:
            cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
            os.environ.setdefault("OMP_NUM_THREADS", str(max(cores // runtime.processes, 1)))
        try:
            elastic_launch(config, sys.executable)(*command)
        except ChildFailedError as error:
            failures = error.failures
        except RendezvousClosedError:
            raise Interrupted(
                f"the run that met at {meeting.endpoint} before is still ending.\n"
                "  The same command, run again on all hosts, continues it."
            ) from None
        except (RendezvousError, DistError) as error:
            raise UserError(
                f"{runtime.hosts} hosts did not meet at {meeting.endpoint} ({error}).\n"
                "  Run the same command on each of them, with the same params.yaml, whose "
                "runtime.meet_at is an address of one of them that the others can reach."
            ) from None
        finally:
            del os.environ[TOLD_IN], os.environ[LAUNCHER]
        told = [json.loads(path.read_text("utf-8")) for path in sorted(Path(folder).iterdir())]
    error = how_they_ended(command[1], told, failures)
    if error is not None:
        raise error


def how_they_ended(
    module: str, told: list[dict[str, Any]], failures: dict[int, ProcessFailure]
) -> StageError | None:
    """One error for all workers of this host; None if they ended well.

    Args:
        module: of the stage.
        told: what workers left: exit_code and message.
        failures: what the agent saw, by rank. It counts least where the worker gave a reason.
    """

    def first(code: int) -> str | None:
        return next((one["message"] for one in told if one["exit_code"] == code), None)

    if (message := first(USER_MISTAKE)) is not None:
        return UserError(message)
    if (message := first(StageError.exit_code)) is not None:
        return StageError(message)
    by_signal = [(rank, one) for rank, one in sorted(failures.items()) if one.exitcode < 0]
    # The agent sends SIGTERM to the others of one that failed.
    for rank, failure in sorted(by_signal, key=lambda one: one[1].exitcode == -signal.SIGTERM):
        name = signal.Signals(-failure.exitcode).name
        if -failure.exitcode in FAULTS:
            return StageError(f"process {rank} of {module} crashed ({name}).")
        why = "; a machine that is short of memory does that" if name == "SIGKILL" else ""
        return Interrupted(
            f"process {rank} of {module} was ended by {name}{why}.\n"
            "  The same command continues from the last saved step."
        )
    codes = {one.exitcode for one in failures.values()}
    # The others of one that failed lose contact with it, and tell of an interruption.
    faults = codes - {0, USER_MISTAKE, INTERRUPTED}
    if not faults and (message := first(INTERRUPTED)) is not None:
        return Interrupted(message)
    if codes:
        code = min(faults or codes)
        return StageError(f"a process of {module} failed (exit code {code}); the reason is above.")
    return None


@contextmanager
def _passing_stops_on() -> Generator[None]:
    """Hand stop signals to the workers, which agree on a step, save and end by themselves."""

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        workers = psutil.Process().children()
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
        if not workers:
            raise KeyboardInterrupt  # still waiting for other hosts

    before = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _quiet_agent() -> Generator[None]:
    """Leave what ended workers say to them, unless LOGLEVEL asks the agent to talk."""
    if "LOGLEVEL" in os.environ:
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
