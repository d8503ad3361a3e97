"""Concurrent adversarial learning: ConAdv, Sec. 3.3 and Algorithm 1 of its paper.

The adversarial examples of step t are made with the weights of step t - tau, beside the update of that
step: theta_{t+1} comes of x_adv(theta_{t - tau}), eq. (4), while x_adv(theta_t) is made for step t + tau,
eq. (5). tau = 0 is DisAdv, and the attack of every other method.

Who does what is a role. Workers that share batches are a cell: its update workers compute the cost of a
batch, or one of them its clean and another its adversarial half; an attack worker, if there is one, makes
the examples of them all and hands them over. It has no gradient, but takes part in the exchange and in
the update, so that its weights are those of the others without being sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hpcdat.cluster.workers import Pending, Workers
from hpcdat.errors import InputError
from hpcdat.job import Job
from hpcdat.models.split_batch_norm import Branch
from hpcdat.objectives import Labelled

MOST_UPDATE_WORKERS = 3
"""Batches an attack worker can keep up with: forward pass and input gradient of one against forward pass and
both gradients of two halves, 2 against 6 units of work."""


@dataclass(frozen=True)
class Role:
    """What a worker does in every step; batches are numbered over all workers.

    Attributes:
        clean, adversarial: the batches of whose costs it computes that half, one after the other; more
            than one if the worker stands for several virtual ones.
        attacked: batches that it makes the adversarial examples of.
    """

    clean: tuple[int, ...]
    adversarial: tuple[int, ...]
    attacked: tuple[int, ...]

    @property
    def trains(self) -> tuple[int, ...]:
        """The batches that it computes a gradient of."""
        return self.clean or self.adversarial

    @property
    def reads(self) -> tuple[int, ...]:
        """The batches whose images it needs."""
        return tuple(sorted({*self.attacked, *self.clean}))


def assign_roles(job: Job, size: int) -> list[Role]:
    """The role of every worker, in the order of ranks; those of a cell or team are neighbours.

    Args:
        job: its ``concurrent`` section and ``virtual_workers``; workers of a team, who share the noisy copies
            of their batches (``smoothing.workers``), have the same role.
        size: number of workers M.

    Raises:
        InputError: so many workers cannot be divided into such cells or teams.
    """
    sharing = job.smoothing.workers
    if size % sharing:
        raise InputError(
            f"smoothing.workers: {size} workers cannot be divided into teams of {sharing}", everywhere=True
        )
    return [role for role in _roles_of_cells(job, size // sharing) for _ in range(sharing)]


def _roles_of_cells(job: Job, size: int) -> list[Role]:
    settings, k = job.concurrent, job.virtual_workers
    if k > 1:
        own = [tuple(range(rank * k, (rank + 1) * k)) for rank in range(size)]
        return [Role(batches, batches, batches) for batches in own]
    halves = 2 if settings.halves == "apart" else 1
    attackers = int(settings.place == "workers")
    wanted = settings.update_workers
    choices = [wanted] if wanted else range(MOST_UPDATE_WORKERS if attackers else 1, 0, -1)
    batches = next((k for k in choices if size % (k * halves + attackers) == 0), None)
    if batches is None:
        cell = (wanted or 1) * halves + attackers
        raise InputError(
            f"concurrent: {size} workers cannot be divided into cells of {cell} (place {settings.place}, "
            f"halves {settings.halves}): take a multiple of {cell}",
            everywhere=True,
        )
    roles: list[Role] = []
    for first in range(0, size // (batches * halves + attackers) * batches, batches):
        numbers = range(first, first + batches)
        for number in numbers:
            own = () if attackers else (number,)
            if halves == 1:
                roles.append(Role((number,), (number,), own))
            else:
                roles += [Role((number,), (), ()), Role((), (number,), own)]
        if attackers:
            roles.append(Role((), (), tuple(numbers)))
    return roles


def trained_by(roles: Sequence[Role]) -> dict[Branch, list[int]]:
    """Of every batch, the rank of the worker that learns each branch's statistics by it."""
    return {
        "clean": [rank for rank, role in enumerate(roles) for _ in role.clean],
        "adversarial": [rank for rank, role in enumerate(roles) for _ in role.adversarial],
    }


def first_workers(roles: Sequence[Role]) -> list[int]:
    """Of every batch the rank of the first worker that has its clean half, batch by batch."""
    first: dict[int, int] = {}
    for rank, role in enumerate(roles):
        for number in role.clean:
            first.setdefault(number, rank)
    return list(first.values())


def homes_of_batches(roles: Sequence[Role], node_of: Sequence[int]) -> list[int]:
    """Of every batch the node of its first worker; nodes numbered from 0, those that only attack left out."""
    homes = [node_of[rank] for rank in first_workers(roles)]
    nodes = list(dict.fromkeys(homes))
    return [nodes.index(home) for home in homes]


class Batch(NamedTuple):
    """What a worker reads for a step.

    Attributes:
        step: of the epoch, from 0.
        global_size: images of all workers in this step.
        images: by the number of the batch, those that the role reads.
    """

    step: int
    global_size: int
    images: dict[int, Labelled]


@dataclass
class _InFlight:
    """The examples of a step to come, and the weights that they are made with."""

    weights: list[Tensor] = field(default_factory=list)
    made: dict[int, Labelled] = field(default_factory=dict)
    handed_over: list[Pending] = field(default_factory=list)


