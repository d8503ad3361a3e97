"""The result of a run, for its folder and the result table."""

from __future__ import annotations

from dataclasses import asdict
from statistics import median
from typing import Any

from hpcdat.config.job import Job
from hpcdat.distributed.communicator import Communicator
from hpcdat.evaluation.accuracy import Accuracy
from hpcdat.performance.autotune import exchange_of_run
from hpcdat.report.result_table import in_pixel_units, result_table
from hpcdat.storage.run_folder import Result, RunFolder
from hpcdat.training.roles import assign_roles, first_workers


def conclude_run(
    folder: RunFolder,
    job: Job,
    accuracy: Accuracy,
    epoch: int,
    workers: Communicator,
    *,
    finished: bool,
    aa: tuple[float, int] | None = None,
) -> Result:
    """Write the result of a run on rank 0, and return it on all workers.

    Args:
        folder: with the records of the training.
        job, accuracy, epoch, aa: as for :func:`summarise`.
        workers: all of them call this together.
        finished: whether the training is finished, which is logged.

    Raises:
        InputError, WorkerError: the records cannot be read or the result cannot be written.
    """

    def conclude() -> dict[str, Any]:
        result = summarise(folder, job, accuracy, epoch, aa)
        folder.write_result(result, result_table({folder.path: result}))
        if finished:
            folder.log(event="finished")
        return asdict(result)

    return Result(**workers.on_rank0("write the result", conclude))


def summarise(
    folder: RunFolder, job: Job, accuracy: Accuracy, epoch: int, aa: tuple[float, int] | None = None
) -> Result:
    """The row of a run in the result table.

    Args:
        folder: with the records of the training: workers, times, bytes.
        job: resolved, with the settings of the evaluation.
        accuracy: of the evaluation.
        epoch: number of epochs trained.
        aa: AA in [0, 1] and its number of images; None if not measured.
    """
    environment = folder.environment()
    epochs = folder.metrics("epoch")
    # Epochs with skipped steps or unreadable images are shorter.
    complete = [e for e in epochs if e["images"] == max(e["images"] for e in epochs)]
    attack = job.evaluation
    restarts = f" x {attack.restarts}" if attack.restarts > 1 else ""
    return Result(
        method=job.method,
        seed=job.seed,
        p=environment["nodes"],
        q=len(environment["workers"]) // environment["nodes"],
        batches=len(first_workers(assign_roles(job, len(environment["workers"])))),
        batch=job.batch_size,
        images=accuracy.images,
        ta=accuracy.ta,
        ra=accuracy.ra,
        attack=f"PGD-{attack.steps}{restarts}, {job.attack.norm}, eps {in_pixel_units(attack.resolved_eps)}",
        communication=median(e["communication_seconds"] for e in complete) if complete else None,
        total=median(e["total_seconds"] for e in complete) if complete else None,
        exchange=exchange_of_run(job.exchange, folder.choice_file).describe(),
        megabytes=epochs[-1]["megabytes"] if epochs else None,
        epoch=epoch,
        aa=aa[0] if aa else None,
        aa_images=aa[1] if aa else None,
    )
