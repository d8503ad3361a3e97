"""The exchanges of jobs as training runs them: gradients in the shapes of a network, by a job's settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from communication_exchanges import Gradient, parameters_of
from communication_operations import WORD, Operation, Source, share_sent
from torch import Tensor, nn

from hpcdat.config.job import Job
from hpcdat.distributed.communicator import Communicator
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


class ExchangesOfJobs(Source):
    """The exchanges of jobs.

    Args:
        workers: that take part.
        device: of the gradients.
        jobs: by the names that their rows have.

    Raises:
        InputError: the exchange of a job is to be chosen by measuring (``auto``).
    """

    def __init__(self, workers: Communicator, device: torch.device, jobs: Mapping[str, Job]) -> None:
        self.workers, self.device = workers, device
        self._exchanges: dict[str, _Exchange] = {}
        for name, job in jobs.items():
            if job.exchange.protocol == "auto":
                raise InputError(f"{name}: exchange.protocol: auto: set the protocol that is to be measured")
            network = shapes_of(job, count_classes(job.data, job.module_path or ()))
            self._exchanges[name] = _Exchange(job, {key: p.shape for key, p in gradients_of(network)})

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of the gradients in float32, each size once, the smallest first."""
        return tuple(sorted({WORD * exchange.count for exchange in self._exchanges.values()}))

    def at(self, size: int, chosen: Sequence[str]) -> Iterator[Operation]:  # noqa: D102
        for name, exchange in self._exchanges.items():
            if WORD * exchange.count == size and "exchange" in chosen:
                yield from self._operation(name, exchange)

    def _operation(self, name: str, exchange: _Exchange) -> Iterator[Operation]:
        """The exchange of a job, which ends when the next operation begins."""
        workers, settings, count = self.workers, exchange.job.exchange, exchange.count
        gradient = Gradient.of(count, workers, self.device)
        own = gradient.own.clone()
        # Of these only the gradients are used, which share the memory of the vector.
        parameters = {
            key: nn.Parameter(torch.zeros(shape, device=self.device))
            for key, shape in exchange.shapes.items()
        }
        parts = own.split([shape.numel() for shape in exchange.shapes.values()])
        for parameter, part in zip(parameters.values(), parts, strict=True):
            parameter.grad = part.view_as(parameter)
        exchanging = GradientExchange(workers, list(parameters.items()), settings, exchange.job.seed)
        scalars = torch.zeros(1, device=self.device)
        per_node = workers.size // workers.nodes
        crossing = crossing_of(settings, list(parameters.items()), workers.nodes, per_node)
        sent = crossing.traffic.total if crossing else 0.0

        def reset() -> None:
            own.copy_(gradient.own)
            exchanging.begin(0, 0)

        def run() -> Tensor:
            exchanging.finish(scalars)
            exchanging.commit(counts=True)
            return own

        yield Operation(
            self._parameters(name, exchange),
            run,
            gradient.exact,
            sent / workers.size / (WORD * count),
            share_sent("all-reduce", workers.size),
            lambda: workers.barrier("ready"),
            sent,
            # How far codes may be off depends on the norms of tensors; the error is in the row.
            0.0 if exchanging.plan.is_exact else math.inf,
            reset=reset,
        )
        exchanging.close()

    def _parameters(self, name: str, exchange: _Exchange) -> dict[str, Value]:
        """What identifies the row."""
        settings = exchange.job.exchange
        across = settings.model_copy(update={"protocol": settings.between_nodes})
        return parameters_of(across, exchange.count, self.device) | {"job": name}
