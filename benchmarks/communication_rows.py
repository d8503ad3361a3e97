"""What follows from the samples of an operation: the rows of communication.py's file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import Any

from communication_operations import Operation
from torch import Tensor

from hpcdat.performance.benchmark_file import Row


def check(result: Tensor, expected: Tensor, bound: float) -> dict[str, float]:
    """Compare a result with what was expected.

    Args:
        result: what a worker has got.
        expected: what it should have got.
        bound: how far a right number may be off.

    Returns:
        ``off`` and ``norm``, the squared l2 norms of the error and of what was expected; ``wrong`` numbers.
    """
    result, expected = result.flatten(), expected.flatten()
    if result.shape != expected.shape:
        return {"off": math.inf, "norm": _square(expected), "wrong": max(len(expected), len(result))}
    off = (result - expected).abs()
    # Not a number is never right.
    wrong = int((~(off <= bound)).sum())
    return {"off": _square(off), "norm": _square(expected), "wrong": wrong}


def _square(numbers: Tensor) -> float:
    return float(numbers.double().square().sum())


def row_of(operation: Operation, reports: Sequence[dict[str, Any]], per_round: int) -> Row:
    """The row of an operation.

    Args:
        operation: as worker 0 ran it.
        reports: of all workers, from :class:`communication_samples.Samples`.
        per_round: repetitions of a round.
    """
    timed, messages = operation.timed_by, operation.messages
    observed = reports if timed is None else [reports[timed]]
    seconds = slowest(one["seconds"] for one in observed)
    seconds = [each / messages for each in seconds]
    arrivals = zip(*(one["arrivals"] for one in reports), strict=True)
    events = slowest(one["events"] for one in observed)
    processor = [fmean(each) for each in zip(*(one["processor"] for one in reports), strict=True)]
    sent: dict[str, float] = {}
    for one in reports:
        for kind, count in one["sent"].items():
            sent[kind] = sent.get(kind, 0) + count / messages
    typical = median(seconds)
    figures: dict[str, float | None] = {
        **bandwidths(operation, typical),
        "error": relative_error(reports),
        "wrong": sum(one["wrong"] for one in reports),
        "skew": median(max(each) - min(each) for each in arrivals),
        "processor_seconds": median(processor) / messages,
        "device_seconds": median(events) / messages if events else None,
        "sent": sum(sent.values()) if sent else None,
        "predicted_sent": operation.sent,
    }
    return Row(
        parameters=operation.parameters,
        seconds=seconds,
        per_round=per_round,
        figures=figures | {f"sent by {kind}": count for kind, count in sorted(sent.items())},
    )


def bandwidths(operation: Operation, seconds: float) -> dict[str, float]:
    """Bytes per second of an operation: of its bytes, of what each worker sends, of what that replaces."""
    size = operation.parameters["bytes"]
    assert isinstance(size, int)
    rate = size / seconds
    return {
        "algbw": rate,
        "busbw": operation.carried * rate,
        "effective_busbw": operation.replaced * rate,
    }


def relative_error(reports: Sequence[dict[str, Any]]) -> float | None:
    """The l2 norm of all workers' errors over that of what they expected; None if a result is not finite."""
    off, norm = (sum(one[key] for one in reports) for key in ("off", "norm"))
    return math.sqrt(off / norm) if math.isfinite(off) and norm else None


def slowest(of_workers: Iterable[Sequence[float]]) -> list[float]:
    """The largest time of each repetition."""
    return [max(each) for each in zip(*of_workers, strict=True)]
