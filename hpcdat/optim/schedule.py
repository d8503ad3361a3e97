"""The learning rate of an epoch: linear warm-up, then piecewise decay."""

from __future__ import annotations

from hpcdat.job import Schedule


def learning_rate(epoch: int, eta: float, schedule: Schedule) -> float:
    """eta_t in epoch ``epoch`` (from 0).

    Warm-up epoch k = 1..W runs at (k/W) eta (DAT, supplement 4.1); afterwards every entry of
    ``decay_epochs`` that is done multiplies the rate by ``decay_factor``. The paper adds its five
    warm-up epochs in front of the 30 of training; a job says the same with 35 epochs and every
    decay 5 later.

    Args:
        epoch: epochs done so far.
        eta: the job's ``optimizer.lr``.
        schedule: the job's ``schedule``.
    """
    if epoch < schedule.warmup_epochs:
        return eta * (epoch + 1) / schedule.warmup_epochs
    return eta * schedule.decay_factor ** sum(epoch >= done for done in schedule.decay_epochs)
