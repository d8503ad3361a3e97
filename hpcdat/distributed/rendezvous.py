"""How workers that srun or mpirun has started find each other, without MPI.

Rank 0 answers requests of HTTP on one of the ports that all of them derive from the number of their step. The
others find it there, learn where the engine's own server is, and say that they are there.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import socketserver
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from hpcdat.distributed.launcher import STORE, Launched
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.distributed.waiting import SECONDS_BETWEEN_CHECKS, SECONDS_UNTIL_NOTICE, Wait, wait_in_thread
from hpcdat.errors import InputError, WorkerError, first_few, shorten

if TYPE_CHECKING:
    from torch.distributed import Store

PORTS_TRIED = 8
"""Number of candidate ports of rank 0."""
SECONDS_TO_CONNECT = 120.0
"""How long to wait for the other workers, even if the stall timeout is shorter: they may start late."""
SECONDS_TO_RESOLVE = 60.0
"""How long a worker waits for a node's name to resolve."""
IN_A_SHELL = "in an interactive shell of the step, use srun, or unset SLURM_STEP_NUM_TASKS"
"""What to do if other tasks do not come."""
LOOPBACK = "127.0.0.1"
"""The address of rank 0 on its own node, whose name need not resolve."""
NEVER = timedelta(days=365)
"""Timeout of torch.distributed itself; the watchdog bounds every wait."""


@dataclass(frozen=True)
class Party:
    """Workers that find each other, as one of them sees them.

    Attributes:
        name: of the whole, for messages.
        token: differs from that of other parties.
        rank: of this worker.
        size: number of workers.
        host: node of rank 0.
        on_one_node: whether all are on that node, whose name then need not resolve.
        worker: what its launcher calls a worker.
        advice: what to do if some do not come.
    """

    name: str
    token: str
    rank: int
    size: int
    host: str
    on_one_node: bool
    worker: str
    advice: str = ""


def party_of(place: Launched, environ: Mapping[str, str] = os.environ) -> Party:
    """The workers of a step of srun, or of an mpirun on one node.

    Raises:
        InputError: mpirun has started them on several nodes, and nothing says where rank 0 is.
    """
    if place.launcher == "srun":
        nodelist = environ["SLURM_STEP_NODELIST"]
        step = f"{environ['SLURM_JOB_ID']}.{environ['SLURM_STEP_ID']}"
        return Party(
            f"Slurm step {step} ({place.size} tasks on {shorten(nodelist)})",
            step,
            place.rank,
            place.size,
            first_host(nodelist),
            len(tasks_per_node(environ["SLURM_STEP_TASKS_PER_NODE"])) == 1,
            "task",
            IN_A_SHELL,
        )
    if environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") != str(place.size):
        raise InputError(
            "engine: torch: mpirun does not say where rank 0 is: export MASTER_ADDR (its node) and "
            "MASTER_PORT (a free port there) with -x, or start the workers with torchrun or srun"
        )
    token = environ["PMIX_NAMESPACE"]
    name, host = f"mpirun ({place.size} workers)", socket.gethostname()
    return Party(name, token, place.rank, place.size, host, on_one_node=True, worker="worker")


def connect_store(place: Launched, longest: float, stop: StopRequest | None) -> Store:
    """Connect to the store through which the process groups of torch.distributed connect.

    Args:
        place: of this worker.
        longest: how long to wait for the other workers, seconds.
        stop: request to stop, which ends the wait.

    Raises:
        InputError, WorkerError, Stopped: as :func:`party_of` and :func:`meet`.
    """
    import torch.distributed as dist

    if place.launcher == "hpcdat -np":
        return dist.FileStore(os.environ[STORE], place.size)
    if place.launcher == "torchrun" or (place.launcher == "mpirun" and "MASTER_ADDR" in os.environ):
        where = f"{os.environ['MASTER_ADDR']}, port {os.environ.get('MASTER_PORT', '?')}"
        wait = Wait(f"rank 0 to answer on {where} (MASTER_ADDR, MASTER_PORT)", stop, shown=place.rank < 2)
        timeout = timedelta(seconds=longest)

        def connect() -> Store:
            connected: Store = next(dist.rendezvous("env://", place.rank, place.size, timeout=timeout))[0]
            return connected

        store = wait_in_thread(connect, wait)
    else:
        servers: list[Store] = []

        def serve() -> int:
            server = dist.TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
            servers.append(server)
            return server.port

        address, port = meet(party_of(place), longest, stop, serve)
        store = servers[0] if servers else dist.TCPStore(address, port, wait_for_workers=False)
    store.set_timeout(NEVER)
    return store


def meet(party: Party, longest: float, stop: StopRequest | None, serve: Callable[[], int]) -> tuple[str, int]:
    """Meet the other workers.

    Args:
        party: the workers.
        longest: how long to wait for them, seconds; at least :data:`SECONDS_TO_CONNECT`.
        stop: request to stop, which ends the wait.
        serve: called on rank 0; starts the engine's server and returns its port.

    Returns:
        Address of rank 0, and port of the engine's server.

    Raises:
        WorkerError: the others did not come in time, a node's name does not resolve, or no port was free.
        Stopped: a stop was requested.
    """
    longest = max(longest, SECONDS_TO_CONNECT)
    ports = candidate_ports(party.token)
    if party.rank == 0:
        port = serve()
        meeting = _open_meeting(party.token, port, ports)
        notice = _seconds_until_notice()
        wait = Wait("", stop, advice=party.advice, longest=longest, notice=notice)
        try:
            _await_others(meeting, party, wait)
        finally:
            meeting.shutdown()
            meeting.server_close()
        return LOOPBACK, port
    # Of the workers that wait for rank 0, one says so.
    address = LOOPBACK if party.on_one_node else _resolve(party.host, stop)
    what = (
        f"{party.worker} 0 of {party.name} to answer on {party.host}, port {ports[0]} or "
        f"{PORTS_TRIED - 1} others"
    )
    wait = Wait(what, stop, longest=longest, shown=party.rank == 1)
    meeting_port, port = _find(party.token, address, ports, wait)
    _announce(party, address, meeting_port)
    return address, port


