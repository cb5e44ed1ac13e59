"""Runs from Prefect's page: which server may be talked to, and what it is told of the chain."""

import ipaddress
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from stages.errors import UserError

if TYPE_CHECKING:
    from prefect.schedules import Schedule

LOOK_EVERY_SECONDS = 5.0
ASK_EVERY_SECONDS = 1.0  # while it starts
AT_ONCE_SECONDS = 30.0  # in which a server that answers shows what else is wrong
START_SECONDS = 90.0  # that a server which was started just now may take on a busy machine
HOW_TO_START = (
    "  In another terminal: .venv/bin/prefect server start\n"
    "  and here: export PREFECT_API_URL=http://127.0.0.1:4200/api"
)
NO_SERVER = f"no Prefect server is set, and a schedule needs one that stays.\n{HOW_TO_START}"
# Values of a run that a schedule starts; the others are those of the form.
ON_SCHEDULE = {"parameters": {"overlap": "skip"}}


def check_server(url: str | None, *, has_password: bool, unprotected: bool) -> list[str]:
    """Whether runs may be taken from that server; what to be warned of.

    Whoever reaches a Prefect server without a password starts runs here, with params of theirs.

    Args:
        url: of the server's API; None: no server is set.
        has_password: PREFECT_API_AUTH_STRING or PREFECT_API_KEY is set.
        unprotected: the user takes a server without a password all the same.

    Raises:
        UserError: there is no server, or it is on a network and asks for no password.
    """
    if url is None:
        raise UserError(NO_SERVER)
    if is_loopback(url):
        return []
    if not has_password and not unprotected:
        raise UserError(
            f"the Prefect server {url} is not on this machine, and no password for it is set: "
            "everybody who reaches it could start runs here.\n"
            "  Start it with PREFECT_SERVER_API_AUTH_STRING=name:password and set "
            "PREFECT_API_AUTH_STRING here to the same,\n"
            "  reach it through an ssh tunnel as 127.0.0.1, or say --unprotected if only people "
            "you trust can reach it."
        )
    warnings = []
    if not has_password:
        warnings.append(f"{url} asks for no password: who reaches it starts runs here")
    if urlsplit(url).scheme != "https":
        warnings.append(f"{url} is not https: the network in between reads passwords and results")
    return warnings


def is_loopback(url: str) -> bool:
    """Whether an address leads to this machine without leaving it."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost" or host.endswith(".localhost")


def serve(cron: str | None) -> None:
    """Take runs from the server that is set, by hand and on a schedule, until told to end.

    The deployment has no limit of its own: what a run does when another one is on is one of its
    parameters, and holds for runs of other deployments and for those started by hand as well.

    Args:
        cron: when, in UTC; None: by hand alone.

    Raises:
        UserError: that is no cron line, or the server does not answer within some time. One that
            is away later is waited for.
    """
    from prefect.types.entrypoint import EntrypointType

    from pipeline.flows import simclr_chain
    from pipeline.lost_runs import keep_looking

    schedules = [schedule_of(cron)] if cron else None
    wait_for_server()
    keep_looking()
    while True:
        begun = time.monotonic()
        try:
            simclr_chain.serve(
                name="simclr",
                schedules=schedules,
                entrypoint_type=EntrypointType.MODULE_PATH,
            )
        except Exception as error:  # Prefect's runner gives up when its server is away for minutes
            if time.monotonic() - begun < AT_ONCE_SECONDS and problem_with_server() is None:
                raise  # not the server's fault, and it would be the same again
            from prefect.logging import get_logger

            log = get_logger("serving")
            log.warning("taking no runs: %s", error)
            while problem_with_server() is not None:
                time.sleep(LOOK_EVERY_SECONDS)
            log.warning("the server answers; taking runs again")
        else:
            return  # told to end


def schedule_of(cron: str) -> "Schedule":
    """Runs at these times, UTC, each unless another one is on.

    Raises:
        UserError: it is no cron line.
    """
    from prefect.schedules import Cron

    try:  # what a run that was skipped would have found, the next one finds
        return Cron(cron, parameters=ON_SCHEDULE)
    except ValueError:
        raise UserError(
            f"--cron {cron!r} is no time as cron writes it: minute, hour, day, month, weekday.\n"
            '  Every night at 2:00 (UTC): --cron "0 2 * * *"'
        ) from None


def wait_for_server(instead: str = "") -> None:
    """Until the server answers, which after its start takes some seconds.

    Args:
        instead: a line of what else may be done where it does not.

    Raises:
        UserError: it is not there after START_SECONDS, or it answers with an error.
    """
    from httpx import ConnectError
    from prefect.logging import get_logger
    from prefect.settings import get_current_settings

    url, deadline = get_current_settings().api.url, time.monotonic() + START_SECONDS
    problem, told = problem_with_server(), False
    while problem is not None:
        if not isinstance(problem, ConnectError) or time.monotonic() > deadline:
            raise UserError(
                f"the Prefect server {url} does not answer: {problem}\n{HOW_TO_START}{instead}"
            )
        if not told:
            get_logger("serving").info("waiting for the Prefect server %s to start", url)
        told = True
        time.sleep(ASK_EVERY_SECONDS)
        problem = problem_with_server()


def problem_with_server() -> Exception | None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.api_healthcheck()
