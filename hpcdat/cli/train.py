"""``hpcdat train``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpcdat.cli.options import JobArgument, SetOption, Settings, WorkersOption
from hpcdat.cli.worker_process import as_worker, reported_once, start_locally
from hpcdat.config.job_file import read_job
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.report.result_table import result_table
from hpcdat.slurm.preemption import connected_to_batch_script
from hpcdat.storage.moved_run import folder_of
from hpcdat.storage.run_folder import Result

if TYPE_CHECKING:
    from hpcdat.distributed.communicator import Communicator


def train(
    job: JobArgument,
    settings: Settings = None,
    set_: SetOption = None,
    workers: WorkersOption = 1,
    seeds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Train with N seeds in succession and average.")
    ] = 1,
    overwrite: Annotated[bool, typer.Option(help="Discard an earlier run in run_dir and restart.")] = False,
) -> None:
    """Train and evaluate the model of a job.

    \b
    Examples:
      hpcdat train jobs/demo.yaml
      hpcdat train jobs/demo.yaml -np 2 epochs=20 attack.eps=4/255
      mpirun -np 4 hpcdat train jobs/demo.yaml
      torchrun --nproc-per-node 4 -m hpcdat train jobs/demo.yaml
      hpcdat train jobs/demo.yaml gradient_accumulation=4 averaging.ema=0.999

    Without a launcher the command is a single worker; `-np N` starts N workers; under mpirun, srun, torchrun
    or horovodrun every process is a worker. An unfinished run in run_dir is resumed. Ctrl-C (or SIGTERM,
    SIGUSR2) stops after the current step and leaves a checkpoint. With `--seeds N` the runs are in
    run_dir/seed-0, seed-1, ..., and the table ends with their mean and standard deviation.
    """
    replaced = [*(set_ or []), *(settings or [])]
    resolved = reported_once(lambda: read_job(job, replaced))
    run_dir = reported_once(lambda: folder_of(job, resolved, replaced))
    if workers > 1:
        start_locally(workers, resolved)
    moved_from, resolved = resolved.run_dir, resolved.model_copy(update={"run_dir": run_dir})

    def work(workers: Communicator, stop: StopRequest) -> dict[Path, Result]:
        from hpcdat.commands.train import train, train_seeds

        if run_dir != moved_from and workers.is_rank0:
            print(f"the run has moved from {moved_from}: continuing in {run_dir}", flush=True)
        if seeds == 1:
            with connected_to_batch_script(resolved.run_dir, stop) if workers.is_rank0 else nullcontext():
                return {resolved.run_dir: train(resolved, workers, stop, overwrite=overwrite)}
        return train_seeds(resolved, seeds, workers, stop, overwrite=overwrite)

    results = as_worker(work, resolved)
    if results is not None:
        print(f"\n{result_table(results, mean=seeds > 1)}")
