"""The chain as a Prefect flow, derived from dvc.yaml: what it works on, and what is shown of it."""

import logging
from collections.abc import Container, Sequence
from typing import Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, State

from pipeline import notify, processes
from pipeline.cancel_watch import CancelledOnThePage
from pipeline.dvc import StageOutcome, Workspace, outs_by_stage, upstream_of
from pipeline.holder import WorkspaceBusy
from pipeline.lost_runs import after_a_crash, look_after_lost_runs, on_record
from pipeline.page import Page
from pipeline.parameters import EVERYTHING, ChainParameters
from pipeline.run_graph import WITHOUT_TRACEBACK, run_graph
from pipeline.run_workspace import workspace_of_params
from pipeline.sharing import push_results, remote_for
from pipeline.turn import left_out, turn_in
from pipeline.what_ran import name_of_run
from stages.params import PARAMS_FILE, load_params


def name_on_the_page() -> str:
    """Prefect asks for it once the run has its parameters."""
    asked = flow_run.parameters.get("parameters") or {}
    return name_of_run(ChainParameters.model_validate(asked))


@flow(
    name="simclr-chain",
    flow_run_name=name_on_the_page,
    log_prints=False,
    on_failure=[notify.send_word_of_failure],
    on_crashed=[notify.send_word_of_failure, after_a_crash],
)
def simclr_chain(parameters: ChainParameters = EVERYTHING) -> Any:
    """Bring the chain up to date: what dvc finds changed is run, the rest is left.

    Started in the project's root, it works when no other run does; there, unless it has params of
    its own. Stages that do not follow a failed one are still brought up to date.

    Returns:
        A state, which Prefect makes the run's own: what the page shows, and for who called the
        flow as a function "ran" or "cached" for each stage and the name of the folder where it
        worked; nothing where it had to skip.

    Raises:
        UserError: the params can't be used, or a target is no stage; nothing has run.
        StageFailed: the first stage that failed.
        TimeIsUp: it took longer than it was given; its stages have saved.
        PushFailed: the results are whole here, but not all at the remote.
    """
    processes.allow_starts()
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(WITHOUT_TRACEBACK)  # again does nothing
    project = Workspace.here()
    try:
        with on_record(flow_run.id):
            Page().show(lambda: look_after_lost_runs(but=flow_run.id))
            params_of(project, parameters)  # a mistake shows before hours of waiting
            with turn_in(project.root, parameters.overlap):
                return run_chain(project, parameters)
    except CancelledOnThePage as reason:
        return Cancelled(message=str(reason))
    except WorkspaceBusy as busy:
        return left_out(busy, parameters.overlap)


def run_chain(project: Workspace, parameters: ChainParameters) -> State[tuple[dict[str, str], str]]:
    """The stages, then what becomes of their results."""
    page = Page()
    workspace = workspace_for(project, parameters)
    remote = remote_for(workspace, parameters.push)
    page.what_ran(project, workspace, parameters)
    graph = upstream_of(workspace.graph(), parameters.targets)
    before = outs_by_stage(workspace.root)
    outcomes = run_graph(workspace, graph, parameters)
    if "report" in graph:
        page.answer(workspace)
    after = outs_by_stage(workspace.root)
    new = {stage for stage in graph if after.get(stage) != before.get(stage)}
    message = summary(outcomes, new)
    if remote is not None:
        try:
            push_results(workspace.root, list(graph), remote)
        except BaseException:  # a cancel, too: dvc may still be sending
            processes.stop_all()
            raise
        message += f"; results are at the remote {remote}"
    get_run_logger().info(message)
    if new:
        try:
            notify.send_word_if_better(workspace, list(graph), flow_run.name)
        except Exception as error:  # the results are there, whoever hears of them
            get_run_logger().warning("no word was sent: %s", error, exc_info=True)
    statuses = {outcome.stage: outcome.status for outcome in outcomes}
    return Completed(message=message, data=(statuses, workspace.root.name))


def workspace_for(project: Workspace, parameters: ChainParameters) -> Workspace:
    """The project itself, or a workspace for a run with params of its own.

    Raises:
        UserError: the params can't be used.
    """
    text = params_of(project, parameters)
    return project if text is None else workspace_of_params(project, text)


def params_of(project: Workspace, parameters: ChainParameters) -> str | None:
    """The params.yaml of a run with params of its own; None: those of the project are good.

    Raises:
        UserError: the params can't be used.
    """
    if parameters.profile is None:
        load_params()
    if not parameters.has_own_params:
        return None
    file = project.root / PARAMS_FILE  # which a profile does without
    written = file.read_text(encoding="utf-8") if file.exists() else ""
    return parameters.params_text(written)


def summary(outcomes: Sequence[StageOutcome], new: Container[str]) -> str:
    """What the run came to, in one line.

    Args:
        outcomes: of its stages.
        new: those with other results than before; one that only looks runs without any.
    """
    ran = [outcome.stage for outcome in outcomes if outcome.status == "ran"]
    changed = [stage for stage in ran if stage in new]
    same = [stage for stage in ran if stage not in new]
    text = f"{len(outcomes)} stages are up to date"
    text = f"{text}; new results of {', '.join(changed)}" if changed else f"nothing changed: {text}"
    return f"{text} (run with the same result: {', '.join(same)})" if same else text
