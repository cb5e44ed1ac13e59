"""Results leave the machine: what a run made goes to dvc's default remote, as a task of the flow.

dvc copies file by file and removes nothing: a push that breaks off leaves what was here where it
was, and the next one sends only what is missing over there.
"""

from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from pipeline import processes
from pipeline.cancel_watch import CancelledOnThePage, CancelWatch
from pipeline.dvc import Workspace
from pipeline.parameters import Push
from stages.errors import INTERRUPTED, UserError

WAITS = (5.0, 30.0, 120.0)  # seconds before each further attempt


class PushFailed(Exception):
    """The results did not reach the remote; here they are whole."""

    exit_code = INTERRUPTED  # the same command goes on with what is missing

    def __str__(self) -> str:
        remote, attempts, said = self.args
        return (
            f"the results are whole on this machine, but did not all reach the remote {remote} "
            f"in {attempts} attempts:\n{said}\n"
            "  The next run sends what is missing, and so does: dvc push"
        )


def remote_for(workspace: Workspace, push: Push) -> str | None:
    """The remote that a run's results go to; None: they stay here.

    Raises:
        UserError: they are always to be sent, and no remote is set.
    """
    remote = None if push == "never" else workspace.default_remote()
    if remote is None and push == "always":
        raise UserError(
            "the results are to be pushed, and dvc has no default remote.\n"
            "  Add one: dvc remote add --default storage URL (a folder, s3://bucket/path, "
            "ssh://host/path)\n  or run with push: auto"
        )
    return remote


def not_stopping(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """A push that the network broke is worth further attempts, one that was cancelled is not."""
    cancelled = isinstance(state.result(raise_on_failure=False), CancelledOnThePage)
    return not cancelled and not processes.is_stopping()


@task(
    name="push",
    task_run_name="push to {remote}",
    retries=len(WAITS),
    retry_delay_seconds=list(WAITS),
    retry_condition_fn=not_stopping,
)
def push_results(root: Path, stages: list[str], remote: str) -> str:
    """Send what the stages made; what dvc said at its end.

    Raises:
        PushFailed: with what dvc said.
        CancelledOnThePage: somebody cancelled the run meanwhile.
    """
    cancel = CancelWatch()
    is_there, said = Workspace(root).push(stages, get_run_logger().info, cancel.stop_if_asked)
    if not is_there:
        raise PushFailed(remote, len(WAITS) + 1, said)
    return said.rpartition("\n")[2].strip()
