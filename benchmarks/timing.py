"""Timing of alternating parts, for all benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from hpcdat.performance.clock import seconds


def in_turns(
    parts: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every part in every round; the parts run one after the other in rotating order.

    The first round is not counted: it allocates memory and selects kernels.
    """
    names = list(parts)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            duration = seconds(parts[name], device)
            if number > 0:
                times[name].append(duration)
    return times
