"""What one worker of communication.py's sweep observes of an operation, over all rounds."""

from __future__ import annotations

import time
from typing import Any

import torch
from communication_operations import Operation
from communication_rows import check

from hpcdat.distributed.communicator import Communicator
from hpcdat.hardware.network_cards import Card, network_cards, sent_between
from hpcdat.performance.clock import now

INSIDE = "NVLink"
"""The kind of card that workers of one node use."""


class Samples:
    """The repetitions of an operation on one worker so far; all workers create it together.

    Args:
        workers: that take part.
        device: that computes.
        operation: the operation. Its buffers are not kept.
    """

    def __init__(self, workers: Communicator, device: torch.device, operation: Operation) -> None:
        self._workers, self._device, self.operation = workers, device, operation.without_buffers()
        self._lists: dict[str, list[float]] = {"seconds": [], "arrivals": [], "events": [], "processor": []}
        self._sent: dict[str, float] = {}
        self._uncounted: set[str] = set()
        self._checked: dict[str, float] = {}

    def take(self, operation: Operation, repetitions: int, ahead: float, *, checked: bool) -> None:
        """Time repetitions that follow one another directly; all workers call this together.

        Args:
            operation: the operation, with buffers.
            repetitions: how many; one or more.
            ahead: seconds by which this worker's clock is ahead of worker 0's.
            checked: whether to compare the last result with what was expected.
        """
        on_gpu = operation.parameters["device"] == "cuda"
        # When all are here, what was sent before has left the cards.
        operation.align()
        cards = cards_to_count(self._workers)
        for _ in range(repetitions):
            operation.reset()
            now(self._device)
            operation.align()
            self._lists["arrivals"].append(time.time() - ahead)
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if on_gpu else []
            processor, began = time.process_time(), now(self._device)
            for event in events[:1]:
                event.record()
            result = operation.run()
            for event in events[1:]:
                event.record()
            ended = now(self._device)
            self._lists["seconds"].append(ended - began)
            self._lists["processor"].append(time.process_time() - processor)
            if events:
                self._lists["events"].append(events[0].elapsed_time(events[1]) / 1e3)
        # When all have their results, all messages have left the cards.
        operation.align()
        found = counted(cards, cards_to_count(self._workers))
        for kind, count in found["sent"].items():
            self._sent[kind] = self._sent.get(kind, 0) + count
        self._uncounted.update(found["uncounted"])
        if checked:
            self._checked = check(result, operation.expected, operation.bound)

    def report(self) -> dict[str, Any]:
        """For worker 0.

        Returns:
            Of each repetition ``seconds``, ``arrivals`` (seconds since the epoch when it began, by worker 0's
            clock), ``events`` (seconds by CUDA's events; empty on a CPU) and ``processor`` (seconds); of the
            last result those of :func:`check`; ``sent``, bytes a repetition by kind of card; ``uncounted``.
        """
        repetitions = len(self._lists["seconds"])
        sent = {kind: count / repetitions for kind, count in self._sent.items()}
        return {**self._lists, **self._checked, "sent": sent, "uncounted": sorted(self._uncounted)}


def warm_up(operation: Operation, runs: int) -> None:
    """Run an operation without timing it; all workers call this together."""
    for _ in range(runs):
        operation.reset()
        operation.align()
        operation.run()


def cards_to_count(workers: Communicator) -> list[Card]:
    """The cards that this worker counts: those that its node's workers use, if it is the first one there."""
    if workers.local_rank:
        return []
    return [card for card in network_cards() if workers.nodes > 1 or card.kind == INSIDE]


def counted(before: list[Card], after: list[Card]) -> dict[str, Any]:
    """``sent``: bytes by kind of card; ``uncounted``: the cards that nothing counts."""
    kinds, sent = {card.name: card.kind for card in after}, sent_between(before, after)
    by_kind: dict[str, float] = {}
    for name, count in sent.items():
        if count is not None:
            by_kind[kinds[name]] = by_kind.get(kinds[name], 0) + count
    return {"sent": by_kind, "uncounted": [name for name, count in sent.items() if count is None]}
