"""Whether a measurement can be repeated: how far samples differ, and what other processes used meanwhile."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

AGREEMENT = 0.1
"""How far the medians of two runs may differ."""
CONFIDENCE = 0.95
"""Level of the intervals of medians."""
MOST_OF_OTHERS = AGREEMENT / 2
"""Largest share of a machine's processor time that other processes may use: what they take, a run loses."""
USER, NICE, SYSTEM, STEAL = 0, 1, 2, 7
"""Columns of ``/proc/stat`` in which processes and other virtual machines compute. Interrupts are not
counted: they are the network's."""


def interval_of_median(samples: Sequence[float]) -> tuple[float, float] | None:
    """A confidence interval of the median whatever the distribution: two of the sorted samples.

    The median lies below the k-th smallest of n samples with the probability that at most k - 1 of n throws
    of a coin are heads.

    Returns:
        The bounds, with :data:`CONFIDENCE` or more; None if there are too few samples, below six.
    """
    count, below, k = len(samples), 0.0, 0
    while True:
        below += math.comb(count, k) / 2**count
        if below > (1 - CONFIDENCE) / 2:
            break
        k += 1
    ordered = sorted(samples)
    return (ordered[k - 1], ordered[-k]) if k else None


def half_width(samples: Sequence[float]) -> float | None:
    """Half the width of :func:`interval_of_median` over the median; None if it is unknown."""
    bounds = interval_of_median(samples)
    return (bounds[1] - bounds[0]) / 2 / median(samples) if bounds and median(samples) else None


def is_steady(samples: Sequence[float]) -> bool:
    """Whether the median of as many more samples should agree within :data:`AGREEMENT`.

    The difference of two medians varies sqrt(2) times as much as one of them. Of rows whatever their spread,
    fewer than 5 % are called steady and yet differ by more.
    """
    width = half_width(samples)
    return width is not None and math.sqrt(2) * width <= AGREEMENT


def seconds_computed(stat: str) -> float:
    """Seconds for which the processors of a machine have computed since it was started.

    Args:
        stat: contents of ``/proc/stat``.
    """
    ticks = [int(number) for number in stat.split("\n", 1)[0].split()[1:]]
    return sum(ticks[i] for i in (USER, NICE, SYSTEM, STEAL)) / os.sysconf("SC_CLK_TCK")


class Processors:
    """What one worker and its machine compute from now on."""

    def __init__(self) -> None:
        self._before = self._read()

    def report(self) -> dict[str, Any]:
        """Seconds elapsed, and computed by this process and by its machine, since the beginning."""
        own, machine, now = (later - sooner for later, sooner in zip(self._read(), self._before, strict=True))
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {
            "machine": boot,
            "host": os.uname().nodename,
            "cores": os.cpu_count(),
            "seconds": now,
            "own": own,
            "computed": machine,
        }

    @staticmethod
    def _read() -> tuple[float, float, float]:
        return time.process_time(), seconds_computed(Path("/proc/stat").read_text()), time.monotonic()


def added(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The reports of one worker on several times, as one."""
    sums = {key: sum(report[key] for report in reports) for key in ("seconds", "own", "computed")}
    return reports[0] | sums


def used_by_others(reports: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The share of each machine's processor time that processes other than the workers used.

    Args:
        reports: of all workers, from :meth:`Processors.report`. Emulated nodes are one machine.

    Returns:
        By host name of the first worker on each machine; at least 0.
    """
    shares = {}
    for machine in dict.fromkeys(report["machine"] for report in reports):
        here = [report for report in reports if report["machine"] == machine]
        first = here[0]
        others = first["computed"] - sum(report["own"] for report in here)
        shares[first["host"]] = max(others / (first["cores"] * first["seconds"]), 0.0)
    return shares


def describe(reports: Sequence[dict[str, Any]], samples: Sequence[Sequence[float]]) -> str:
    """Whether the machine was quiet, in a sentence for the notes.

    Args:
        reports: as for :func:`used_by_others`.
        samples: seconds of every row.
    """
    shares = used_by_others(reports)
    busy = [
        f"{share:.0%} of the processor time of {host}"
        for host, share in shares.items()
        if share > MOST_OF_OTHERS
    ]
    steady = sum(map(is_steady, samples))
    rows = f"of {len(samples)} rows {steady} are steady: another run should agree within {AGREEMENT:.0%}"
    if all(interval_of_median(row) is None for row in samples):
        rows = "there are too few repetitions to tell how far another run may differ"
    if busy:
        limit = f"at most {MOST_OF_OTHERS:.0%} is quiet"
        return f"not quiet: other processes used {', '.join(busy)} ({limit}); {rows}"
    most = f"other processes used at most {max(shares.values(), default=0.0):.0%} of the processor time"
    return f"{'quiet' if steady == len(samples) else 'not steady'}: {most}; {rows}"
