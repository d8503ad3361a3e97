"""The section ``averaging`` of a job."""

from __future__ import annotations

from pydantic import Field

from hpcdat.config.settings import Settings


class Averaging(Settings):
    """Averages of the weights over training, evaluated next to the weights themselves."""

    ema: float | None = Field(None, gt=0, lt=1)
    """exponential moving average: its decay in each step, such as 0.999; after t updates it is at most
    (1 + t) / (10 + t), so that the first weights are soon forgotten"""
    swa_from: int | None = Field(None, ge=1)
    """stochastic weight averaging (Izmailov et al. 2018): the equal average of the weights at the end of this
    epoch and of each later one; epochs of `schedule.extra_warmup_epochs` count"""

    @property
    def is_on(self) -> bool:
        """Whether weights are averaged."""
        return self.ema is not None or self.swa_from is not None
