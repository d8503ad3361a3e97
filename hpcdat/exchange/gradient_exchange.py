"""Steps 4 to 7 of Algorithm 1 for all gradients of a model, overlapping its backward pass."""

from __future__ import annotations

import math
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
from hpcdat.errors import InputError
from hpcdat.exchange.pipeline import IN_FLIGHT, Pipeline
from hpcdat.exchange.protocols import Draw, ErrorFeedback, Exchanging
from hpcdat.exchange.resolve import Plan, make_plan, pays_to_compile
from hpcdat.exchange.traffic import Collective, Traffic, traffic

NamedParameters = Sequence[tuple[str, nn.Parameter]]
"""Parameters with their names, first layer first."""
Shapes = dict[str, list[int]]
"""Shapes of the residuals of a bucket, by side."""


def grad_of(parameter: nn.Parameter) -> Tensor:
    """The gradient of a parameter that has one."""
    assert parameter.grad is not None
    return parameter.grad


@dataclass
class Bucket:
    """Parameters whose gradients are exchanged together.

    Attributes:
        number: position in the order of exchanges.
        parameters: in the order of the backward pass.
        coded: whether their gradients are quantised.
        feedback: error feedback, if the job uses it.
        missing: parameters whose gradients of this step have not been computed yet.
    """

    number: int
    parameters: list[nn.Parameter]
    coded: bool
    feedback: ErrorFeedback | None = None
    missing: set[nn.Parameter] = field(default_factory=set)

    @property
    def count(self) -> int:
        """Number of elements."""
        return sum(p.numel() for p in self.parameters)

    def collectives(self, plan: Plan) -> list[Collective]:
        """The collectives of its exchange."""
        return plan.collectives(self.count) if self.coded else [Collective("allreduce", 4 * self.count)]


@dataclass
class ExchangeSeconds:
    """Seconds of exchanges.

    Attributes:
        busy: for each step, the time during which an exchange was in progress.
        waited: the part of it, over all steps, that did not overlap with computation.
    """

    busy: list[float] = field(default_factory=list)
    waited: float = 0.0