class Adversary:
    """Has the adversarial examples of every step, made with weights that are tau steps old.

    Args:
        job: resolved.
        model: what is attacked, in training.
        roles: of all workers.
        workers: who trains.
        device: where this worker computes.
        attack: (images, number of the batch, step of the epoch) to perturbed images, with the weights
            at hand: (A1).
    """

    def __init__(
        self,
        job: Job,
        model: nn.Module,
        roles: Sequence[Role],
        workers: Workers,
        device: torch.device,
        attack: Callable[[Labelled, int, int], Tensor],
    ) -> None:
        self.delay, self.workers, self.attack = job.delay, workers, attack
        self.role = roles[workers.rank]
        self._hands_over = job.concurrent.place == "workers"
        self._taker = {number: rank for rank, role in enumerate(roles) for number in role.adversarial}
        self._shape = (job.data.channels, job.data.image_size, job.data.image_size)
        self._device = device
        self._parameters = list(model.parameters())
        self._in_flight: deque[_InFlight] = deque()
        self._stale: list[list[Tensor]] = []
        self._spare: list[list[Tensor]] = []
        self._due: tuple[Batch, _InFlight] | None = None
        beside = self.delay and self.role.attacked and device.type == "cuda" and not self._hands_over
        self._stream = torch.cuda.Stream(device) if beside else None

    def begin_epoch(self, first: Sequence[Batch]) -> None:
        """Make the examples of the first tau steps of an epoch, or of what is left of it.

        At its start they are made with the weights at hand; in its midst with those that
        :meth:`restore` brought back.

        Args:
            first: the batches of these steps; fewer than tau at the end of an epoch.
        """
        self._in_flight.clear()
        for number, batch in enumerate(first):
            entry = _InFlight()
            if self._stale:
                with self._holding(self._stale[number]):
                    self._make(batch, entry)
            else:
                self._make(batch, entry)
        self._stale = []

    def take(self, now: Batch) -> dict[int, Labelled]:
        """The examples of a step by the number of the batch, those that the role trains on.

        Where tau is 0 they are made now.
        """
        if not self.delay:
            return self._attack(now)
        entry = self._in_flight.popleft()
        if entry.weights:
            self._spare.append(entry.weights)
        if self._hands_over:
            received = Labelled(*(pending.wait() for pending in entry.handed_over))
            return dict.fromkeys(self.role.adversarial, received)
        if self._stream:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return entry.made

    def begin(self, ahead: Batch | None) -> None:
        """Take up the examples of step t + tau, beside the update of step t.

        Args:
            ahead: that step's batch; None where the epoch has no such step.
        """
        if ahead is None:
            return
        entry = _InFlight()
        if self._stream:
            main = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(main)
            with torch.cuda.stream(self._stream):
                self._make(ahead, entry)
            for tensor in (t for images in (*ahead.images.values(), *entry.made.values()) for t in images):
                # Memory that both streams use is not given back before both are done.
                tensor.record_stream(main)
                tensor.record_stream(self._stream)
        elif self.role.attacked:
            self._due = (ahead, entry)
        else:
            self._make(ahead, entry)

    def finish(self) -> None:
        """Have the attack done with the weights of this step, before they are updated."""
        if self._due:
            self._make(*self._due)
            self._due = None
        if self._stream:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def stale(self) -> list[list[Tensor]]:
        """The weights that examples in flight were made with, step by step: what a checkpoint needs."""
        return [entry.weights for entry in self._in_flight]

    def restore(self, stale: Sequence[Sequence[Tensor]]) -> None:
        """Have the next :meth:`begin_epoch` make the examples with what :meth:`stale` gave."""
        self._stale = [list(weights) for weights in stale]

    def _make(self, batch: Batch, entry: _InFlight) -> None:
        # Worker 0 writes the checkpoint for all.
        if self.workers.is_first:
            spare = self._spare.pop() if self._spare else []
            entry.weights = spare or [torch.empty_like(p) for p in self._parameters]
            torch._foreach_copy_(entry.weights, [p.detach() for p in self._parameters])
        if self._hands_over:
            entry.handed_over = self._hand_over(batch)
        else:
            entry.made = self._attack(batch)
        self._in_flight.append(entry)

    def _attack(self, batch: Batch) -> dict[int, Labelled]:
        """The examples of the batches that this worker attacks for itself, if it does."""
        return {
            number: Labelled(self.attack(batch.images[number], number, batch.step), batch.images[number].y)
            for number in self.role.attacked
        }

    def _hand_over(self, batch: Batch) -> list[Pending]:
        """Send the examples and labels of a batch to those who train on them, or begin to wait for them."""
        counts = [0] * self.workers.size
        x = [torch.empty(0, *self._shape, device=self._device)]
        y = [torch.empty(0, dtype=torch.int64, device=self._device)]
        for number in self.role.attacked:
            images = batch.images[number]
            counts[self._taker[number]] = len(images.x)
            x.append(self.attack(images, number, batch.step))
            y.append(images.y)
        # A name is free again when the examples of its step have been taken.
        slot = batch.step % (self.delay + 1)
        return [
            self.workers.start_deal(torch.cat(rows), counts, f"{what} {slot}")
            for rows, what in ((x, "adversarial examples"), (y, "labels"))
        ]

    @contextmanager
    def _holding(self, weights: Sequence[Tensor]) -> Any:
        """Other weights for a while."""
        parameters = [p.data for p in self._parameters]
        kept = [p.clone() for p in parameters]
        torch._foreach_copy_(parameters, list(weights))
        try:
            yield
        finally:
            torch._foreach_copy_(parameters, kept)
