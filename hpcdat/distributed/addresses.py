"""Names and addresses of nodes."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Callable, Mapping

from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.distributed.waiting import Wait, wait_in_thread
from hpcdat.errors import InputError, WorkerError, shorten

LOOPBACK = "127.0.0.1"
"""The address of a node for its own processes, which needs no name."""
SECONDS_TO_RESOLVE = 60.0
"""How long a worker waits for a node's name to resolve."""
CARDS = ("GLOO_SOCKET_IFNAME", "HOROVOD_GLOO_IFACE")
"""Variables that name the network card over which workers exchange data: torch's, Horovod's."""
_GET_ADDRESS = 0x8915
"""SIOCGIFADDR: asks for the address of a network card."""
_PORT_OF_DISCARD = 9


def check_own_name(stop: StopRequest | None) -> None:
    """Check that the name of this node resolves; otherwise Gloo crashes, whichever network card it uses.

    Raises:
        WorkerError: it does not resolve.
        Stopped: a stop was requested meanwhile.
    """
    _resolve(socket.gethostname(), stop, lambda name: str(socket.getaddrinfo(name, None)[0][4][0]))


def address_for_workers(
    other: str | None, stop: StopRequest | None, environ: Mapping[str, str] = os.environ
) -> str:
    """The address of this node for workers on other nodes (IPv4).

    It is that of the network card in :data:`CARDS`, or the one from which another node is reached, or that
    to which this node's own name resolves.

    Args:
        other: name of another node, if one is known.
        stop: request to stop, which ends the wait for a name to resolve.
        environ: environment variables.

    Raises:
        InputError: there is no such card, or this node's name resolves to an address that only it can reach.
        WorkerError: a node's name does not resolve, or that node cannot be reached.
        Stopped: a stop was requested meanwhile.
    """
    for variable in CARDS:
        if card := environ.get(variable, "").split(",")[0]:
            return _address_of_card(card, variable)
    if other is not None:
        return _address_towards(other, stop)
    address = _resolve(socket.gethostname(), stop)
    if address.startswith("127."):
        raise InputError(
            f"the name of node {socket.gethostname()} resolves to {address}, which other nodes cannot reach: "
            f"set {CARDS[0]} to the network card that connects the nodes"
        )
    return address


def _address_of_card(card: str, variable: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            found = fcntl.ioctl(probe.fileno(), _GET_ADDRESS, struct.pack("256s", card.encode()[:15]))
        except OSError as error:
            raise InputError(
                f"{variable}={shorten(card)}: no network card of {socket.gethostname()} with an IPv4 address "
                f"({error.strerror})"
            ) from None
    return socket.inet_ntoa(found[20:24])


def _address_towards(other: str, stop: StopRequest | None) -> str:
    """The address of this node from which it sends to another node; nothing is sent."""
    address = _resolve(other, stop)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, _PORT_OF_DISCARD))
        except OSError as error:
            raise WorkerError(
                f"node {other} ({address}) cannot be reached from {socket.gethostname()}: {error.strerror}"
            ) from None
        own: str = probe.getsockname()[0]
    return own


def _resolve(host: str, stop: StopRequest | None, look_up: Callable[[str], str] | None = None) -> str:
    """The address of a node: of IPv4, as the store has it, unless ``look_up`` finds another.

    Raises:
        WorkerError: its name does not resolve.
    """
    wait = Wait(f"the name of node {host} to resolve", stop, longest=SECONDS_TO_RESOLVE)
    try:
        return wait_in_thread(lambda: (look_up or socket.gethostbyname)(host), wait)
    except OSError as error:
        raise WorkerError(
            f"the name of node {host} does not resolve on {socket.gethostname()} "
            f"({error.strerror or error}): add it to /etc/hosts or to the site's DNS"
        ) from None
