"""How workers that srun or mpirun has started find each other, without MPI.

Rank 0 makes a secret, serves a key-value store on a port that is free, and writes both into a file that only
the user may read, in a folder that all nodes share. The others find the file there and connect. When all are
connected, rank 0 removes the file and listens no longer.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from hpcdat.distributed.addresses import LOOPBACK, address_for_workers
from hpcdat.distributed.key_value_store import StoreServer
from hpcdat.distributed.launcher import Launched
from hpcdat.distributed.slurm_step import first_host, last_host, tasks_per_node
from hpcdat.distributed.start_file import FOLDER, Start, StartFile
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.distributed.store_client import StoreClient
from hpcdat.distributed.waiting import SECONDS_BETWEEN_CHECKS, SECONDS_UNTIL_NOTICE, Wait
from hpcdat.errors import first_few, shorten

IN_A_SHELL = "in an interactive shell of the step, use srun, or unset SLURM_STEP_NUM_TASKS"
"""What to do if other tasks do not come."""
BYTES_OF_SECRET = 32


@dataclass(frozen=True)
class Party:
    """Workers that find each other, as one of them sees them.

    Attributes:
        name: of the whole, for messages.
        token: differs from that of other parties of the user.
        rank: of this worker.
        size: number of workers.
        on_one_node: whether all are on one node.
        worker: what its launcher calls a worker.
        other_host: a node other than this one, if one is known.
        first_here: whether this is the first worker of its node.
        advice: what to do if some do not come.
    """

    name: str
    token: str
    rank: int
    size: int
    on_one_node: bool
    worker: str
    other_host: str | None = None
    first_here: bool = True
    advice: str = ""


def party_of(place: Launched, environ: Mapping[str, str] = os.environ) -> Party:
    """The workers of a step of srun, or of an mpirun."""
    if place.launcher == "srun":
        nodelist = environ["SLURM_STEP_NODELIST"]
        step = f"{environ['SLURM_JOB_ID']}.{environ['SLURM_STEP_ID']}"
        one_node = len(tasks_per_node(environ["SLURM_STEP_TASKS_PER_NODE"])) == 1
        first, last = first_host(nodelist), last_host(nodelist)
        return Party(
            f"Slurm step {step} ({place.size} tasks on {shorten(nodelist)})",
            # Clusters that number their jobs alike may share home folders.
            f"{environ.get('SLURM_CLUSTER_NAME', 'slurm')}-{step}",
            place.rank,
            place.size,
            one_node,
            "task",
            None if one_node else last if last != environ.get("SLURMD_NODENAME") else first,
            environ["SLURM_LOCALID"] == "0",
            IN_A_SHELL,
        )
    return Party(
        f"mpirun ({place.size} workers)",
        environ["PMIX_NAMESPACE"],
        place.rank,
        place.size,
        environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == str(place.size),
        "worker",
        first_here=environ.get("OMPI_COMM_WORLD_LOCAL_RANK", "0") == "0",
    )


def meet(party: Party, longest: float, stop: StopRequest | None) -> StoreClient:
    """Meet the other workers.

    Args:
        party: the workers.
        longest: how long to wait for them, seconds.
        stop: request to stop, which ends the wait.

    Returns:
        This worker's connection to the store on rank 0.

    Raises:
        InputError: there is no folder for the file of this start, others may read it, or rank 0 cannot tell
            under which address other nodes reach it.
        WorkerError: the others did not come in time, or a node's name does not resolve.
        Stopped: a stop was requested.
    """
    file = StartFile(party.token)
    if party.rank > 0:
        return _find(party, file, longest, stop)
    address = LOOPBACK if party.on_one_node else address_for_workers(party.other_host, stop)
    secret = secrets.token_bytes(BYTES_OF_SECRET)
    server = StoreServer(secret, address, party.size, party.name)
    try:
        file.write(Start(address, server.port, secret.hex()))
        client = _find(party, file, longest, stop)
        notice = _seconds_until_notice()
        wait = Wait("", stop, advice=party.advice, longest=longest, notice=notice)
        _await_others(server, party, wait)
    except BaseException:
        server.close()
        raise
    finally:
        file.remove()
    server.stop_listening()
    return client


def _seconds_until_notice() -> float:
    """When a wait for the other tasks is announced: at once in an interactive shell, where none may come."""
    return 0.0 if sys.stdin is not None and sys.stdin.isatty() else SECONDS_UNTIL_NOTICE


def _await_others(server: StoreServer, party: Party, wait: Wait) -> None:
    """Wait until all workers are connected to rank 0."""
    while True:
        missing = [str(rank) for rank in range(party.size) if rank not in server.workers]
        if not missing:
            return
        workers = f"{party.worker}{'s' if len(missing) > 1 else ''} {first_few(missing)}"
        wait.what = f"{workers} of {party.name} to run the same command"
        wait.check()
        time.sleep(SECONDS_BETWEEN_CHECKS / 4)


def _find(party: Party, file: StartFile, longest: float, stop: StopRequest | None) -> StoreClient:
    """Connect to rank 0, as soon as it has written the file; an earlier start may have left one."""
    rank0 = f"{party.worker} 0 of {party.name}"
    absent = f"{rank0} to run the same command and write {file.path}"
    shared = "" if party.on_one_node else f"all nodes have to share this folder; {FOLDER} names another"
    # Of the workers that wait for rank 0, one says so.
    wait = Wait(absent, stop, advice=shared, longest=longest, shown=party.rank == 1)
    while True:
        wait.check()
        start = file.read(refresh=party.first_here)
        if start is None:
            wait.what = absent
        else:
            try:
                return StoreClient(start.address, start.port, bytes.fromhex(start.secret), party.rank)
            except (OSError, ValueError) as error:
                there = f"{start.address}, port {start.port}, as {file.path} says"
                wait.what = f"{rank0} to answer on {there} ({error})"
        time.sleep(SECONDS_BETWEEN_CHECKS)