class GradientExchange:
    """Sums gradients over the workers, by the protocol that the job names.

    Biases and batch norm (tensors of one dimension) are summed exactly unless ``exact_1d`` is false: they are
    few, and the most sensitive to rounding.

    Args:
        workers: all workers that take part.
        named: parameters whose ``.grad`` are exchanged, first layer first.
        settings: the job's ``exchange`` section, without ``auto``.
        seed: the job's.

    Attributes:
        plan: how coded buckets are exchanged.
        buckets: in the order of their exchange.
        seconds: of the steps since the last :meth:`reset`.
    """

    def __init__(self, workers: Communicator, named: NamedParameters, settings: Exchange, seed: int) -> None:
        self.workers, self.settings, self.seed = workers, settings, seed
        compiled = pays_to_compile(sum(p.numel() for _, p in named))
        self._channels = [workers.channel("exchange 0")]
        self.plan = make_plan(settings, self._channels[0], compiled=compiled)
        self._plans = [self.plan]
        self.buckets = make_buckets(named, settings, coding=not self.plan.is_exact)
        # On a GPU, communicators of NCCL may block each other if workers start them in different orders.
        one = workers.engine == "torch" and not self.plan.is_exact and any(p.is_cuda for _, p in named)
        self._in_flight = 1 if one else IN_FLIGHT
        # Exchanges of one collective each need no channels of their own: they begin in order.
        for number in range(1, 1 if self.plan.is_exact else min(self._in_flight, len(self.buckets))):
            self._channels.append(workers.channel(f"exchange {number}"))
            self._plans.append(make_plan(settings, self._channels[number], compiled=compiled))
        self.seconds = ExchangeSeconds()
        self._is_identity = workers.size == 1 and self.plan.is_exact
        self._pipeline: Pipeline | None = None
        self._active, self._next, self._epoch_step = False, 0, (0, 0)
        self._bucket_of = {p: bucket for bucket in self.buckets for p in bucket.parameters}
        self._name_of = {p: name for name, p in named}
        if settings.overlap and not self._is_identity:
            for parameter in self._bucket_of:
                parameter.register_post_accumulate_grad_hook(self._on_gradient)

    def begin(self, epoch: int, step: int) -> None:
        """Prepare for a step; with overlap, a bucket's exchange starts once all its gradients are computed.

        Args:
            epoch, step: the same on all workers; the quantizer's random numbers depend on them.
        """
        self._active, self._next, self._epoch_step = True, 0, (epoch, step)
        for bucket in self.buckets:
            bucket.missing = set(bucket.parameters)

    def contribute_zeros(self) -> None:
        """Exchange zeros: this worker has no gradients in this step."""
        self._zero_missing()
        while self.settings.overlap and not self._is_identity and self._next < len(self.buckets) - 1:
            self._submit(self.buckets[self._next])

    def finish(self, scalars: Tensor) -> None:
        """Replace all gradients by their sums over the workers.

        (A3) takes the mean over the samples: the loss must have been divided by the size of the global
        batch. With equal shares the sum is then 1/M sum_i g_i, and it remains the mean over the samples
        where the shares of a short batch are unequal. A missing gradient counts as zero.

        Args:
            scalars: a few float32 numbers, (n,), that are summed exactly in the same exchange and replaced by
                their sums, such as the cost and a stop request.

        Raises:
            WorkerError: the other workers are lost.
        """
        self._active = False
        self._zero_missing()
        if self._is_identity:
            return
        synchronize(scalars.device)
        start = time.perf_counter()
        while self._next < len(self.buckets):
            self._submit(self.buckets[self._next], scalars)
        pipeline = self._pipeline
        assert pipeline is not None  # the last bucket, which carries the scalars, always exists
        pipeline.wait()
        synchronize(scalars.device)
        self.seconds.waited += time.perf_counter() - start
        self.seconds.busy.append(pipeline.busy_seconds)
        pipeline.busy_seconds = 0.0

    def commit(self, *, counts: bool) -> None:
        """Store the step's residuals of error feedback, or discard them if the update was skipped."""
        for bucket in self.buckets:
            if bucket.feedback is not None:
                bucket.feedback.commit(counts=counts)

    def reset(self) -> ExchangeSeconds:
        """Return the seconds of the steps since the last reset, and start again from zero."""
        seconds, self.seconds = self.seconds, ExchangeSeconds()
        return seconds

    def traffic(self) -> Traffic:
        """Bytes sent in one iteration, computed from the messages."""
        return traffic_of(self.buckets, self.plan)

    def shapes_of_feedback(self) -> list[Shapes]:
        """The shapes of the residuals of error feedback, by bucket; all workers call this together.

        They are those of worker 0, which has them of every side. Empty if the job does not use it.
        """
        if not any(bucket.feedback for bucket in self.buckets):
            return []
        own = [
            {side: list(residual.shape) for side, residual in sorted(bucket.feedback.residuals.items())}
            if bucket.feedback
            else {}
            for bucket in self.buckets
        ]
        shapes: list[Shapes] = self.workers.broadcast_object(own, "shapes of error feedback")
        return shapes

    def feedback_row(self, shapes: Sequence[Shapes]) -> Tensor:
        """This worker's residuals, (R,) uint8, with zeros for those that it does not have.

        Args:
            shapes: of :meth:`shapes_of_feedback`.
        """
        parts = [torch.empty(0)]
        for bucket, of_sides in zip(self.buckets, shapes, strict=False):
            residuals = bucket.feedback.residuals if bucket.feedback else {}
            parts += [residuals.get(side, torch.zeros(shape)).cpu() for side, shape in of_sides.items()]
        return torch.cat([part.flatten() for part in parts]).view(torch.uint8)

    def restore_feedback(self, shapes: Sequence[Shapes], row: Tensor) -> None:
        """Take back this worker's :meth:`feedback_row`.

        Args:
            shapes: as they were; checkpoints up to format 9 have in their place the residuals themselves, of
                all workers: (M, ...).
            row: (R,) uint8.

        Raises:
            ValueError: the row has another length.
        """
        # A copy, since a view needs an offset that is a multiple of the element's size.
        left = row.clone().view(torch.float32)
        for bucket, of_sides in zip(self.buckets, shapes, strict=False):
            for side, shape in of_sides.items():
                if isinstance(shape, Tensor):
                    residual = shape[self.workers.rank]
                else:
                    residual, left = left[: math.prod(shape)].view(shape), left[math.prod(shape) :]
                if bucket.feedback is not None:
                    bucket.feedback.residuals[side] = residual.to(bucket.parameters[0].device)
        if len(left):
            raise ValueError(f"{len(row)} bytes of error feedback, {left.numel() * 4} more than expected")

    def close(self) -> None:
        """End the thread of the exchanges; no gradients can be exchanged afterwards."""
        if self._pipeline is not None:
            self._pipeline.close()

    def _zero_missing(self) -> None:
        for parameter in self._bucket_of:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def _on_gradient(self, parameter: nn.Parameter) -> None:
        """Called when a gradient has been computed: start the next buckets, in order, that are complete.

        The last bucket waits for the scalars, which are known after the backward pass.
        """
        if not self._active:
            return
        bucket = self._bucket_of[parameter]
        if parameter not in bucket.missing:
            raise InputError(
                f"the gradient of {self._name_of[parameter]} arrives more than once in a backward pass, as "
                "with torch.utils.checkpoint(use_reentrant=True): take use_reentrant=False, or set "
                "exchange.overlap: false"
            )
        bucket.missing.remove(parameter)
        while self._next < len(self.buckets) - 1 and not self.buckets[self._next].missing:
            self._submit(self.buckets[self._next])

    def _submit(self, bucket: Bucket, scalars: Tensor | None = None) -> None:
        self._next += 1
        gradients = [grad_of(p) for p in bucket.parameters]
        name = f"gradients {bucket.number}"
        if not bucket.coded:
            if scalars is not None and bucket is self.buckets[-1]:
                gradients.append(scalars)
            self._run(self._exact(bucket, gradients, name), lambda _: None)
            return

        def deliver(total: Tensor) -> None:
            parts = total.split([g.numel() for g in gradients])
            torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])

        self._run(self._coded(bucket, gradients, name), deliver)

    def _run(self, exchanging: Exchanging, deliver: Any) -> None:
        if self._pipeline is None:
            self._pipeline = Pipeline(self._in_flight)
        self._pipeline.submit(lambda: exchanging, deliver)

    def _exact(self, bucket: Bucket, tensors: list[Tensor], name: str) -> Exchanging:
        channel = self._channels[bucket.number % len(self._channels)]
        total: Tensor = yield channel.iall_reduce(tensors, name)
        return total

    def _coded(self, bucket: Bucket, gradients: list[Tensor], name: str) -> Exchanging:
        vector = torch.cat([g.flatten() for g in gradients]).to(torch.float32)
        draw = Draw(self.seed, *self._epoch_step, bucket.number, vector.device)
        number = bucket.number % len(self._channels)
        protocol, channel = self._plans[number].protocol, self._channels[number]
        return (yield from protocol(channel, vector, draw, name, bucket.feedback))


