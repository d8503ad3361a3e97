"""The clock of all benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from hpcdat.performance.clock import seconds


def in_turns(
    parts: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every part in every round, one after the other in an order that rotates.

    A round before them warms up: memory is taken, kernels are chosen.
    """
    names = list(parts)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            spent = seconds(parts[name], device)
            if number > 0:
                times[name].append(spent)
    return times
