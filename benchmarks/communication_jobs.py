"""The exchanges of jobs as training runs them: gradients in the shapes of a network, by a job's settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from communication_exchanges import Gradients, parameters_of
from communication_operations import WORD, Maker, Operation, Source, share_sent
from torch import Tensor, nn

from hpcdat.config.job import Job
from hpcdat.errors import InputError
from hpcdat.exchange.gradient_exchange import GradientExchange, gradients_of
from hpcdat.performance.benchmark_file import Value
from hpcdat.performance.network_bytes import count_classes, crossing_of, shapes_of


class _Exchange(NamedTuple):
    """The exchange of a job.

    Attributes:
        job: resolved.
        shapes: of the gradients, by the names of the parameters, first layer first.
    """

    job: Job
    shapes: Mapping[str, torch.Size]

    @property
    def count(self) -> int:
        """Numbers in the gradient."""
        return sum(shape.numel() for shape in self.shapes.values())


class _Begun:
    """The exchange of a job with its buffers; all workers create it together.

    Attributes:
        own: (n,) float32, the gradient, which is replaced by the sum.
        named: parameters whose gradients are views of it.
        exchange: of these.
    """

    def __init__(self, exchange: _Exchange, gradients: Gradients) -> None:
        device = gradients.device
        self.own = torch.zeros(exchange.count, device=device)
        # Of the parameters only the gradients are used: they need no memory of their own.
        zero = torch.zeros((), device=device)
        parameters = {key: nn.Parameter(zero.expand(shape)) for key, shape in exchange.shapes.items()}
        parts = self.own.split([shape.numel() for shape in exchange.shapes.values()])
        for parameter, part in zip(parameters.values(), parts, strict=True):
            parameter.grad = part.view_as(parameter)
        self.named = list(parameters.items())
        job = exchange.job
        self.exchange = GradientExchange(gradients.workers, self.named, job.exchange, job.seed)


class ExchangesOfJobs(Source):
    """The exchanges of jobs.

    Args:
        gradients: of the workers that take part.
        jobs: by the names that their rows have.

    Raises:
        InputError: the exchange of a job is to be chosen by measuring (``auto``).
    """

    def __init__(self, gradients: Gradients, jobs: Mapping[str, Job]) -> None:
        self.gradients = gradients
        self._exchanges: dict[str, _Exchange] = {}
        self._begun: dict[str, _Begun] = {}
        for name, job in jobs.items():
            if job.exchange.protocol == "auto":
                raise InputError(f"{name}: exchange.protocol: auto: set the protocol that is to be measured")
            network = shapes_of(job, count_classes(job.data, job.module_path or ()))
            self._exchanges[name] = _Exchange(job, {key: p.shape for key, p in gradients_of(network)})

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of the gradients in float32, each size once, the smallest first."""
        return tuple(sorted({WORD * exchange.count for exchange in self._exchanges.values()}))

    def at(self, size: int, chosen: Sequence[str]) -> list[Maker]:  # noqa: D102
        exchanges = self._exchanges if "exchange" in chosen else {}
        return [
            partial(self._operation, name)
            for name, exchange in exchanges.items()
            if WORD * exchange.count == size
        ]

    def _operation(self, name: str) -> Operation:
        """The exchange of a job. Its buffers are kept: codecs would be compiled again for others."""
        if name not in self._begun:
            self._begun[name] = _Begun(self._exchanges[name], self.gradients)
        begun, exchange, workers = self._begun[name], self._exchanges[name], self.gradients.workers
        gradient, scalars = self.gradients.of(exchange.count), torch.zeros(1, device=self.gradients.device)
        per_node = workers.size // workers.nodes
        crossing = crossing_of(exchange.job.exchange, begun.named, workers.nodes, per_node)
        sent = crossing.traffic.total if crossing else 0.0

        def reset() -> None:
            begun.own.copy_(gradient.own)
            begun.exchange.begin(0, 0)

        def run() -> Tensor:
            begun.exchange.finish(scalars)
            begun.exchange.commit(counts=True)
            return begun.own

        return Operation(
            self._parameters(name, exchange),
            run,
            gradient.exact,
            sent / workers.size / (WORD * exchange.count),
            share_sent("all-reduce", workers.size),
            lambda: workers.barrier("ready"),
            sent,
            # How far codes may be off depends on the norms of tensors; the error is in the row.
            0.0 if begun.exchange.plan.is_exact else math.inf,
            reset=reset,
        )

    def close(self) -> None:  # noqa: D102
        for begun in self._begun.values():
            begun.exchange.close()

    def _parameters(self, name: str, exchange: _Exchange) -> dict[str, Value]:
        """What identifies the row."""
        settings = exchange.job.exchange
        across = settings.model_copy(update={"protocol": settings.between_nodes})
        return parameters_of(across, exchange.count, self.gradients.device) | {"job": name}
