"""The rank and size of this process, read from its launcher's environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Launcher = Literal["none", "mpirun", "horovodrun", "srun"]


@dataclass(frozen=True)
class Launched:
    """A process's place among its workers, as its launcher states it.

    Attributes:
        launcher: what started it; ``none`` for a single process.
        rank: global rank, from 0.
        size: number of workers.
    """

    launcher: Launcher
    rank: int = 0
    size: int = 1


def launched(environ: Mapping[str, str] = os.environ) -> Launched:
    """Read the launcher's variables.

    The batch script under sbatch has Slurm's variables without being a task of srun, and an ``mpirun`` in it
    forwards them to its workers; hence the order.
    """
    launchers: tuple[tuple[Launcher, str, str], ...] = (
        ("horovodrun", "HOROVOD_RANK", "HOROVOD_SIZE"),
        ("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    )
    for launcher, rank, size in launchers:
        if rank in environ and size in environ:
            return Launched(launcher, int(environ[rank]), int(environ[size]))
    if "SLURM_STEP_NUM_TASKS" in environ and "SLURM_PROCID" in environ:
        return Launched("srun", int(environ["SLURM_PROCID"]), int(environ["SLURM_STEP_NUM_TASKS"]))
    return Launched("none")
