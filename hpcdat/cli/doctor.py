"""``hpcdat doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpcdat.cli.options import SetOption, Settings, WorkersOption
from hpcdat.cli.worker_process import as_worker, reported_once, start_locally
from hpcdat.config.job import Job
from hpcdat.config.job_file import read_job
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.errors import Exit, InputError

if TYPE_CHECKING:
    from hpcdat.distributed.communicator import Communicator
    from hpcdat.doctor.examination import Report


def doctor(
    job: Annotated[
        Path | None, typer.Argument(metavar="JOB.yaml", help="The job.", show_default=False)
    ] = None,
    settings: Settings = None,
    set_: SetOption = None,
    workers: WorkersOption = 1,
    json: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write facts, findings and links there.")
    ] = None,
) -> None:
    """Check the nodes of a run, and measure the links between them.

    Start it as you would start `hpcdat train`, on the same nodes. It checks Horovod, GPUs, versions, clocks,
    cores and links, and, given a job, its images and run_dir. The exit code is 1 if a check fails; warnings
    do not count.
    """
    replaced = [*(set_ or []), *(settings or [])]

    def read() -> Job | None:
        if job is None and replaced:
            raise InputError("settings replace those of a job, and none is named")
        return read_job(job, replaced) if job else None

    resolved = reported_once(read)
    if workers > 1:
        start_locally(workers)

    def work(team: Communicator, stop: StopRequest) -> Report:
        from hpcdat.doctor.examination import examine

        return examine(resolved, team, stop)

    found = as_worker(work, resolved)
    if found is None:
        return
    print(found.in_words(), flush=True)
    if json:
        reported_once(lambda: found.write(json))
    if found.failed:
        raise typer.Exit(Exit.FAILURE)
