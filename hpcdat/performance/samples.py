"""Samples of a step's time, taken until they agree."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from hpcdat.errors import WorkerError

SAMPLES, MIN_SAMPLES = 9, 3
"""Consecutive samples that must agree, and how many of long steps."""
SECONDS_TO_AGREE = 30.0
"""Time after which samples that do not agree are an error."""
MAX_SPREAD = 0.15
"""Largest interquartile range of samples that agree, as a fraction of their median."""
MAX_WAITING = 0.1
"""Largest fraction of the time, in the median, for which a thread waits for a core in samples that agree."""


@dataclass(frozen=True)
class Sample:
    """Seconds of a step, means over the steps of a sample.

    Attributes:
        step: the whole step.
        attack, gradient: the inner maximisation and the local gradient, parts of it.
        waiting: fraction of the time for which the thread that waited most was ready to run and waited for a
            core; 0 if unknown.
    """

    step: float
    attack: float
    gradient: float
    waiting: float = 0.0


@dataclass(frozen=True)
class Spread:
    """How far samples of a step's time differ.

    Attributes:
        count: number of samples.
        median: seconds.
        interquartile: difference of the upper and the lower quartile, seconds.
    """

    count: int
    median: float
    interquartile: float

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Spread:
        """The spread of two or more samples."""
        lower, middle, upper = quantiles((sample.step for sample in samples), n=4, method="inclusive")
        return cls(len(samples), middle, upper - lower)

    @property
    def relative(self) -> float:
        """Interquartile range over median."""
        return self.interquartile / self.median

    def describe(self) -> str:
        """``71.2 ms a step, the median of 9 samples with an interquartile range of 2.1 ms (3 %)``."""
        return (
            f"{_duration(self.median)} a step, the median of {self.count} samples with an interquartile "
            f"range of {_duration(self.interquartile)} ({100 * self.relative:.0f} %)"
        )


def _duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def take_until_agreed(
    take: Callable[[], Sample],
    poll: Callable[[], None],
    *,
    own_cores: bool,
    clock: Callable[[], float] = time.monotonic,
) -> list[Sample]:
    """Take samples until the last ones agree: SAMPLES of them, fewer of steps that take seconds.

    Args:
        take: takes a sample.
        poll: called between samples; may raise to end the measurement.
        own_cores: whether every thread of the trial has a core, so that it waits only for other processes.
        clock: seconds.

    Raises:
        WorkerError: the machine is too noisy; the message gives the spread of the last samples.
    """
    began = clock()
    taken = [take()]
    fitting = int(SECONDS_TO_AGREE / 2 / max(clock() - began, 1e-9))
    count = min(max(fitting, MIN_SAMPLES), SAMPLES)
    while True:
        poll()
        last = taken[-count:]
        if len(last) == count:
            spread, waiting = Spread.of(last), median(sample.waiting for sample in last)
            if spread.relative <= MAX_SPREAD and (waiting <= MAX_WAITING or not own_cores):
                return last
            if len(taken) >= 2 * count and clock() - began > SECONDS_TO_AGREE:
                raise WorkerError(_too_noisy(spread, waiting if own_cores else 0.0, clock() - began))
        taken.append(take())


def _too_noisy(spread: Spread, waiting: float, seconds: float) -> str:
    others = (
        f", and for {100 * waiting:.0f} % of the time (at most {100 * MAX_WAITING:.0f} % is accepted) a "
        "thread waited for a core that other processes used"
        if waiting > MAX_WAITING
        else ""
    )
    return (
        f"the machine is too noisy to time a step: {spread.describe()} after {seconds:.0f} s (at most "
        f"{100 * MAX_SPREAD:.0f} % is accepted){others}; end other processes, or start hpcdat plan on an "
        "idle machine; --bytes times nothing"
    )


def seconds_waited(tasks: Path = Path("/proc/self/task")) -> dict[str, float]:
    """Seconds for which each thread of this process has been ready to run and waited for a core.

    Args:
        tasks: folder of the threads that Linux keeps for each process; without it, no thread is known.
    """
    waited = {}
    for file in tasks.glob("*/schedstat"):
        try:
            # Nanoseconds on a core, nanoseconds of waiting for one, time slices.
            waited[file.parent.name] = 1e-9 * int(file.read_text().split()[1])
        except (OSError, ValueError, IndexError):  # a thread has ended
            continue
    return waited


def longest_wait(before: dict[str, float], after: dict[str, float]) -> float:
    """Seconds that the thread which waited most has waited between two calls of :func:`seconds_waited`."""
    return max((seconds - before.get(thread, 0.0) for thread, seconds in after.items()), default=0.0)
