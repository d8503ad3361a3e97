"""Steps 4 to 7 of Algorithm 1 for all gradients of a model, beside its backward pass."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from hpcdat.config.sections import Exchange
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.device import synchronize
from hpcdat.exchange.pipeline import Engine
from hpcdat.exchange.protocols import Draw, Exchanging, Memory
from hpcdat.exchange.resolve import Plan, make_plan, pays_to_compile
from hpcdat.exchange.traffic import Collective, Traffic, traffic

Named = Sequence[tuple[str, nn.Parameter]]
"""Parameters with their names."""


def grad_of(parameter: nn.Parameter) -> Tensor:
    """The gradient of a parameter that has one."""
    assert parameter.grad is not None
    return parameter.grad


@dataclass
class Bucket:
    """Parameters whose gradients are exchanged together.

    Attributes:
        number: place in the order of exchanges.
        parameters: in the order in which the backward pass comes to them.
        coded: whether their gradients are quantised.
        memory: of error feedback.
        missing: gradients of this step that are not there yet.
    """

    number: int
    parameters: list[nn.Parameter]
    coded: bool
    memory: Memory | None = None
    missing: int = 0

    @property
    def count(self) -> int:
        """Numbers in the vector."""
        return sum(p.numel() for p in self.parameters)

    def collectives(self, plan: Plan) -> list[Collective]:
        """What crosses the network for it."""
        return plan.collectives(self.count) if self.coded else [Collective("allreduce", 4 * self.count)]


@dataclass
class Spent:
    """Seconds of exchanges.

    Attributes:
        busy: in which one was under way, of each step.
        waited: of these, those in which nothing else could be done.
    """

    busy: list[float] = field(default_factory=list)
    waited: float = 0.0


class GradientExchange:
    """Sums gradients over the workers, as the job says.

    Biases and batch norm (tensors of one dimension) are exact unless ``exact_1d`` is false: they are few,
    and most of what rounding harms.

    Args:
        workers: who take part.
        named: parameters whose ``.grad`` are exchanged, first layer first.
        settings: the job's ``exchange`` section.
        seed: the job's.

    Attributes:
        plan: how coded buckets are exchanged.
        buckets: in the order of their exchange.
    """

    def __init__(self, workers: Communicator, named: Named, settings: Exchange, seed: int) -> None:
        self.workers, self.settings, self.seed = workers, settings, seed
        compiled = pays_to_compile(sum(p.numel() for _, p in named))
        self.plan = make_plan(settings, workers, compiled=compiled)
        self.buckets = make_buckets(named, settings, coding=not self.plan.is_exact)
        self.spent = Spent()
        self._alone = workers.size == 1 and self.plan.is_exact
        self._engine: Engine | None = None
        self._active, self._next, self._place = False, 0, (0, 0)
        self._bucket_of = {p: bucket for bucket in self.buckets for p in bucket.parameters}
        if settings.overlap and not self._alone:
            for parameter in self._bucket_of:
                parameter.register_post_accumulate_grad_hook(self._arrived)

    def begin(self, epoch: int, step: int) -> None:
        """Expect the gradients of a step; with overlap, each bucket starts when its last one is there.

        Args:
            epoch, step: which, the same on all workers: random numbers depend on them.
        """
        self._active, self._next, self._place = True, 0, (epoch, step)
        for bucket in self.buckets:
            bucket.missing = len(bucket.parameters)

    def contribute_nothing(self) -> None:
        """Exchange zeros: this worker has no gradients in this step."""
        self._zero_missing()
        while self.settings.overlap and not self._alone and self._next < len(self.buckets) - 1:
            self._submit(self.buckets[self._next])

    def finish(self, riders: Tensor) -> None:
        """Replace all gradients by their sums over the workers.

        The mean over the samples of (A3) comes from a loss that was divided by the size of the
        global batch: with equal shares that is 1/M sum_i g_i, and it stays the mean over samples
        where the shares of a short batch are unequal. A gradient that is not there counts as zero.

        Args:
            riders: a few float32 numbers that are summed exactly in the same exchange, such as the
                cost and the wish to stop.

        Raises:
            WorkerError: the other workers are lost.
        """
        self._active = False
        self._zero_missing()
        if self._alone:
            return
        synchronize(riders.device)
        start = time.perf_counter()
        while self._next < len(self.buckets):
            self._submit(self.buckets[self._next], riders)
        engine = self._engine
        assert engine is not None  # there is at least the bucket of the riders
        engine.wait()
        synchronize(riders.device)
        self.spent.waited += time.perf_counter() - start
        self.spent.busy.append(engine.busy_seconds)
        engine.busy_seconds = 0.0

    def settle(self, *, counts: bool) -> None:
        """Tell error feedback whether the step counts or was left out."""
        for bucket in self.buckets:
            if bucket.memory is not None:
                bucket.memory.settle(counts=counts)

    def reset(self) -> Spent:
        """The seconds of the steps since the last reset."""
        spent, self.spent = self.spent, Spent()
        return spent

    def traffic(self) -> Traffic:
        """Bytes of one iteration on the network, computed from the messages."""
        return traffic_of(self.buckets, self.plan)

    def gather_state(self) -> list[dict[str, Tensor]]:
        """All workers' error feedback, on all of them: by bucket and place, (M, n) float32.

        Zeros stand for a worker that keeps none, such as one that is no server.
        """
        own = [bucket.memory.kept if bucket.memory else {} for bucket in self.buckets]
        shapes = self.workers.all_gather_object(
            [{place: list(kept.shape) for place, kept in memory.items()} for memory in own],
            "shapes of error feedback",
        )
        gathered = []
        for bucket, memory in zip(self.buckets, own, strict=True):
            wanted = {place: shape for worker in shapes for place, shape in worker[bucket.number].items()}
            gathered.append(
                {
                    place: self.workers.iall_gather(
                        memory.get(place, bucket.parameters[0].new_zeros(wanted[place])),
                        f"error feedback {bucket.number} {place}",
                    ).wait()
                    for place in sorted(wanted)
                }
            )
        return gathered

    def load_state(self, gathered: list[dict[str, Tensor]]) -> None:
        """Take back this worker's rows of what :meth:`gather_state` gave to as many workers."""
        for bucket, kept in zip(self.buckets, gathered, strict=False):
            if bucket.memory is not None:
                bucket.memory.kept = {
                    place: rows[self.workers.rank].to(bucket.parameters[0].device)
                    for place, rows in kept.items()
                }

    def close(self) -> None:
        """End the thread of the exchanges; there can be no more of them."""
        if self._engine is not None:
            self._engine.close()

    def _zero_missing(self) -> None:
        for parameter in self._bucket_of:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def _arrived(self, parameter: nn.Parameter) -> None:
        """A gradient is there: start every bucket whose turn it is and that has all of its own.

        The last one waits for the riders: it is ready when the backward pass is over.
        """
        if not self._active:
            return
        self._bucket_of[parameter].missing -= 1
        while self._next < len(self.buckets) - 1 and self.buckets[self._next].missing == 0:
            self._submit(self.buckets[self._next])

    def _submit(self, bucket: Bucket, riders: Tensor | None = None) -> None:
        self._next += 1
        gradients = [grad_of(p) for p in bucket.parameters]
        name = f"gradients {bucket.number}"
        if not bucket.coded:
            if riders is not None and bucket is self.buckets[-1]:
                gradients.append(riders)
            self._run(self._exact(gradients, name), lambda _: None)
            return

        def deliver(total: Tensor) -> None:
            parts = total.split([g.numel() for g in gradients])
            torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])

        self._run(self._coded(bucket, gradients, name), deliver)

    def _run(self, exchanging: Exchanging, deliver: Any) -> None:
        if self._engine is None:
            self._engine = Engine()
        self._engine.submit(lambda: exchanging, deliver)

    def _exact(self, tensors: list[Tensor], name: str) -> Exchanging:
        total: Tensor = yield self.workers.iall_reduce(tensors, name)
        return total

    def _coded(self, bucket: Bucket, gradients: list[Tensor], name: str) -> Exchanging:
        vector = torch.cat([g.flatten() for g in gradients]).to(torch.float32)
        draw = Draw(self.seed, *self._place, bucket.number, vector.device)
        return (yield from self.plan.protocol(self.workers, vector, draw, name, bucket.memory))


