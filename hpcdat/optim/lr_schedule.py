"""The learning rate: linear warm-up, then piecewise, cyclic or polynomial decay."""

from __future__ import annotations

from hpcdat.config.job import Job
from hpcdat.config.methods import METHODS


def learning_rate(job: Job, progress: float, global_batch: int) -> float:
    """eta_t after so many epochs.

    Warm-up (DAT, supplement 4.1): epoch k = 1..W runs at (k/W) eta, or, by step, the rate grows
    linearly from ``warmup_start`` eta. Where eta is above 0.2 the paper trains five warm-up epochs in
    front of the 30; a job says the same with 35 epochs and every decay 5 later. Afterwards:

    - piecewise: every entry of ``decay_epochs`` that is done multiplies eta by ``decay_factor``;
    - cyclic (Wong et al. 2020): linear from 0 to eta at ``peak_epoch``, and to 0 at the end;
    - polynomial: eta (1 - t/T)^power over the epochs after the warm-up.

    With method ``dat-lsgd`` eta is ``optimizer.lr`` for every 256 images of the global batch.

    Args:
        job: its optimiser, schedule, method and number of epochs.
        progress: epochs done, in [0, epochs]; within an epoch a fraction.
        global_batch: images of all workers in a full step.
    """
    schedule, end = job.schedule, job.epochs
    eta = job.optimizer.lr * (global_batch / 256 if METHODS[job.method].scaled_rate else 1)
    if progress < schedule.warmup_epochs:
        if schedule.warmup_by == "epoch":
            return eta * (int(progress) + 1) / schedule.warmup_epochs
        share = progress / schedule.warmup_epochs
        return eta * (schedule.warmup_start + (1 - schedule.warmup_start) * share)
    if schedule.name == "cyclic":
        peak = schedule.peak_epoch or 0.4 * end
        return eta * min(progress / peak, (end - progress) / (end - peak))
    if schedule.name == "polynomial":
        left: float = 1 - (progress - schedule.warmup_epochs) / (end - schedule.warmup_epochs)
        return float(eta * left**schedule.power)
    return eta * schedule.decay_factor ** sum(progress >= done for done in schedule.decay_epochs)
