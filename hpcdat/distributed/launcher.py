"""The rank and size of this process, read from its launcher's environment variables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from hpcdat.errors import InputError, shorten

Launcher = Literal["none", "hpcdat -np", "torchrun", "mpirun", "horovodrun", "srun"]

RANK, SIZE, STORE = "HPCDAT_RANK", "HPCDAT_SIZE", "HPCDAT_STORE"
"""Variables of the workers that hpcdat has started itself: rank, size, the file through which they meet."""

SERVED: tuple[tuple[Launcher, str, str, tuple[str, ...]], ...] = (
    ("hpcdat -np", RANK, SIZE, (STORE,)),
    ("horovodrun", "HOROVOD_RANK", "HOROVOD_SIZE", ("HOROVOD_GLOO_RENDEZVOUS_ADDR",)),
    ("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ("PMIX_NAMESPACE", "PMIX_RANK")),
    (
        "srun",
        "SLURM_PROCID",
        "SLURM_STEP_NUM_TASKS",
        (
            "SLURM_JOB_ID",
            "SLURM_STEP_ID",
            "SLURM_STEP_NODELIST",
            "SLURM_STEP_TASKS_PER_NODE",
            "SLURM_NODEID",
            "SLURM_LOCALID",
        ),
    ),
    ("torchrun", "RANK", "WORLD_SIZE", ("MASTER_ADDR", "MASTER_PORT")),
)
"""Launchers whose workers can connect: name, variables of rank and size, others that it always sets."""
UNDER_TORCHRUN = "TORCHELASTIC_RUN_ID"
"""Variable that torchrun alone sets."""

OTHERS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("jsrun", ("JSM_NAMESPACE_RANK",), ("JSM_NAMESPACE_SIZE",)),
    ("flux", ("FLUX_TASK_RANK",), ("FLUX_JOB_SIZE",)),
    ("MVAPICH's mpiexec", ("MV2_COMM_WORLD_RANK",), ("MV2_COMM_WORLD_SIZE",)),
    ("MVAPICH's mpiexec", ("MVP_COMM_WORLD_RANK",), ("MVP_COMM_WORLD_SIZE",)),
    ("PALS", ("PALS_RANKID",), ()),
    ("aprun", ("ALPS_APP_PE",), ()),
    ("an mpiexec with PMI, such as MPICH's", ("PMI_RANK",), ("PMI_SIZE",)),
    ("a launcher with PMIx", ("PMIX_RANK",), ()),
)
"""Launchers whose workers cannot connect: name, variables of the rank, and of the size if there are any."""


INTERACTIVE_STEP = "4294967290"
"""Slurm's number of the step in which salloc runs a shell."""


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


class LauncherError(InputError):
    """The environment is not that of a launcher whose workers can connect.

    Args:
        message: names the variables and says what to do.
        rank: of this process according to them, so that rank 0 alone reports the error; 0 if unknown.
    """

    def __init__(self, message: str, rank: int = 0) -> None:
        super().__init__(message)
        self.rank = rank


def launched(environ: Mapping[str, str] = os.environ) -> Launched:
    """Read the variables of the launchers in :data:`SERVED`; those that make no sense are ignored.

    The batch script under sbatch has Slurm's variables without being a task of srun, and an ``mpirun`` in it
    forwards them to its workers; hence the order. Sites set torchrun's general names under other launchers
    too, but torchrun itself may have been started by another launcher on every node.
    """
    order = sorted(SERVED, key=lambda one: UNDER_TORCHRUN in environ and one[0] != "torchrun")
    for launcher, rank_name, size_name, _ in order:
        rank, size = environ.get(rank_name, ""), environ.get(size_name, "")
        if rank.isdecimal() and size.isdecimal() and int(rank) < int(size):
            return Launched(launcher, int(rank), int(size))
    return Launched("none")


def check_launcher(environ: Mapping[str, str] = os.environ) -> Launched:
    """Like :func:`launched`, refusing variables that are left over and launchers that are not served.

    Raises:
        LauncherError: the workers could not connect, or would train one run each.
    """
    for _, rank_name, size_name, _ in SERVED:
        if rank_name in environ and size_name in environ:
            rank, size = _number(environ, rank_name), _number(environ, size_name)
            if rank >= size:
                raise LauncherError(
                    f"{rank_name}={rank} and {size_name}={size}: a rank is below the number of workers; "
                    f"{_unset([rank_name, size_name])}"
                )
    place = launched(environ)
    if place.size > 1:
        _check_complete(place, environ)
    if place.launcher == "hpcdat -np" or (place.launcher == "torchrun" and UNDER_TORCHRUN in environ):
        # What started them on each node may have left its variables.
        return place
    _check_agreement(place, environ)
    unserved = [found for found in _others(environ) if _conflicts(found, place)]
    if unserved:
        first = unserved[0]
        values = ", ".join(f"{variable}={shorten(environ[variable])}" for variable in first.variables)
        every = list(dict.fromkeys(variable for found in unserved for variable in found.variables))
        raise LauncherError(
            f"started by {first.launcher} ({values}), which hpcdat does not support: each worker would "
            "train a run of its own. Start it with torchrun, srun, mpirun, horovodrun or -np N; if there is "
            f"no such launcher, its variables are left over in this shell: {_unset(every)}",
            first.rank,
        )
    return place


