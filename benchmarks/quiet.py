"""Whether the machines were quiet: what other processes used meanwhile, and how many rows are steady."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcdat.performance.benchmark_file import Row
from hpcdat.performance.steadiness import AGREEMENT, is_steady

MOST_OF_OTHERS = AGREEMENT / 2
"""Largest share of a machine's processor time that other processes may use: what they take, a run loses."""
USER, NICE, SYSTEM, STEAL = 0, 1, 2, 7
"""Columns of ``/proc/stat`` in which processes and other virtual machines compute. Interrupts are not
counted: they are the network's."""


def seconds_computed(stat: str) -> float:
    """Seconds for which the processors of a machine have computed since it was started.

    Args:
        stat: contents of ``/proc/stat``.
    """
    ticks = [int(number) for number in stat.split("\n", 1)[0].split()[1:]]
    return sum(ticks[i] for i in (USER, NICE, SYSTEM, STEAL)) / os.sysconf("SC_CLK_TCK")


class Processors:
    """What one worker and its machine compute from now on.

    Args:
        children: whether to count the processes that it starts as well, once they have ended.
    """

    def __init__(self, *, children: bool = False) -> None:
        self._children = children
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

    def _read(self) -> tuple[float, float, float]:
        own = time.process_time()
        if self._children:
            times = os.times()
            own += times.children_user + times.children_system
        return own, seconds_computed(Path("/proc/stat").read_text()), time.monotonic()


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


def describe(reports: Sequence[dict[str, Any]], rows: Sequence[Row]) -> str:
    """Whether the machine was quiet, in a sentence for the notes.

    Args:
        reports: as for :func:`used_by_others`.
        rows: what was measured meanwhile.
    """
    shares = used_by_others(reports)
    busy = [
        f"{share:.0%} of the processor time of {host}"
        for host, share in shares.items()
        if share > MOST_OF_OTHERS
    ]
    verdicts = list(map(is_steady, rows))
    steady = verdicts.count(True)
    known = f"of {len(rows)} rows {steady} are steady: another run should agree within {AGREEMENT:.0%}"
    if not any(verdict is not None for verdict in verdicts):
        known = "there are too few repetitions to tell how far another run may differ"
    if busy:
        limit = f"at most {MOST_OF_OTHERS:.0%} is quiet"
        return f"not quiet: other processes used {', '.join(busy)} ({limit}); {known}"
    most = f"other processes used at most {max(shares.values(), default=0.0):.0%} of the processor time"
    return f"{'quiet' if steady == len(rows) else 'not steady'}: {most}; {known}"
