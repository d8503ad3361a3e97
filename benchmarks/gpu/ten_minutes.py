"""Robust CIFAR-10 in ten minutes: as ``speedrun``, with jobs/cifar10-ten-minutes.yaml and one seed.

It has no ratios.
"""

from __future__ import annotations

from gpu import speedrun
from gpu.section import Call, Keep, Measured, Table


def measure(call: Call, before: Measured, keep: Keep) -> None:
    """Train and evaluate the first seed."""
    speedrun.measure_job("cifar10-ten-minutes.yaml", call.seeds[:1], call, before, keep)


def ratios(measured: Measured) -> dict[str, float | str]:
    """None."""
    return {}


def tables(measured: Measured) -> dict[str, Table]:
    """A row for the seed."""
    return speedrun.tables_of_runs("Robust CIFAR-10 in ten minutes", measured)
