"""A deployment for workers, who do not look after lost runs as `serve` does: prefect.yaml."""

from typing import Any

from prefect import flow
from prefect.states import Completed, State

from pipeline.lost_runs import look_after_lost_runs


@flow(name="simclr-lost-runs", flow_run_name="look for lost runs", log_prints=False)
def look() -> State[Any]:
    """Make the page true of runs whose process is gone, and put them back to be tried again.

    Returns:
        Its own state, whose message says what it found.
    """
    return Completed(message="; ".join(look_after_lost_runs()) or "no run was lost", data=())