def _check_agreement(place: Launched, environ: Mapping[str, str]) -> None:
    """Refuse RANK and WORLD_SIZE of more workers, or fewer, than another launcher has started."""
    if place.launcher in ("none", "torchrun") or not {"RANK", "WORLD_SIZE"} <= environ.keys():
        return
    rank, size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    if size not in (1, place.size):
        raise LauncherError(
            f"{place.launcher} has started {place.size} workers, but RANK={rank} and WORLD_SIZE={size}: use "
            f"one launcher; if there is only {place.launcher}, these are left over in this shell: "
            f"{_unset(['RANK', 'WORLD_SIZE'])}",
            rank,
        )


@dataclass(frozen=True)
class _Other:
    """What the variables of a launcher in :data:`OTHERS` say.

    Attributes:
        launcher: its name.
        variables: those that are set.
        rank: of this process, 0 if unknown.
        size: number of workers, None if unknown.
    """

    launcher: str
    variables: list[str]
    rank: int
    size: int | None


def _others(environ: Mapping[str, str]) -> Iterator[_Other]:
    for launcher, rank_names, size_names in OTHERS:
        if not any(name in environ for name in rank_names):
            continue
        sizes = [_number(environ, name) for name in size_names if name in environ]
        # A general name such as RANK says nothing without a size.
        if sizes or not size_names:
            variables = [name for name in (*rank_names, *size_names) if name in environ]
            rank = environ.get(rank_names[0], "")
            size = sizes[0] if sizes else None
            yield _Other(launcher, variables, int(rank) if rank.isdecimal() else 0, size)


def _conflicts(found: _Other, place: Launched) -> bool:
    """Whether the workers are those of this launcher rather than those of ``place``.

    A process manager that a served launcher imitates states the same size; a size of one means that nothing
    but this process was launched.
    """
    if found.size == 1:
        return False
    return place.launcher == "none" or found.size not in (None, place.size)


def _check_complete(place: Launched, environ: Mapping[str, str]) -> None:
    """Refuse a launcher's rank and size without the variables that it sets along with them."""
    rank_name, size_name, others = next(
        (rank, size, others) for launcher, rank, size, others in SERVED if launcher == place.launcher
    )
    missing = [variable for variable in others if variable not in environ]
    if missing:
        raise LauncherError(
            f"{rank_name}={place.rank} and {size_name}={place.size} are set, but not {', '.join(missing)}, "
            f"which {place.launcher} sets too: they are left over in this shell; "
            f"{_unset(left_over(place.launcher, environ))}",
            place.rank,
        )


def left_over(launcher: str, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Those of a served launcher's variables that are set."""
    return [
        variable
        for name, rank, size, others in SERVED
        if name == launcher
        for variable in (rank, size, *others)
        if variable in environ and variable != "SLURM_JOB_ID"
    ]


def idle_allocation(place: Launched, workers: int, environ: Mapping[str, str] = os.environ) -> str:
    """A warning if Slurm has allocated more tasks or nodes than a run without srun uses; otherwise empty.

    Args:
        place: of this process.
        workers: number of workers started.
        environ: environment variables.
    """
    in_shell = place.launcher == "none" or environ.get("SLURM_STEP_ID") == INTERACTIVE_STEP
    if not in_shell or "SLURM_JOB_ID" not in environ:
        return ""
    for variable, used in (("SLURM_JOB_NUM_NODES", 1), ("SLURM_NTASKS", workers)):
        text = environ.get(variable, "")
        if text.isdecimal() and int(text) > used:
            running = "a single worker" if workers == 1 else f"{workers} workers on this machine"
            return (
                f"the Slurm allocation is larger than the run: {variable}={text}, but this starts {running}; "
                "srun in front of the command, without -np, starts a worker for every task"
            )
    return ""


def _number(environ: Mapping[str, str], variable: str) -> int:
    text = environ[variable]
    if not text.isdecimal():
        raise LauncherError(
            f"{variable}={shorten(text)}: expected a number, as launchers set it; {_unset([variable])}"
        )
    return int(text)


def _unset(variables: list[str]) -> str:
    return f"unset {' '.join(variables)}"
