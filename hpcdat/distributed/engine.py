"""Which engine sums: Horovod, or torch.distributed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

from hpcdat.distributed.launcher import Launcher
from hpcdat.errors import InputError

Engine = Literal["horovod", "torch"]


def choose_engine(setting: Literal["auto", "horovod", "torch"], launcher: Launcher) -> Engine:
    """The engine of workers that a launcher has started, or, under none, of those that hpcdat starts.

    Args:
        setting: the job's.
        launcher: ``none`` before hpcdat starts workers.

    Raises:
        InputError: the launcher starts workers of the other engine.
    """
    if launcher in ("torchrun", "hpcdat -np"):
        if setting == "horovod":
            raise InputError(
                f"engine: horovod: {launcher} starts workers for torch.distributed; set engine: auto, or use "
                "mpirun, srun or horovodrun"
            )
        return "torch"
    if launcher == "horovodrun":
        if setting == "torch":
            raise InputError(
                "engine: torch: horovodrun starts workers for Horovod; use torchrun, srun, mpirun or -np N"
            )
        return "horovod"
    if setting != "auto":
        return setting
    return "horovod" if horovod_is_installed() else "torch"


def horovod_is_installed() -> bool:
    """Whether Horovod is installed and built for torch; it is not imported."""
    try:
        found = importlib.util.find_spec("horovod")
    except ImportError:
        return False
    folders = (found and found.submodule_search_locations) or []
    return any(any(Path(folder, "torch").glob("mpi_lib_v2*")) for folder in folders)


def change_of_engine(before: str, now: str, size: int) -> str:
    """What a run that resumes over another engine says; empty if it resumes over the same.

    Args:
        before, now: the engines, as in :attr:`Communicator.engine`.
        size: number of workers (M).
    """
    names = {"horovod": "Horovod", "torch": "torch.distributed"}
    if before == now or before not in names or now not in names:
        return ""
    effect = (
        "the sums of two workers are the same, bit for bit"
        if size == 2
        else "sums of integers are the same, float32 sums may be rounded differently"
    )
    return f"the run was last trained over {names[before]}, and continues over {names[now]}: {effect}"
