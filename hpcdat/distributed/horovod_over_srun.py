"""The variables with which Horovod connects the tasks of an srun step.

Horovod does not support srun, and an Open MPI started by srun must match the site's PMIx. So the workers
connect as under horovodrun, each through its own end of the store on rank 0, and data is sent over Gloo (NCCL
between GPUs). With ``srun --mpi=pmix`` and ``HOROVOD_CONTROLLER=mpi`` they use MPI instead; ``mpi: pmix`` in
a site's profile sets both.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from hpcdat.distributed.addresses import LOOPBACK
from hpcdat.distributed.horovod_proxy import HorovodProxy
from hpcdat.distributed.launcher import Launched
from hpcdat.distributed.rendezvous import meet, party_of
from hpcdat.distributed.slurm_step import first_host, tasks_per_node
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.errors import InputError


def over_mpi(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the tasks of this srun step connect over MPI, as ``HOROVOD_CONTROLLER=mpi`` requests.

    PMIx alone is no request: many sites have it as srun's default, whichever MPI the environment has.

    Raises:
        InputError: srun does not serve PMIx, without which Open MPI would start each task alone, or the files
            of PMIx are not in this container, without which Open MPI crashes.
    """
    if environ.get("HOROVOD_CONTROLLER", "").lower() != "mpi":
        return False
    if not {"PMIX_NAMESPACE", "PMIX_RANK"} <= environ.keys():
        raise InputError(
            "HOROVOD_CONTROLLER=mpi: srun was started without PMIx, through which the tasks connect over "
            "MPI: start it with --mpi=pmix (mpi: pmix in a site's profile), or unset HOROVOD_CONTROLLER"
        )
    folder = Path(environ.get("PMIX_SERVER_TMPDIR", "/"))
    # A folder that this user may not look up is no sign of a container.
    with contextlib.suppress(PermissionError):
        if not folder.exists():
            raise InputError(
                f"HOROVOD_CONTROLLER=mpi: there is no folder {folder} (PMIX_SERVER_TMPDIR), "
                "where Slurm has the files of PMIx: bind it into the container (apptainer exec --bind FOLDER)"
            )
    return True


def srun_variables(
    longest: float, stop: StopRequest | None = None, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Meet the other tasks of this srun step.

    Args:
        longest: how long to wait for the other tasks, seconds.
        stop: request to stop, which ends the wait.
        environ: holds the variables set by srun.

    Returns:
        The variables with which ``hvd.init()`` connects to the other tasks.

    Raises:
        InputError, WorkerError, Stopped: as :func:`~hpcdat.distributed.rendezvous.meet`.
    """
    place = Launched("srun", int(environ["SLURM_PROCID"]), int(environ["SLURM_STEP_NUM_TASKS"]))
    proxy = HorovodProxy(meet(party_of(place, environ), longest, stop))
    return horovod_variables(environ, proxy.port)


def horovod_variables(environ: Mapping[str, str], port: int) -> dict[str, str]:
    """The variables that horovodrun would set, derived from srun's.

    Args:
        environ: holds the variables set by srun.
        port: of this worker's :class:`~hpcdat.distributed.horovod_proxy.HorovodProxy`.
    """
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
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": LOOPBACK,
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
    }
