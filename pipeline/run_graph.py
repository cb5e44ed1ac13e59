"""A stage of dvc.yaml as a Prefect task, and the graph as tasks that wait for each other.

Prefect wraps, dvc decides: each task brings its stage up to date and says whether that meant
running it. A stage that was interrupted (75) or that broke (a signal, a lost worker, a fault) is
tried again and continues where it saved; a mistake of the user's (2) stays one on a second try.

Cancel (the page, SIGTERM, Ctrl-C) reaches the process's main thread only, which therefore waits
on the tasks and ends every process of the run before it passes the interruption on.
"""

import logging
import math
import time
from collections.abc import Iterable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectConcurrentFuture
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import Task

from pipeline import processes
from pipeline.cancel_watch import CancelledOnThePage, CancelWatch
from pipeline.dvc import Graph, StageOutcome, Workspace
from pipeline.page import Page, StageBar
from pipeline.parameters import ChainParameters
from pipeline.progress import duration
from pipeline.sharing import PushFailed
from stages.errors import INTERRUPTED, USER_MISTAKE, UserError

RETRIES = 2
CACHED = "Cached"  # as Prefect names it, too
LOOK_EVERY_SECONDS = 5.0


class StageFailed(Exception):
    """A stage ended with an exit code other than 0."""

    def __init__(self, stage: str, exit_code: int, message: str) -> None:
        super().__init__(stage, exit_code, message)
        self.stage = stage
        self.exit_code = exit_code
        self.message = message

    def __repr__(self) -> str:
        return f"StageFailed({self.stage!r}, {self.exit_code})"  # the message was logged already

    def __str__(self) -> str:
        what = {
            USER_MISTAKE: "can't run as things are set",
            INTERRUPTED: "was interrupted, and continues when started again",
        }.get(self.exit_code, "failed")
        return f"stage {self.stage} {what} (exit code {self.exit_code}):\n{self.message}"


class WithoutTraceback(logging.Filter):
    """A stage that failed has said why in its own words; where our code raised is no news."""

    def filter(self, record: logging.LogRecord) -> bool:
        told = StageFailed | TimeIsUp | CancelledOnThePage | PushFailed | UserError
        if record.exc_info and isinstance(record.exc_info[1], told):
            record.exc_info = None
        return True


WITHOUT_TRACEBACK = WithoutTraceback()


class TimeIsUp(Exception):
    """The run was given a time limit, and its stages have saved and stopped."""


def is_worth_a_retry(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed stage may do better: it was cut short or broke, and not by our own stop."""
    if processes.is_stopping():
        return False
    failure = state.result(raise_on_failure=False)
    return isinstance(failure, StageFailed) and failure.exit_code != USER_MISTAKE


@task(
    task_run_name="{stage}",
    retries=RETRIES,
    retry_delay_seconds=5,
    retry_condition_fn=is_worth_a_retry,
)
def bring_up_to_date(
    root: Path, stage: str, before: list[StageOutcome], *, unchanged: bool, force: bool
) -> Any:
    """Run one stage if it has to be run, its output streamed to the task's log.

    Args:
        root: folder of the project.
        stage: its name in the graph.
        before: how the stages went that it directly follows.
        unchanged: dvc found, before the run, that the stage itself had nothing to do.
        force: run it all the same.

    Returns:
        A state, which Prefect makes the task's own, Completed or Cached; for those who ask for the
        task's result the outcome.

    Raises:
        StageFailed: with the stage's own exit code.
    """
    workspace, page = Workspace(root), Page()
    log = get_run_logger()
    if unchanged and not force and all(outcome.same_products for outcome in before):
        log.info("nothing changed")  # spares the seconds of asking dvc once more
        outcome = StageOutcome(stage, "cached", 0, 0.0, same_products=True)
    else:
        bar = StageBar(page, workspace, stage)
        outcome = workspace.reproduce(stage, log.info, bar.tick, force=force)
        bar.end("done" if outcome.status != "failed" else "stopped")
    if processes.is_stopping():  # whatever its code says, it did not come to its end unhindered
        raise StageFailed(stage, INTERRUPTED, "  the run was told to stop")
    if outcome.status == "failed":
        raise StageFailed(stage, outcome.exit_code, outcome.message)
    page.results_of(workspace, stage)
    if outcome.status == "cached":
        return Completed(name=CACHED, message="nothing changed", data=outcome)
    return Completed(message=f"ran for {duration(outcome.seconds)}", data=outcome)


def run_graph(
    workspace: Workspace, graph: Graph, parameters: ChainParameters
) -> list[StageOutcome]:
    """A task for each stage, started when those before it are done."""
    changed = workspace.changed()
    futures: dict[str, PrefectConcurrentFuture[StageOutcome]] = {}
    with ThreadPoolTaskRunner(max_workers=parameters.concurrency) as runner:
        try:
            for stage, follows in graph.items():
                before = [futures[name] for name in follows]
                arguments = {
                    "root": workspace.root,
                    "stage": stage,
                    "before": before,
                    "unchanged": changed is not None and stage not in changed,
                    "force": parameters.force,
                }
                task_of_stage = bring_up_to_date.with_options(name=stage)  # shown until it starts
                futures[stage] = runner.submit(task_of_stage, arguments, wait_for=before)
            wait_for(futures.values(), parameters.time_limit_minutes)
        except BaseException:  # a cancel arrives here as one; no process may outlive the run
            processes.stop_all()
            raise
        return [future.result() for future in in_order_of_blame(futures)]


def wait_for(
    futures: Iterable[PrefectConcurrentFuture[StageOutcome]], minutes: float | None
) -> None:
    """Until all are done.

    Raises:
        TimeIsUp: they took more than so many minutes.
        CancelledOnThePage: somebody cancelled the run, and nobody else is there to tell it.
    """
    # Not by their states: that of a stage which follows a failed one is never a final one.
    running = [future.wrapped_future for future in futures]
    end = time.monotonic() + (60 * minutes if minutes else math.inf)
    cancel = CancelWatch()
    while wait(running, timeout=min(LOOK_EVERY_SECONDS, end - time.monotonic())).not_done:
        if time.monotonic() >= end:
            raise TimeIsUp(
                f"the time limit of {minutes:g} minutes is up; what ran has saved.\n"
                "  The next run continues there."
            )
        cancel.stop_if_asked()


def in_order_of_blame(
    futures: dict[str, PrefectConcurrentFuture[StageOutcome]],
) -> list[PrefectConcurrentFuture[StageOutcome]]:
    """Those that failed first: a stage that never started only follows one of them."""
    return sorted(futures.values(), key=lambda future: not future.state.is_failed())
