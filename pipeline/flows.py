"""The chain as a Prefect flow, derived from dvc.yaml.

What is not covered: `kill -9` of this process leaves its stages running to their end.
"""

import logging
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from pipeline import processes
from pipeline.artifacts import first_table
from pipeline.dvc import Workspace, upstream_of
from pipeline.parameters import EVERYTHING, ChainParameters
from pipeline.run_graph import WITHOUT_TRACEBACK, run_graph
from stages.params import load_params

REPORT = Path("report/report.md")


@flow(name="simclr-chain", log_prints=False)
def simclr_chain(parameters: ChainParameters = EVERYTHING) -> dict[str, str]:
    """Bring the chain up to date: what dvc finds changed is run, the rest is left.

    Runs in the current folder, the project's root. Stages that do not follow a failed one are
    still brought up to date.

    Returns:
        "ran" or "cached" for each stage.

    Raises:
        UserError: params.yaml can't be used, or a target is no stage; nothing has run.
        StageFailed: the first stage that failed.
    """
    processes.allow_starts()
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(WITHOUT_TRACEBACK)  # again does nothing
    load_params()
    workspace = Workspace.here()
    graph = upstream_of(workspace.graph(), parameters.targets)
    outcomes = run_graph(workspace, graph, parameters)
    if REPORT.is_file():
        table = first_table(REPORT.read_text(encoding="utf-8"))
        create_markdown_artifact(key="label-fractions", markdown=table)
    return {outcome.stage: outcome.status for outcome in outcomes}
