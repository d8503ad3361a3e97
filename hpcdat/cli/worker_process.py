"""A process as a worker: mistakes found before it starts, its start, its end."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar

import typer

from hpcdat.config.job import Job
from hpcdat.distributed.launcher import launched
from hpcdat.distributed.local_mpirun import launch_local
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.errors import Exit, HpcdatError, InputError

if TYPE_CHECKING:
    from hpcdat.distributed.communicator import Communicator


T = TypeVar("T")

STALL_TIMEOUT = 120
"""Seconds that a worker may keep the others waiting where no job says it."""

SECONDS_FOR_WORKER_0 = 10
"""Seconds that another worker waits for worker 0 to report the same mistake before it reports its own."""


def reported_once(read: Callable[[], T]) -> T:
    """Read an input before the workers meet; a mistake in it is reported once.

    Raises:
        typer.Exit: the input is wrong; the message is on stderr.
    """
    try:
        return read()
    except HpcdatError as error:
        refuse(error)


def refuse(error: HpcdatError) -> NoReturn:
    """Report a mistake and exit, before the workers have met.

    Worker 0 reports it if every worker finds it; otherwise the worker that does.
    """
    place = launched()
    if place.rank == 0:
        print(error, file=sys.stderr)
    else:
        # Launchers kill all workers when the first one exits, so wait for worker 0 to report the mistake. A
        # worker that survives the wait is the only one that found it, except under srun, which may leave all
        # workers running and names those that failed.
        time.sleep(SECONDS_FOR_WORKER_0)
        if place.launcher != "srun":
            print(f"worker {place.rank} on {socket.gethostname()}: {error}", file=sys.stderr)
    raise typer.Exit(error.exit_code)


def start_locally(workers: int) -> None:
    """Become the launcher of local workers."""
    place = launched()
    if place.size > 1:
        refuse(InputError(f"-np inside {place.launcher}: leave it out, the workers are there"))
    arguments = _without_np(sys.argv[1:])
    try:
        raise typer.Exit(launch_local(workers, arguments, on_terminal=sys.stderr.isatty()))
    except HpcdatError as error:
        refuse(error)


def _without_np(arguments: list[str]) -> list[str]:
    """The command line without ``-np N``, in any of its forms."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in ("-np", "--workers"):
            skip = True
        elif not argument.startswith(("-np=", "--workers=")):
            kept.append(argument)
    return kept


def as_worker(work: Callable[[Communicator, StopRequest], T], job: Job | None) -> T | None:
    """Do a worker's part; what came of it on worker 0, None on the others; failures end the process."""
    stop = StopRequest()
    # Before the workers meet: from then on, what one takes longer than the others counts as stalling.
    import hpcdat.commands.train  # noqa: F401
    from hpcdat.distributed.initialization import init_communicator

    try:
        team = init_communicator(
            job.stall_timeout if job else STALL_TIMEOUT,
            divisible=job is not None
            and (job.exchange.protocol == "hierarchical" or job.smoothing.workers > 1),
        )
    except HpcdatError as error:
        print(f"hpcdat: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)
    try:
        done = work(team, stop)
        team.close()
        return done if team.is_rank0 else None
    except HpcdatError as error:
        _end(team, error)
    except KeyboardInterrupt:
        print(f"hpcdat: worker {team.rank} on {team.host} was interrupted", file=sys.stderr, flush=True)
        os._exit(Exit.INTERRUPTED)
    except BaseException:
        text = traceback.format_exc()
        print(f"hpcdat: worker {team.rank} on {team.host} failed:\n{text}", file=sys.stderr, flush=True)
        os._exit(Exit.FAILURE)


def _end(team: Communicator, error: HpcdatError) -> NoReturn:
    """Report an expected failure and exit; the launcher then ends the other workers."""
    if not error.everywhere:
        print(f"hpcdat: worker {team.rank} on {team.host}: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)
    if team.is_rank0:
        print(f"hpcdat: {error}", file=sys.stderr, flush=True)
    # Launchers kill all workers when the first one exits, so wait until worker 0 has reported the failure.
    team.all_gather_object(None, "the end")
    sys.stdout.flush()
    os._exit(error.exit_code)
