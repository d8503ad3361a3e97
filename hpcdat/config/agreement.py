"""Settings of averaged weights and of synchronised batch norm that do not go together with others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcdat.config.settings import refusal

if TYPE_CHECKING:
    from hpcdat.config.job import Job


def check_averaging(job: Job) -> None:
    """Check that averages of a job's weights can be formed.

    Raises:
        PydanticCustomError: they cannot.
    """
    averaging = job.averaging
    if averaging.ema is not None and averaging.swa_from is not None:
        raise refusal("averaging.swa_from", "one kind of average, ema or swa_from")
    if (averaging.swa_from or 0) > job.total_epochs:
        raise refusal("averaging.swa_from", f"at most {job.total_epochs}, the last epoch")


def check_batch_norm(job: Job) -> None:
    """Check that all workers of a job compute the same passes, if batch norm is to be synchronised.

    Raises:
        PydanticCustomError: they do not.
    """
    if job.model.batch_norm == "local":
        return
    reasons = {
        "virtual_workers": (job.virtual_workers > 1, "a worker computes the batches of several one by one"),
        "concurrent.place": (job.concurrent.place == "workers", "attack workers do not train"),
        "concurrent.halves": (job.concurrent.halves == "apart", "workers train different branches"),
        "smoothing.workers": (job.smoothing.workers > 1, "workers of a team have copies of the same images"),
        "model.compiled": (job.model.compiled, "compiled code cannot wait for other workers"),
    }
    for key, (is_so, why) in reasons.items():
        if is_so:
            raise refusal("model.batch_norm", f"local with this {key}: {why}")