def traffic_of(buckets: Sequence[Bucket], plan: Plan) -> Traffic:
    """Bytes on the network of one exchange of all buckets."""
    crossing = (collective for bucket in buckets for collective in bucket.collectives(plan))
    return traffic(crossing, plan.senders)


def gradients_of(model: nn.Module) -> NamedParameters:
    """The parameters that are trained, with their names, first layer first: not frozen and not empty."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad and p.numel()]


def make_buckets(named: NamedParameters, settings: Exchange, *, coding: bool) -> list[Bucket]:
    """Divide parameters into buckets, last layers first, in the order of the backward pass.

    The last bucket is always exact; it may be empty.

    Args:
        named: parameters with their names, first layer first.
        settings: sizes of buckets and blocks, and patterns for the names of exact parameters.
        coding: whether the other parameters are quantised.
    """
    buckets: list[Bucket] = []
    size = settings.bucket_mb * 2**20
    filling: dict[bool, Bucket] = {}
    for name, parameter in reversed(named):
        exact = settings.exact_1d and parameter.dim() <= 1
        exact = exact or any(fnmatchcase(name, pattern) for pattern in settings.exact)
        coded = coding and not exact
        own_bucket = coded and settings.block == "tensor"
        bucket = filling.get(coded)
        if bucket is None or own_bucket or 4 * (bucket.count + parameter.numel()) > size:
            feedback = ErrorFeedback() if coded and settings.error_feedback else None
            bucket = filling[coded] = Bucket(len(buckets), [], coded, feedback)
            buckets.append(bucket)
        bucket.parameters.append(parameter)
    # The exact bucket includes the first layer's biases, so it is complete last; the scalars go with it.
    buckets.sort(key=lambda bucket: not bucket.coded)
    if not buckets or buckets[-1].coded:
        buckets.append(Bucket(len(buckets), [], coded=False))
    for number, bucket in enumerate(buckets):
        bucket.number = number
    return buckets
