"""``hpcdat train``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpcdat.cli.options import SetOption, Settings, WorkersOption
from hpcdat.cli.worker_process import as_worker, reported_once, start_locally
from hpcdat.config.job_file import read_job
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.report.result_table import result_table
from hpcdat.slurm.preemption import in_touch
from hpcdat.storage.run_folder import Result

if TYPE_CHECKING:
    from hpcdat.distributed.communicator import Communicator


def train(
    job: Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job.", show_default=False)],
    settings: Settings = None,
    set_: SetOption = None,
    workers: WorkersOption = 1,
    seeds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Train with N seeds, one after the other, and average.")
    ] = 1,
    overwrite: Annotated[bool, typer.Option(help="Start over where run_dir holds an earlier run.")] = False,
) -> None:
    """Train a model as a job says, and evaluate it.

    Run by itself it is one worker; `-np N` starts N; under mpirun, horovodrun or srun every
    process is a worker. An unfinished run in run_dir is taken up again. Ctrl-C (or SIGTERM,
    SIGUSR2) stops after the step at hand and leaves a checkpoint. With `--seeds N` the runs are
    in run_dir/seed-0, seed-1, ..., and the table ends with their mean and standard deviation.
    """
    resolved = reported_once(lambda: read_job(job, [*(set_ or []), *(settings or [])]))
    if workers > 1:
        start_locally(workers)

    def work(team: Communicator, stop: StopRequest) -> dict[Path, Result]:
        from hpcdat.commands.train import train, train_seeds

        if seeds == 1:
            with in_touch(resolved.run_dir, stop) if team.is_rank0 else nullcontext():
                return {resolved.run_dir: train(resolved, team, stop, overwrite=overwrite)}
        return train_seeds(resolved, seeds, team, stop, overwrite=overwrite)

    results = as_worker(work, resolved)
    if results is not None:
        print(f"\n{result_table(results, mean=seeds > 1)}")
