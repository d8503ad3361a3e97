"""A process as a worker: reading inputs, starting, reporting failures, exiting."""

from __future__ import annotations

import getpass
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar

import typer

from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.config.job import Job
from hpcdat.distributed import local_mpirun, local_processes
from hpcdat.distributed.engine import choose_engine
from hpcdat.distributed.launcher import (
    Launched,
    LauncherError,
    check_launcher,
    idle_allocation,
    launched,
    left_over,
)
from hpcdat.distributed.local_mpirun import find_mpirun
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.distributed.waiting import announcing
from hpcdat.errors import Exit, HpcdatError, InputError

if TYPE_CHECKING:
    from hpcdat.distributed.communicator import Communicator


T = TypeVar("T")

DEFAULT_STALL_TIMEOUT = 120
"""Longest wait for another worker, in seconds, when there is no job to set it."""

SECONDS_FOR_RANK0 = 10
"""How long another worker waits for rank 0 to report the same error before it reports its own."""


def reported_once(read: Callable[[], T]) -> T:
    """Read an input before the workers connect; an error in it is reported once.

    Raises:
        typer.Exit: the input is invalid; the message is on stderr.
    """
    try:
        return read()
    except HpcdatError as error:
        refuse(error)


def refuse(error: HpcdatError) -> NoReturn:
    """Report an error found before the workers have connected, and exit.

    Errors found by every worker are reported once, by rank 0; others by the worker that found them.
    """
    place = launched()
    rank = error.rank if isinstance(error, LauncherError) else place.rank
    if rank == 0:
        print(error, file=sys.stderr)
    else:
        # Launchers kill all workers when the first one exits, so wait for rank 0 to report the error. Only a
        # worker that is the only one to find it survives the wait, except under srun, which may leave all
        # workers running and names those that failed.
        time.sleep(SECONDS_FOR_RANK0)
        if place.launcher != "srun":
            print(f"worker {rank} on {socket.gethostname()}: {error}", file=sys.stderr)
    raise typer.Exit(error.exit_code)


def start_locally(workers: int, job: EvaluationJob | None) -> None:
    """Start local workers, wait for them and exit with their exit code.

    Args:
        workers: number of workers.
        job: resolved, or None if the command has no job.
    """
    place = _checked_place(workers)
    if place.size > 1:
        refuse(_np_under(place))
    arguments = _without_np(sys.argv[1:])
    setting = job.engine if job else "auto"
    over_torch = choose_engine(setting, "none") == "torch" or (setting == "auto" and find_mpirun() is None)
    launch_local = local_processes.launch_local if over_torch else local_mpirun.launch_local
    try:
        raise typer.Exit(launch_local(workers, arguments, on_terminal=sys.stderr.isatty()))
    except HpcdatError as error:
        refuse(error)


def _checked_place(workers: int) -> Launched:
    """This process's place, with a warning if an allocation is larger than the number of workers started."""
    place = reported_once(check_launcher)
    if warning := idle_allocation(place, workers):
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    return place


def _np_under(place: Launched) -> InputError:
    """The error for ``-np`` in one of the workers that a launcher has started."""
    return InputError(
        f"-np: not allowed under {place.launcher}, which has already started {place.size} workers: leave out "
        f"-np, or, in an interactive shell, unset {' '.join(left_over(place.launcher))}"
    )


def _without_np(arguments: list[str]) -> list[str]:
    """The command line without ``-np N``, in any of its forms."""
    remaining, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in ("-np", "--workers"):
            skip = True
        elif not argument.startswith(("-np=", "--workers=")):
            remaining.append(argument)
    return remaining


def as_worker(work: Callable[[Communicator, StopRequest], T], job: EvaluationJob | None) -> T | None:
    """Connect to the other workers and do this worker's part; failures end the process.

    Args:
        work: this worker's part.
        job: resolved, or None if the command has no job.

    Returns:
        The result of ``work`` on rank 0, None on the others.
    """
    place = _checked_place(1)
    setting = job.engine if job else "auto"
    if place.size > 1:
        reported_once(lambda: choose_engine(setting, place.launcher))
    _name_user()
    stop = StopRequest()
    # Imported before the workers connect: afterwards a slow import counts as a stall.
    with announcing(f"load torch and other packages from {sys.prefix}", shown=place.rank == 0):
        import hpcdat.commands.train  # noqa: F401
        from hpcdat.distributed.initialization import init_communicator

    try:
        workers = init_communicator(
            job.stall_timeout if job else DEFAULT_STALL_TIMEOUT,
            engine=setting,
            stop=stop,
            divisible=isinstance(job, Job)
            and (job.exchange.protocol == "hierarchical" or job.smoothing.workers > 1),
        )
    except InputError as error:
        refuse(error)
    except HpcdatError as error:
        print(f"hpcdat: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)
    except KeyboardInterrupt:
        os._exit(Exit.INTERRUPTED)
    try:
        result = work(workers, stop)
        workers.close()
        return result if workers.is_rank0 else None
    except HpcdatError as error:
        _report_and_exit(workers, error)
    except KeyboardInterrupt:
        print(f"hpcdat: worker {workers.rank} on {workers.host} was interrupted", file=sys.stderr, flush=True)
        os._exit(Exit.INTERRUPTED)
    except BaseException:
        text = traceback.format_exc()
        print(f"hpcdat: worker {workers.rank} on {workers.host} failed:\n{text}", file=sys.stderr, flush=True)
        os._exit(Exit.FAILURE)


def _name_user() -> None:
    """Give a user without a name one: torch names its folder of compiled code after the user."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"user-{os.getuid()}"


def _report_and_exit(workers: Communicator, error: HpcdatError) -> NoReturn:
    """Report an expected failure and exit; the launcher then ends the other workers."""
    if not error.everywhere:
        print(f"hpcdat: worker {workers.rank} on {workers.host}: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)
    if workers.is_rank0:
        print(f"hpcdat: {error}", file=sys.stderr, flush=True)
    # Launchers kill all workers when the first one exits, so wait until rank 0 has reported the failure.
    workers.barrier("the end")
    sys.stdout.flush()
    os._exit(error.exit_code)
