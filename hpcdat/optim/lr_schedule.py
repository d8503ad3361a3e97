"""The learning rate: linear warm-up, then piecewise, cyclic or polynomial decay."""

from __future__ import annotations

from hpcdat.config.job import Job
from hpcdat.config.methods import METHODS, REFERENCE_BATCH


def learning_rate(job: Job, epoch: int, step: int, steps: int, global_batch: int) -> float:
    """eta_t of one update.

    Warm-up is in front of the ``epochs`` of the job (``extra_warmup_epochs``: DAT, supplement 4.1) or
    their first part (``warmup_epochs``). By epoch, epoch k = 1..W of it runs at (k/W) eta. By step, update
    i = 0..n-1 of n runs at (i + 1)/n of eta, or, with a ``warmup_start`` s above 0, at s + (1 - s) i/n of
    it. Then, with epochs, and T as their number, counted from after the extra ones:

    - piecewise: every entry of ``decay_epochs`` that is done multiplies eta by ``decay_factor``;
    - cyclic (Wong et al. 2020): linear from 0 to eta at ``peak_epoch``, and to 0 at the end; rising, an
      update takes the rate at its end, falling, the rate at its start, so no update has rate 0;
    - polynomial: eta (1 - t/T)^power over the epochs after the warm-up, t at the start of an update.

    With method ``dat-lsgd`` eta is ``optimizer.lr`` for every 256 images of the global batch, and its
    warm-up by step starts at ``optimizer.lr`` itself (Goyal et al. 2017, Xie et al. 2019), or at eta where
    that is less.

    Args:
        job: resolved: its optimiser, schedule, method and number of epochs.
        epoch: epochs done, extra warm-up included, 0 <= epoch < ``job.total_epochs``.
        step: updates done of the next one, 0 <= step < steps.
        steps: updates in an epoch.
        global_batch: images of all workers in a full step.
    """
    schedule, extra, end = job.schedule, job.extra_warmup_epochs, job.epochs
    scale = global_batch / REFERENCE_BATCH if METHODS[job.method].scaled_rate else 1.0
    eta = job.optimizer.lr * scale
    if epoch < extra or epoch - extra < schedule.warmup_epochs:
        length, k = (extra, epoch) if epoch < extra else (schedule.warmup_epochs, epoch - extra)
        if schedule.warmup_by == "epoch":
            return eta * (k + 1) / length
        i, n = k * steps + step, length * steps
        start = min(1.0, 1 / scale) if schedule.warmup_start is None else schedule.warmup_start
        return eta * (start + (1 - start) * i / n if start else (i + 1) / n)
    i, n = (epoch - extra) * steps + step, end * steps
    if schedule.name == "cyclic":
        peak = (schedule.peak_epoch or 0.4 * end) * steps
        return eta * min((i + 1) / peak, 1.0, (n - i) / (n - peak))
    progress = i / steps
    if schedule.name == "polynomial":
        left: float = 1 - (progress - schedule.warmup_epochs) / (end - schedule.warmup_epochs)
        return float(eta * left**schedule.power)
    return eta * schedule.decay_factor ** sum(progress >= done for done in schedule.decay_epochs)
