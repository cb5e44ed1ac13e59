"""Stands between a run and one of its commands, and ends the command when the run is gone.

    python -P pipeline/guard.py GRACE_SECONDS PARENT_PID COMMAND...

Ending the process that a run has started is not enough: dvc starts a shell, the shell a trainer,
the trainer perhaps torchrun, whose workers have sessions of their own; and a run that was killed
ends nothing at all. So each command gets a guard, which adopts whatever its tree leaves behind
(PR_SET_CHILD_SUBREAPER) and ends all of it on SIGTERM, when its own parent died, and when the
command is over. Trainers are told first, so that they save; dvc is left to say how they ended.

Imports nothing of this project: it is run as a file.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time

import psutil

BECOME_SUBREAPER = 36  # prctl's PR_SET_CHILD_SUBREAPER
LOOK_EVERY_SECONDS = 0.2


def main() -> None:
    # Told and not asked for: it may be gone before the first line of this runs.
    grace_seconds, parent, command = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: asked.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run passes Ctrl-C on as SIGTERM
    adopt_orphans()
    process = subprocess.Popen(command)
    while process.poll() is None and not asked and os.getppid() == parent:
        time.sleep(LOOK_EVERY_SECONDS)
    end_tree(process, grace_seconds)
    code = process.returncode
    sys.exit(code if code >= 0 else 128 - code)  # as a shell puts it


def adopt_orphans() -> None:
    """Be the parent of every descendant whose own parent dies; Linux only, elsewhere nothing."""
    try:
        ctypes.CDLL(None).prctl(BECOME_SUBREAPER, 1)
    except (AttributeError, OSError):
        return


def end_tree(process: "subprocess.Popen[bytes]", grace_seconds: float) -> None:
    """SIGTERM to all below the command, later to itself, at last SIGKILL to what is left.

    The command gets half of the time to end by itself, as dvc does once its stage has ended.
    """
    begun = time.monotonic()
    told: set[psutil.Process] = set()
    while alive := living_descendants():
        late = time.monotonic() - begun
        for one in alive:
            if late > grace_seconds:
                tell(one, kill=True)
            elif one not in told and (one.pid != process.pid or late > grace_seconds / 2):
                told.add(one)  # once: a second signal may mean "at once" to someone's program
                tell(one, kill=False)
        process.poll()
        time.sleep(LOOK_EVERY_SECONDS / 4)
    process.wait()


def living_descendants() -> list[psutil.Process]:
    return [one for one in psutil.Process().children(recursive=True) if is_alive(one)]


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def tell(process: psutil.Process, *, kill: bool) -> None:
    try:
        process.kill() if kill else process.terminate()
    except psutil.NoSuchProcess:
        return  # it ended by itself


if __name__ == "__main__":
    main()
