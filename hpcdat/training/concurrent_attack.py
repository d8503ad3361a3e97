"""Make the adversarial examples of each step, immediately or concurrently: ConAdv, Sec. 3.3 and Algorithm 1.

The adversarial examples of step t are made with the weights of step t - tau, concurrently with the update of
that step: theta_{t+1} is computed from x_adv(theta_{t - tau}), eq. (4), while x_adv(theta_t) is made for step
t + tau, eq. (5). tau = 0 is DisAdv, and the attack of every other method.

Algorithm 1 counts steps over the whole training and has no epochs, so only its first tau steps lack stale
weights. Here each epoch begins with an empty pipeline: its first tau batches are attacked with the weights of
its start, and nothing is prepared after its last batch. With tau = 1 and 13 steps an epoch (ImageNet in
batches of 96k), one step in 13 has adversarial examples of the current weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hpcdat.config.job import Job
from hpcdat.distributed.communicator import Communicator, Pending
from hpcdat.models.losses import Labelled
from hpcdat.training.roles import Roles


class Batch(NamedTuple):
    """What a worker reads for a step.

    Attributes:
        epoch: epochs done before this one.
        step: of the epoch, from 0.
        global_size: images of all workers in this step.
        images: by the number of the batch, those that the role reads.
    """

    epoch: int
    step: int
    global_size: int
    images: dict[int, Labelled]


@dataclass
class _InFlight:
    """The examples of a later step, and the weights they are made with."""

    weights: list[Tensor] = field(default_factory=list)
    made: dict[int, Labelled] = field(default_factory=dict)
    handed_over: list[Pending] = field(default_factory=list)


class Adversary:
    """Makes the adversarial examples of every step, with weights that are tau steps old.

    Args:
        job: resolved.
        model: the attacked model, whose weights are copied.
        roles: of all workers.
        workers: all that train.
        device: of this worker.
        attack: (A1) with the current weights: from what was read for a step and the number of a batch to
            its perturbed images, (N, C, H, W).
        own_buffers: whether the model has buffers other than batch norm's. A pass in training may change or
            replace them, so that an attack, which reads them, must not run at the same time.
    """

    def __init__(
        self,
        job: Job,
        model: nn.Module,
        roles: Roles,
        workers: Communicator,
        device: torch.device,
        attack: Callable[[Batch, int], Tensor],
        *,
        own_buffers: bool,
    ) -> None:
        self.delay, self.workers, self.attack = job.delay, workers, attack
        self.role = roles[workers.rank]
        self._hands_over = job.concurrent.place == "workers"
        # Attackers start to hand over later in a step than the others start to receive.
        self._channel = workers.channel("hand-over", neighbors=True) if self._hands_over else workers
        self._taker = {number: roles.first_with_adversarial(number) for number in self.role.attacked}
        self._most = {roles.first_with_attack(n): job.batch_size for n in self.role.adversarial}
        self._shape = (job.data.channels, job.data.image_size, job.data.image_size)
        self._device = device
        # Through the CPU's memory, not by NCCL, which may block if workers order the collectives of two
        # communicators differently: attackers hand over later in a step than the others start to receive.
        self._carrier = torch.device("cpu") if workers.engine == "torch" else device
        self._parameters = list(model.parameters())
        self._in_flight: deque[_InFlight] = deque()
        self._stale: list[list[Tensor]] = []
        self._spare: list[list[Tensor]] = []
        self._due: tuple[Batch, _InFlight] | None = None
        beside = self.delay and self.role.attacked and not self._hands_over and not own_buffers
        self._stream = torch.cuda.Stream(device) if beside and device.type == "cuda" else None

    def begin_epoch(self, first: Sequence[Batch]) -> None:
        """Make the examples of the first tau steps of an epoch, or of what is left of it.

        At the start of the epoch they are made with the current weights, within it with those given to
        :meth:`restore`.

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
        """The examples that this worker trains on, by the number of the batch; with tau = 0 made now."""
        if not self.delay:
            return self._attack(now)
        entry = self._in_flight.popleft()
        if entry.weights:
            self._spare.append(entry.weights)
        if self._hands_over:
            rows = (pending.wait().to(self._device, non_blocking=True) for pending in entry.handed_over)
            received = Labelled(*rows)
            return dict.fromkeys(self.role.adversarial, received)
        return entry.made

    def begin(self, ahead: Batch | None) -> None:
        """Start to make the examples of step t + tau, concurrently with the update of step t.

        Args:
            ahead: that step's batch; None if the epoch has no such step.
        """
        if ahead is None:
            return
        entry = _InFlight()
        if self._stream:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                self._make(ahead, entry)
            for tensor in (t for images in ahead.images.values() for t in images):
                # The main stream frees it; the memory is not to be used again before this stream is done.
                tensor.record_stream(self._stream)
        elif self.role.attacked:
            self._due = (ahead, entry)
        else:
            self._make(ahead, entry)

    def finish(self) -> None:
        """Complete the attack before the weights of this step are updated, or its examples used."""
        if self._due:
            self._make(*self._due)
            self._due = None
        if self._stream:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def stale(self) -> list[list[Tensor]]:
        """The weights that the examples in flight were made with, step by step, for a checkpoint."""
        return [entry.weights for entry in self._in_flight]

    def restore(self, stale: Sequence[Sequence[Tensor]]) -> None:
        """Set the weights that the next :meth:`begin_epoch` makes the examples with, from :meth:`stale`."""
        self._stale = [list(weights) for weights in stale]

    def _make(self, batch: Batch, entry: _InFlight) -> None:
        # Only worker 0 writes checkpoints.
        if self.workers.is_rank0:
            spare = self._spare.pop() if self._spare else []
            entry.weights = spare or [torch.empty_like(p) for p in self._parameters]
            torch._foreach_copy_(entry.weights, [p.detach() for p in self._parameters])
        if self._hands_over:
            entry.handed_over = self._hand_over(batch)
        else:
            entry.made = self._attack(batch)
        self._in_flight.append(entry)

    def _attack(self, batch: Batch) -> dict[int, Labelled]:
        """The examples of the batches that this worker attacks, by number."""
        return {
            number: Labelled(self.attack(batch, number), batch.images[number].y)
            for number in self.role.attacked
        }

    def _hand_over(self, batch: Batch) -> list[Pending]:
        """Send examples and labels to the workers that train on them, or start to receive them."""
        sends: dict[int, int] = {}
        x = [torch.empty(0, *self._shape, device=self._device)]
        y = [torch.empty(0, dtype=torch.int64, device=self._device)]
        for number in self.role.attacked:
            sends[self._taker[number]] = len(batch.images[number].x)
            x.append(self.attack(batch, number))
            y.append(batch.images[number].y)
        # A slot can be used again when the examples of its step have been taken.
        slot = batch.step % (self.delay + 1)
        return [
            self._channel.ineighbor_all_to_all_v(
                torch.cat(rows).to(self._carrier), sends, self._most, f"{what} {slot}"
            )
            for rows, what in ((x, "adversarial examples"), (y, "labels"))
        ]

    @contextmanager
    def _holding(self, weights: Sequence[Tensor]) -> Any:
        """Give the model other weights inside the block."""
        parameters = [p.data for p in self._parameters]
        saved = [p.clone() for p in parameters]
        torch._foreach_copy_(parameters, list(weights))
        try:
            yield
        finally:
            torch._foreach_copy_(parameters, saved)