def _seconds_until_notice() -> float:
    """When a wait for the other tasks is announced: at once in an interactive shell, where none may come."""
    return 0.0 if sys.stdin is not None and sys.stdin.isatty() else SECONDS_UNTIL_NOTICE


def check_own_name(stop: StopRequest | None) -> None:
    """Check that the name of this node resolves; otherwise Gloo crashes, whichever network card it uses.

    Raises:
        WorkerError: it does not resolve.
        Stopped: a stop was requested meanwhile.
    """
    _resolve(socket.gethostname(), stop, lambda name: str(socket.getaddrinfo(name, None)[0][4][0]))


def _resolve(host: str, stop: StopRequest | None, look_up: Callable[[str], str] | None = None) -> str:
    """The address of a node: of IPv4, as rank 0's server has it, unless ``look_up`` finds another.

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


def first_host(nodelist: str) -> str:
    """The first host of a Slurm node list: ``node[03-05,9],gpu1`` gives ``node03``."""
    parts = re.match(r"([^\[,]*)(?:\[(\d+)[^\]]*\])?([^,\[]*)", nodelist)
    assert parts is not None  # every part may be empty
    prefix, number, suffix = parts.groups()
    return prefix + (number or "") + suffix


def tasks_per_node(short: str) -> list[int]:
    """Parse Slurm's compressed list of task counts: ``2(x3),1`` gives ``[2, 2, 2, 1]``."""
    counts = []
    for part in short.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise InputError(f"SLURM_STEP_TASKS_PER_NODE: {shorten(short)}: expected counts such as 2(x3),1")
        count, times = match.groups()
        counts += [int(count)] * int(times or 1)
    return counts


def candidate_ports(token: str) -> list[int]:
    """The ports that every task of the step derives from its id; several, since one may be in use."""
    base = 20000 + zlib.crc32(token.encode()) % 20000
    return [base + 7 * k for k in range(PORTS_TRIED)]


class _Meeting(ThreadingHTTPServer):
    """Rank 0's answers: where the engine's server is; and who has come.

    Args:
        token: of the party.
        engine_port: of the engine's server.
        port: to answer on.
    """

    daemon_threads = True

    def __init__(self, token: str, engine_port: int, port: int) -> None:
        super().__init__(("", port), _Answers)
        self.answer = f"{token} {engine_port}".encode()
        self.came: set[int] = set()
        threading.Thread(target=self.serve_forever, name="meeting", daemon=True).start()

    def server_bind(self) -> None:
        """Without the look-up of this node's full name, for which ``http.server`` may wait a minute."""
        socketserver.TCPServer.server_bind(self)


class _Answers(BaseHTTPRequestHandler):
    """``GET /hpcdat`` asks where the engine's server is, ``PUT /hpcdat/RANK`` says that a worker has come."""

    server: _Meeting

    def do_GET(self) -> None:
        self._answer(self.server.answer if self.path == "/hpcdat" else None)

    def do_PUT(self) -> None:
        match = re.fullmatch(r"/hpcdat/(\d{1,9})", self.path)
        if match:
            self.server.came.add(int(match[1]))
        self._answer(b"" if match else None)

    def _answer(self, text: bytes | None) -> None:
        self.send_response(404 if text is None else 200)
        self.end_headers()
        self.wfile.write(text or b"")

    def log_message(self, format: str, *arguments: object) -> None:
        """Requests are not logged."""


def _open_meeting(token: str, engine_port: int, ports: list[int]) -> _Meeting:
    for port in ports:
        try:
            return _Meeting(token, engine_port, port)
        except OSError:
            continue
    raise WorkerError(f"none of the ports {ports} for the rendezvous is free on this node")


def _await_others(meeting: _Meeting, party: Party, wait: Wait) -> None:
    """Wait until all other workers have found rank 0."""
    expected = range(1, party.size)
    while True:
        missing = [str(rank) for rank in expected if rank not in meeting.came]
        if not missing:
            return
        workers = f"{party.worker}{'s' if len(missing) > 1 else ''} {first_few(missing)}"
        wait.what = f"{workers} of {party.name} to run the same command"
        wait.check()
        time.sleep(SECONDS_BETWEEN_CHECKS / 4)


def _opener() -> urllib.request.OpenerDirector:
    """Bypasses the site's http_proxy, which does not serve its own nodes."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _find(token: str, address: str, ports: list[int], wait: Wait) -> tuple[int, int]:
    """The port on which rank 0 of this party answers, and the port of the engine's server."""
    while True:
        for port in ports:
            wait.check()
            try:
                with _opener().open(f"http://{address}:{port}/hpcdat", timeout=5) as reply:
                    answer = reply.read(200).decode()
            except (OSError, urllib.error.URLError, http.client.HTTPException, ValueError):
                continue
            if re.fullmatch(rf"{re.escape(token)} \d+", answer):
                return port, int(answer.split()[-1])
        time.sleep(SECONDS_BETWEEN_CHECKS)


def _announce(party: Party, address: str, port: int) -> None:
    """Tell rank 0 that this worker has come."""
    request = urllib.request.Request(f"http://{address}:{port}/hpcdat/{party.rank}", data=b"", method="PUT")
    try:
        _opener().open(request, timeout=60).close()
    except (OSError, urllib.error.URLError) as error:
        raise WorkerError(f"{party.worker} 0 of {party.name} was lost: {error}") from None
