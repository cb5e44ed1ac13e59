"""A flow run's turn in the workspace: wait for it, skip, or be cancelled, and say for whom."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Running, State

from pipeline.cancel_watch import CancelledOnThePage, CancelWatch
from pipeline.holder import Holder, Overlap, WorkspaceBusy, hold
from pipeline.page import Page

WAITING = "Waiting"  # shown on the page in place of Running; what it waits for is the message
SKIPPED = "Skipped"


@contextmanager
def turn_in(root: Path, overlap: Overlap) -> Generator[None]:
    """Hold the workspace for this flow run while the block runs.

    Raises:
        WorkspaceBusy: another one works there, and this run is not to wait.
        CancelledOnThePage: somebody cancelled the run while it waited.
    """
    waited = False
    page, cancel = Page(), CancelWatch()

    def tell(holder: Holder) -> None:
        nonlocal waited
        waited = True
        get_run_logger().warning("waiting: the workspace is held by %s", holder)
        waiting = State(type=StateType.RUNNING, name=WAITING, message=f"for {holder}")
        show(waiting)

    def show(state: State) -> None:
        if cancel.is_cancelling():  # else the cancel would be overwritten, and never heard
            raise CancelledOnThePage("cancelled on the page while it waited; nothing was run")
        page.show(lambda: _set(state))

    name = f"flow run '{flow_run.name}'"
    wait = overlap == "queue"
    with hold(root, name, wait=wait, on_wait=tell, on_poll=cancel.stop_if_asked):
        if waited:
            get_run_logger().info("the workspace is free")
            show(Running())
        yield


def left_out(busy: WorkspaceBusy, overlap: Overlap) -> State[tuple[()]]:
    """The end of a run that was not to wait, with who was there as its message."""
    message = f"nothing was run: {busy}"
    get_run_logger().warning(message)
    if overlap == "cancel_new":
        return Cancelled(message=message)
    return Completed(name=SKIPPED, message=message, data=())


def _set(state: State) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run.id, state, force=True)
