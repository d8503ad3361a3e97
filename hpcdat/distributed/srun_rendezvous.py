"""Rendezvous of workers started by srun, without MPI.

Horovod does not support srun, and an Open MPI started by srun must match the site's PMIx. So the workers
connect as under horovodrun: rank 0 serves Horovod's rendezvous, the others find it through the variables that
Slurm sets for every task, and data is sent over Gloo (NCCL between GPUs).
"""

from __future__ import annotations

import os
import re
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping

from hpcdat.errors import InputError, shorten

PORTS_TRIED = 8
"""Number of candidate ports of the rendezvous server."""
SECONDS_TO_CONNECT = 120.0
"""How long a worker searches for the rendezvous server of rank 0."""


def connect_under_srun(environ: Mapping[str, str] | None = None) -> None:
    """Set the variables with which ``hvd.init()`` connects to the other tasks of this srun step.

    Args:
        environ: the variables set by srun; default: this process's environment.

    Raises:
        RuntimeError: rank 0's rendezvous was not found within two minutes, or no port was free.
    """
    environ = os.environ if environ is None else environ
    token = f"{environ['SLURM_JOB_ID']}.{environ['SLURM_STEP_ID']}"
    ports = candidate_ports(token)
    host = first_host(environ["SLURM_STEP_NODELIST"])
    port = _serve(token, ports) if environ["SLURM_PROCID"] == "0" else _find(token, host, ports)
    os.environ.update(horovod_variables(environ, host, port))


def horovod_variables(environ: Mapping[str, str], host: str, port: int) -> dict[str, str]:
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
        "HOROVOD_HOSTNAME": environ.get("SLURMD_NODENAME", host),
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": host,
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


def _serve(token: str, ports: list[int]) -> int:
    from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer
    from horovod.runner.util.threads import in_thread

    for port in ports:
        try:
            server = RendezvousHTTPServer(("", port), RendezvousHandler, False)
        except OSError:
            continue
        server.init([])
        server.cache["hpcdat"] = {"step": token.encode()}
        in_thread(target=server.serve_forever)
        return port
    raise RuntimeError(f"none of the ports {ports} for the rendezvous is free on this node")


def _find(token: str, host: str, ports: list[int]) -> int:
    # Bypass the site's http_proxy for its own nodes.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + SECONDS_TO_CONNECT
    while time.monotonic() < deadline:
        for port in ports:
            try:
                with direct.open(f"http://{host}:{port}/hpcdat/step", timeout=5) as reply:
                    if reply.read().decode() == token:
                        return port
            except (OSError, urllib.error.URLError):
                continue
        time.sleep(0.2)
    raise RuntimeError(
        f"worker 0 on {host} did not answer on ports {ports} within {SECONDS_TO_CONNECT:.0f} s: "
        "check that the name resolves on this node and that the ports are open between nodes"
    )
