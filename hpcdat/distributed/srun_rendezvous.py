"""Rendezvous of workers started by srun, without MPI.

Horovod does not support srun, and an Open MPI started by srun must match the site's PMIx. So the workers
connect as under horovodrun: rank 0 serves Horovod's rendezvous, the others find it through the variables that
Slurm sets for every task, and data is sent over Gloo (NCCL between GPUs).
"""

from __future__ import annotations

import os
import re
import socket
import socketserver
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.distributed.waiting import SECONDS_BETWEEN_CHECKS, SECONDS_UNTIL_NOTICE, Wait, wait_in_thread
from hpcdat.errors import InputError, WorkerError, first_few, shorten

if TYPE_CHECKING:
    from horovod.runner.http.http_server import RendezvousHTTPServer

PORTS_TRIED = 8
"""Number of candidate ports of the rendezvous server."""
SECONDS_TO_CONNECT = 120.0
"""How long to wait for the other tasks, even if the stall timeout is shorter: tasks may start late."""
SECONDS_TO_RESOLVE = 60.0
"""How long a worker waits for a node's name to resolve."""
IN_A_SHELL = "in an interactive shell of the step, use srun, or unset SLURM_STEP_NUM_TASKS"
"""What to do if other tasks do not come."""
LOOPBACK = "127.0.0.1"
"""The address of rank 0's server on its own node, whose name need not resolve."""


def srun_variables(
    longest: float, stop: StopRequest | None = None, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Meet the other tasks of this srun step.

    Args:
        longest: how long to wait for the other tasks, seconds; at least :data:`SECONDS_TO_CONNECT`.
        stop: request to stop, which ends the wait.
        environ: holds the variables set by srun.

    Returns:
        The variables with which ``hvd.init()`` connects to the other tasks.

    Raises:
        WorkerError: the other tasks did not connect in time, a node's name does not resolve, or no port was
            free.
        Stopped: a stop was requested.
    """
    longest = max(longest, SECONDS_TO_CONNECT)
    token = f"{environ['SLURM_JOB_ID']}.{environ['SLURM_STEP_ID']}"
    ports = candidate_ports(token)
    if environ["SLURM_PROCID"] == "0":
        server, port = _serve(token, ports)
        notice = _seconds_until_notice()
        wait = Wait("", stop, advice=IN_A_SHELL, longest=longest, notice=notice)
        _await_tasks(server, environ, wait)
        address = LOOPBACK
    else:
        # Of the tasks that wait for task 0, one says so.
        shown = environ["SLURM_PROCID"] == "1"
        host = first_host(environ["SLURM_STEP_NODELIST"])
        address = LOOPBACK if _on_one_node(environ) else _resolve(host, stop)
        what = f"task 0 of {_step(environ)} to answer on {host}, port {ports[0]} or {PORTS_TRIED - 1} others"
        port = _find(token, address, ports, Wait(what, stop, longest=longest, shown=shown))
        _announce(environ, address, port)
    return horovod_variables(environ, address, port)


def _step(environ: Mapping[str, str]) -> str:
    """The step, for messages."""
    return (
        f"Slurm step {environ['SLURM_JOB_ID']}.{environ['SLURM_STEP_ID']} "
        f"({environ['SLURM_STEP_NUM_TASKS']} tasks on {shorten(environ['SLURM_STEP_NODELIST'])})"
    )


def _on_one_node(environ: Mapping[str, str]) -> bool:
    return len(tasks_per_node(environ["SLURM_STEP_TASKS_PER_NODE"])) == 1


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


def horovod_variables(environ: Mapping[str, str], address: str, port: int) -> dict[str, str]:
    """The variables that horovodrun would set, derived from srun's."""
    tasks = tasks_per_node(environ["SLURM_STEP_TASKS_PER_NODE"])
    node, local_rank = int(environ["SLURM_NODEID"]), int(environ["SLURM_LOCALID"])
    peers = [n for n, count in enumerate(tasks) if count > local_rank]
    return {
        "HOROVOD_RANK": environ["SLURM_PROCID"],
        "HOROVOD_SIZE": environ["SLURM_STEP_NUM_TASKS"],
        "HOROVOD_LOCAL_RANK": str(local_rank),
        "HOROVOD_LOCAL_SIZE": str(tasks[node]),
        "HOROVOD_CROSS_RANK": str(peers.index(node)),
        "HOROVOD_CROSS_SIZE": str(len(peers)),
        "HOROVOD_HOSTNAME": environ.get("SLURMD_NODENAME") or first_host(environ["SLURM_STEP_NODELIST"]),
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": address,
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
    }


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


def _serve(token: str, ports: list[int]) -> tuple[RendezvousHTTPServer, int]:
    from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer
    from horovod.runner.util.threads import in_thread

    for port in ports:
        try:
            server = _without_name_lookup(RendezvousHTTPServer)(("", port), RendezvousHandler, False)
        except OSError:
            continue
        server.init([])
        server.cache["hpcdat"] = {"step": token.encode()}
        in_thread(target=server.serve_forever)
        return server, port
    raise WorkerError(f"none of the ports {ports} for the rendezvous is free on this node")


def _without_name_lookup(server: type[RendezvousHTTPServer]) -> type[RendezvousHTTPServer]:
    """The server without the look-up of its own full name, for which ``http.server`` may wait a minute."""
    return type(server.__name__, (server,), {"server_bind": socketserver.TCPServer.server_bind})


def _await_tasks(server: RendezvousHTTPServer, environ: Mapping[str, str], wait: Wait) -> None:
    """Wait until all other tasks of the step have found the server."""
    expected = range(1, int(environ["SLURM_STEP_NUM_TASKS"]))
    while True:
        with server.cache_lock:
            here = {int(rank) for rank in server.cache.get("hpcdat-tasks", {})}
        missing = [str(rank) for rank in expected if rank not in here]
        if not missing:
            return
        tasks = f"task{'s' if len(missing) > 1 else ''} {first_few(missing)}"
        wait.what = f"{tasks} of {_step(environ)} to run the same command"
        wait.check()
        time.sleep(SECONDS_BETWEEN_CHECKS / 4)


def _opener() -> urllib.request.OpenerDirector:
    """Bypasses the site's http_proxy, which does not serve its own nodes."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _find(token: str, address: str, ports: list[int], wait: Wait) -> int:
    """The port on which the server of this step answers."""
    while True:
        for port in ports:
            wait.check()
            try:
                with _opener().open(f"http://{address}:{port}/hpcdat/step", timeout=5) as reply:
                    if reply.read().decode() == token:
                        return port
            except (OSError, urllib.error.URLError):
                continue
        time.sleep(SECONDS_BETWEEN_CHECKS)


def _announce(environ: Mapping[str, str], address: str, port: int) -> None:
    """Tell the server that this task is there."""
    rank = environ["SLURM_PROCID"]
    request = urllib.request.Request(
        f"http://{address}:{port}/hpcdat-tasks/{rank}", data=b"here", method="PUT"
    )
    try:
        _opener().open(request, timeout=60).close()
    except (OSError, urllib.error.URLError) as error:
        raise WorkerError(f"task 0 of {_step(environ)} was lost: {error}") from None
