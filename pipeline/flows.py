"""The chain as a Prefect flow, derived from dvc.yaml: what it works on, and what is shown of it."""

import logging
from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from pipeline import processes
from pipeline.dvc import Workspace, upstream_of
from pipeline.page import Page
from pipeline.parameters import EVERYTHING, ChainParameters
from pipeline.run_graph import WITHOUT_TRACEBACK, run_graph
from pipeline.run_workspace import workspace_of_params
from pipeline.what_ran import name_of_run
from stages.params import PARAMS_FILE, load_params


def name_on_the_page() -> str:
    """Prefect asks for it once the run has its parameters."""
    asked = flow_run.parameters.get("parameters") or {}
    return name_of_run(ChainParameters.model_validate(asked))


@flow(name="simclr-chain", flow_run_name=name_on_the_page, log_prints=False)
def simclr_chain(parameters: ChainParameters = EVERYTHING) -> dict[str, str]:
    """Bring the chain up to date: what dvc finds changed is run, the rest is left.

    Started in the project's root. Works there, unless it has params of its own. Stages that do
    not follow a failed one are still brought up to date.

    Returns:
        "ran" or "cached" for each stage.

    Raises:
        UserError: the params can't be used, or a target is no stage; nothing has run.
        StageFailed: the first stage that failed.
        TimeIsUp: it took longer than it was given; its stages have saved.
    """
    processes.allow_starts()
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(WITHOUT_TRACEBACK)  # again does nothing
    project, page = Workspace.here(), Page()
    workspace = workspace_for(project, parameters)
    page.what_ran(project, workspace, parameters)
    graph = upstream_of(workspace.graph(), parameters.targets)
    outcomes = run_graph(workspace, graph, parameters)
    page.answer(workspace)
    return {outcome.stage: outcome.status for outcome in outcomes}


def workspace_for(project: Workspace, parameters: ChainParameters) -> Workspace:
    """The project itself, or a workspace for a run with params of its own.

    Raises:
        UserError: the params can't be used.
    """
    if not parameters.has_own_params:
        load_params()
        return project
    written = Path(PARAMS_FILE).read_text(encoding="utf-8")
    return workspace_of_params(project, parameters.params_text(written))
