"""``hpcdat doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpcdat.cli.options import SetOption, Settings, WorkersOption, path
from hpcdat.cli.worker_process import as_worker, reported_once, start_locally
from hpcdat.config.job import Job
from hpcdat.config.job_file import read_job
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.doctor.library_logs import library_logs
from hpcdat.errors import Exit, InputError

if TYPE_CHECKING:
    from hpcdat.distributed.communicator import Communicator
    from hpcdat.doctor.examination import Report


def doctor(
    job: Annotated[
        Path | None, typer.Argument(metavar="JOB.yaml", help="The job.", show_default=False, parser=path)
    ] = None,
    settings: Settings = None,
    set_: SetOption = None,
    workers: WorkersOption = 1,
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write facts, findings and links to this file.", parser=path),
    ] = None,
) -> None:
    """Check the nodes of a run and measure the links between them.

    \b
    Examples:
      hpcdat doctor jobs/demo.yaml -np 2
      srun -N 6 hpcdat doctor JOB.yaml --json doctor.json

    Start it like `hpcdat train`, on the same nodes. It checks the engine, GPUs, versions, clocks, cores,
    network cards and links, and which transports NCCL and MPI take; given a job, also its run_dir, its
    images, and whether each node reads them as fast as training needs them. The exit code is 1 if a check
    fails; warnings do not change it.
    """
    replaced = [*(set_ or []), *(settings or [])]

    def read() -> Job | None:
        if job is None and replaced:
            raise InputError("settings override those of a job, but no job is given")
        return read_job(job, replaced) if job else None

    resolved = reported_once(read)
    if workers > 1:
        start_locally(workers, resolved)

    with library_logs() as logs:

        def work(workers: Communicator, stop: StopRequest) -> Report:
            from hpcdat.doctor.examination import examine

            logs.release_stdout()
            return examine(resolved, workers, stop, logs)

        report = as_worker(work, resolved)
    if report is None:
        return
    print(report.describe(), flush=True)
    if json:
        reported_once(lambda: report.write(json))
    if report.failed:
        raise typer.Exit(Exit.FAILURE)
