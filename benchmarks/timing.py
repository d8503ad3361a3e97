"""Timing of alternating parts, for all benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.performance.benchmark_file import Row, Value
from hpcdat.performance.clock import seconds

T = TypeVar("T")


def rotated(things: Sequence[T], number: int) -> list[T]:
    """The order of things in a round: each round begins with another one.

    Args:
        things: parts, or rows of a benchmark.
        number: of the round, from 0.
    """
    turn = number % len(things)
    return [*things[turn:], *things[:turn]]


def in_turns(
    parts: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    workers: Communicator | None = None,
) -> dict[str, list[float]]:
    """Seconds of every part in every round; the parts run one after the other in rotating order.

    The first round is not counted: it allocates memory and selects kernels.

    Args:
        parts: what is timed, by name.
        rounds: that are counted.
        device: that computes.
        workers: who begin each part together; the seconds are those of the slowest. None: this process alone.
    """
    together = workers or SingleProcess()
    names = list(parts)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in rotated(names, number):
            together.all_gather_object(None, "ready")
            duration = seconds(parts[name], device)
            slowest = max(together.all_gather_object(duration, "seconds"))
            if number > 0:
                times[name].append(slowest)
    return times


def rows_of(times: Mapping[str, list[float]], **common: Value) -> list[Row]:
    """A row for each part: its name is the parameter ``part``, next to those that all rows have in common."""
    return [Row(parameters={"part": name, **common}, seconds=each) for name, each in times.items()]


def settings_of(
    workers: Communicator, device: torch.device, rounds: int, **others: object
) -> dict[str, object]:
    """The settings that the files of all benchmarks have, and others of this one."""
    return {
        "workers": workers.size,
        "nodes": workers.nodes,
        "workers_per_node": workers.size // workers.nodes,
        "engine": workers.engine,
        "transport": workers.transport,
        "device": device.type,
        "repetitions": rounds,
        "warm_up": 1,
        **others,
    }