def traffic_of(buckets: Sequence[Bucket], plan: Plan) -> Traffic:
    """Bytes on the network of one exchange of all buckets."""
    crossing = (collective for bucket in buckets for collective in bucket.collectives(plan))
    return traffic(crossing, plan.senders)


def gradients_of(model: nn.Module) -> Named:
    """The parameters that have gradients, with their names, first layer first."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def make_buckets(named: Named, settings: Exchange, *, coding: bool) -> list[Bucket]:
    """Divide parameters into buckets, last layers first, as the backward pass comes to them.

    The last bucket is an exact one, if need be an empty one.

    Args:
        named: parameters with their names, first layer first.
        settings: sizes, blocks and the names of those that stay exact.
        coding: whether the others are quantised.
    """
    buckets: list[Bucket] = []
    size = settings.bucket_mb * 2**20
    filling: dict[bool, Bucket] = {}
    for name, parameter in reversed(named):
        exact = settings.exact_1d and parameter.dim() <= 1
        exact = exact or any(fnmatchcase(name, pattern) for pattern in settings.exact)
        coded = coding and not exact
        alone = coded and settings.block == "tensor"
        bucket = filling.get(coded)
        if bucket is None or alone or 4 * (bucket.count + parameter.numel()) > size:
            memory = Memory() if coded and settings.error_feedback else None
            bucket = filling[coded] = Bucket(len(buckets), [], coded, memory)
            buckets.append(bucket)
        bucket.parameters.append(parameter)
    # Small exact tensors are ready when the first layer is: they come last, and riders with them.
    buckets.sort(key=lambda bucket: not bucket.coded)
    if not buckets or buckets[-1].coded:
        buckets.append(Bucket(len(buckets), [], coded=False))
    for number, bucket in enumerate(buckets):
        bucket.number = number
    return buckets
