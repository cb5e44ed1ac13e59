"""One process becomes several: torchrun's agent on this host, its exit code made honest.

The agent hides its workers' exit codes (an interrupted worker's 75 becomes 1), so a worker that
was interrupted leaves a file, and whoever started the agent reads it.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from stages.errors import INTERRUPTED_FILE, USER_MISTAKE_FILE, Interrupted, StageError, UserError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def relaunched(module: str, processes: int, arguments: Sequence[str] = ()) -> bool:
    """Run `module` in several processes if that is asked for and has not happened yet.

    Args:
        module: of the stage: "stages.pretrain".
        processes: training processes on this host.
        arguments: of the module.

    Returns:
        True once all of them have ended well; False where this process is to do the work itself.

    Raises:
        Interrupted: they were told to stop, and saved.
        UserError: a worker stopped on a mistake of the user's, which it has told.
        StageError: a worker failed.
    """
    if processes == 1 or "LOCAL_RANK" in os.environ:
        return False
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(processes), "-m", module, *arguments),
    ]
    with tempfile.TemporaryDirectory() as folder:
        told = {
            INTERRUPTED_FILE: str(Path(folder, "interrupted")),
            USER_MISTAKE_FILE: str(Path(folder, "mistake")),
        }
        agent = subprocess.Popen(command, env={**os.environ, **told}, start_new_session=True)

        def pass_on(number: int, _frame: FrameType | None) -> None:
            # The agent hands SIGTERM to its workers, which finish their step and save.
            if agent.poll() is None:
                agent.send_signal(signal.SIGTERM)

        before = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
        try:
            code = agent.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if Path(told[INTERRUPTED_FILE]).exists():
            raise Interrupted(f"{module} was stopped and saved.\n  The same command continues it.")
        if Path(told[USER_MISTAKE_FILE]).exists():
            raise UserError(f"{module} can't run as things are set; the reason is above.")
    if code != 0:
        raise StageError(f"a process of {module} failed (exit code {code}); the reason is above.")
    return True
