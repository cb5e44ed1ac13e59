"""Cancel on the page, where no runner passes it on.

`serve` and a worker send SIGTERM to the runs they started. A run by hand has nobody; a run whose
`serve` or worker was killed has lost them; and Prefect's runner stops listening for good when its
server was away for a minute. So a run asks the server itself, often where it has no runner, and
where it has one, now and then, to act only if the runner has not.
"""

import os
import time

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

RUNNER_HAS_SECONDS = 15.0  # to send SIGTERM, before we take it that it will not
ASK_EVERY_SECONDS = 2.0  # at most


class CancelledOnThePage(Exception):
    """A run that no runner watches over was cancelled, and its stages have saved and stopped."""


class CancelWatch:
    """Knows whether this run is to stop because somebody pressed Cancel."""

    def __init__(self) -> None:
        self.parent = os.getppid()
        self.has_runner = "PREFECT__FLOW_RUN_ID" in os.environ
        self.asked_at = float("-inf")
        self.seen_at: float | None = None

    def was_asked_for(self) -> bool:
        """Whether to stop now."""
        now = time.monotonic()
        patience = RUNNER_HAS_SECONDS if self.has_runner and os.getppid() == self.parent else 0.0
        if flow_run.id is None or now - self.asked_at < max(patience, ASK_EVERY_SECONDS):
            return False
        self.asked_at = now
        if not self.is_cancelling():
            self.seen_at = None
            return False
        if self.seen_at is None:
            self.seen_at = now
        return now - self.seen_at >= patience

    def stop_if_asked(self) -> None:
        """Raises CancelledOnThePage where it is time to stop."""
        if self.was_asked_for():
            raise CancelledOnThePage("cancelled on the page; what ran has saved")

    def is_cancelling(self) -> bool:
        """Whether the page says so now, whoever is to tell the run."""
        try:
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(flow_run.id).state
        except Exception:  # a server that is down cancels nothing
            return False
        return state is not None and state.is_cancelling()
