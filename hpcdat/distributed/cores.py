"""The cores that this worker may use, and whether others use them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

STEPS_OBSERVED, SECONDS_OF_STEPS = 3, 5.0
"""Least number and time of the steps over which a run observes whether its threads wait for cores."""
LARGEST_SHARE_WAITED = 0.4
"""Time that the threads of a worker may wait for a core, all together, as a part of the elapsed time."""
SECONDS_OBSERVED = 1.0
"""How long the doctor observes the cores of a node."""


def usable_cores() -> float:
    """Cores that this process may use: those it is bound to, or its cgroup's quota if that is less."""
    quota = cgroup_quota()
    bound = float(len(os.sched_getaffinity(0)))
    return bound if quota is None else min(bound, quota)


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Cores that the process's control groups allow on average; None without a limit.

    Containers are often limited by this quota alone, and see all cores of the machine.

    Args:
        root: where control groups are mounted.
        own: names this process's groups.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        folder = root if not controllers else root / "cpu"
        if controllers and "cpu" not in controllers.split(","):
            continue
        # A parent's limit holds, too. In a container, its own group is mounted at the root.
        path = folder / name.lstrip("/")
        for group in (path, *path.parents):
            quotas += _quota_of(group)
            if group == folder:
                break
    return min(quotas, default=None)


def _quota_of(group: Path) -> list[float]:
    """The limit of one group, of version 2 or 1; empty if it has none."""
    try:
        if (group / "cpu.max").exists():
            limit, period = (group / "cpu.max").read_text().split()
        else:
            limit, period = (
                (group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
            )
        return [int(limit) / int(period)] if limit not in ("max", "-1") else []
    except (OSError, ValueError):
        return []


def share_of_cores(mine: Iterable[int], workers: Sequence[Iterable[int]], quota: float | None) -> int:
    """Number of cores for one worker, at least one: cores that several workers may use are divided.

    Args:
        mine: the cores that this worker is bound to.
        workers: those of every worker on this node, this one included.
        quota: cores that the node's workers may use on average together; None for no limit.
    """
    sets = [set(cores) for cores in workers]
    share = sum(1 / max(1, sum(core in cores for cores in sets)) for core in set(mine))
    if quota is not None:
        share = min(share, quota / len(sets))
    # The sum of three thirds is a little less than one.
    return max(1, int(share + 1e-6))


def busy_cores(cores: Iterable[int], before: str, after: str) -> float:
    """How many of some cores were busy between two readings of ``/proc/stat``."""
    busy = 0.0
    first, last = _core_times(before), _core_times(after)
    for core in set(cores) & first.keys() & last.keys():
        idle, total = (last[core][i] - first[core][i] for i in (0, 1))
        busy += 1 - idle / total if total > 0 else 0.0
    return busy


def observe_cores() -> float:
    """How many of this process's cores others use, observed while it sleeps for a second."""
    readings = []
    for seconds in (SECONDS_OBSERVED, 0.0):
        try:
            readings.append(Path("/proc/stat").read_text())
        except OSError:
            return 0.0
        time.sleep(seconds)
    return busy_cores(os.sched_getaffinity(0), *readings)


def _core_times(stat: str) -> dict[int, tuple[int, int]]:
    """Of each core the idle time and all time, in ticks."""
    times = {}
    for line in stat.splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu") and name[3:].isdecimal():
            # user, nice, system, idle, iowait, irq, softirq, steal; guests are counted as user already.
            ticks = [int(number) for number in numbers[:8]]
            times[int(name[3:])] = (sum(ticks[3:5]), sum(ticks))
    return times


def seconds_waited_for_cores(tasks: Path = Path("/proc/self/task")) -> float | None:
    """How long the threads of this process have been ready to run without a core; None if that is unknown."""
    waited = 0
    try:
        for thread in tasks.iterdir():
            waited += int((thread / "schedstat").read_text().split()[1])
    except FileNotFoundError:
        # A thread has just ended.
        return None
    except (OSError, ValueError, IndexError):
        return None
    return waited / 1e9


class CoreUse:
    """Observes in the first steps of a run whether its threads wait for cores.

    Threads that compute together wait for the last of them: if another process uses one of their cores, all
    take many times as long.

    Args:
        threads: that compute together; one is slowed down only by what it loses.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._steps = 0
        self._began: tuple[float, float] | None = None
        self._ended = threads == 1 or "OMP_NUM_THREADS" in os.environ

    def step(self) -> str:
        """Count a step.

        Returns:
            A warning, once, after the last observed step; otherwise an empty text.
        """
        if self._ended:
            return ""
        now, waited = time.perf_counter(), seconds_waited_for_cores()
        if waited is None:
            return ""
        if self._began is None:
            # The first step includes what is done only once.
            self._began = now, waited
            return ""
        self._steps += 1
        elapsed = now - self._began[0]
        if self._steps < STEPS_OBSERVED or elapsed < SECONDS_OF_STEPS:
            return ""
        self._ended = True
        return self._warning(elapsed, waited - self._began[1])

    def _warning(self, elapsed: float, waited: float) -> str:
        if waited < LARGEST_SHARE_WAITED * elapsed:
            return ""
        return (
            f"in {self._steps} steps ({elapsed:.1f} s) the {self.threads} threads of this worker waited "
            f"{waited:.1f} s for a core: other processes use the same cores, and each step lasts as long as "
            "its slowest thread. Set OMP_NUM_THREADS to the number of free cores, such as 1, or use cores of "
            "its own"
        )
