"""Where hosts that train together find each other."""

import errno
import socket
import time
from dataclasses import dataclass, field
from typing import Any

import psutil

from stages.errors import UserError

MEET_SECONDS = 900  # for the last host to come
NAME_SECONDS = 120  # for a name to be known: a pod's is, once it runs


@dataclass(frozen=True)
class Meeting:
    """What torch's c10d rendezvous and its workers need to know on one host.

    Attributes:
        endpoint: host:port, the same on all hosts; the host whose address it is keeps the store.
        settings: of the rendezvous.
        own_address: by which the other hosts reach this one.
        environment: for the workers.
    """

    endpoint: str
    settings: dict[str, Any] = field(default_factory=dict)
    own_address: str | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def on_this_host(cls) -> "Meeting":
        return cls("localhost:0", own_address="localhost")

    @classmethod
    def at(cls, endpoint: str, is_here: bool | None = None) -> "Meeting":
        """Meet at host:port; `is_here` where a scheduler says whose address that is.

        Torch would compare host names, which containers and network namespaces share or lack;
        addresses of this host's interfaces say for sure whether the meeting is here, and by which
        of them the others reach it.
        """
        host, _, port = endpoint.rpartition(":")
        family, there = _resolved(host.strip("[]"), int(port))
        own = _interfaces()
        address = _own_address_towards(family, there)
        is_host = there[0] in own if is_here is None else is_here
        if is_host:
            _require_free(family, there)
        settings = {
            "is_host": is_host,
            "timeout": MEET_SECONDS,
            "join_timeout": MEET_SECONDS,
            "read_timeout": MEET_SECONDS,
        }
        if address not in own or own[address] == "lo":
            return cls(endpoint, settings)
        return cls(endpoint, settings, address, {"GLOO_SOCKET_IFNAME": own[address]})


def _resolved(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    deadline = time.monotonic() + NAME_SECONDS
    while True:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            return family, address
        except socket.gaierror as error:
            if time.monotonic() >= deadline:
                raise UserError(
                    f"runtime.meet_at names the host {host}, whose address is not to be had "
                    f"({error.strerror}).\n  Name a host that all others can reach, or its address."
                ) from None
            time.sleep(1)


def _require_free(family: socket.AddressFamily, place: Any) -> None:
    """Nobody listens at an address of this host; torch would only say that hosts did not meet.

    Raises:
        UserError: somebody does.
    """
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(place)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return  # the store's own words fit better
            raise UserError(
                f"port {place[1]} of this host, which runtime.meet_at names, is in use: by another "
                "program, or by this very command, which runs once on each host.\n  End that one "
                "or write another port; several processes on one host are runtime.processes."
            ) from None


def _interfaces() -> dict[str, str]:
    """Every address of this host, and the name of its interface."""
    return {
        one.address.partition("%")[0]: name
        for name, addresses in psutil.net_if_addrs().items()
        for one in addresses
        if one.family in (socket.AF_INET, socket.AF_INET6)
    }


def _own_address_towards(family: socket.AddressFamily, there: Any) -> str | None:
    """The address that packets to `there` would leave from; none is sent."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(there)
        except OSError:
            return None
        return str(probe.getsockname()[0])
