"""Trial of a whole gradient exchange between the workers: its measured over its predicted time."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from hpcdat.config.sections import Exchange
from hpcdat.distributed.communicator import Communicator
from hpcdat.exchange.gradient_exchange import GradientExchange, NamedParameters, grad_of
from hpcdat.performance.cost_model import Network, predict
from hpcdat.performance.microbenchmarks import Rate, repeats_for

TRIAL_LENGTH = 2**21
"""Largest number of gradient elements that are exchanged in a trial."""
TRIAL_SECONDS, MAX_REPEATS = 3.0, 21
"""Duration and largest number of repetitions; the workers' arrival times differ in each."""


def measure_correction(
    settings: Exchange,
    rate: Rate,
    named: NamedParameters,
    network: Network,
    workers: Communicator,
    compute: Callable[[], object] = lambda: None,
) -> float:
    """Measured over predicted seconds of an exchange; all workers call this together.

    The trial exchanges gradients shaped like those of the last layers, TRIAL_LENGTH numbers in all.

    Args:
        settings: of the exchange.
        rate: from :func:`~hpcdat.performance.microbenchmarks.coding_rate`.
        named: the parameters, first layer first.
        network: measured between these workers.
        workers: two or more.
        compute: a worker's computation before its gradients are available. It makes workers arrive at the
            exchange one after the other, as in training, and the first ones encode while others compute.
    """
    exchange = GradientExchange(workers, _placeholders(named), settings, 0)
    coded = sum(bucket.count for bucket in exchange.buckets if bucket.coded)
    expected = predict(
        [bucket.collectives(exchange.plan) for bucket in exchange.buckets],
        rate(settings, exchange.plan.senders) * coded,
        *(network, network.nodes, network.per_node),
    )
    return _seconds(exchange, workers, compute) / expected


def _placeholders(named: NamedParameters) -> list[tuple[str, nn.Parameter]]:
    """Parameters with random gradients in the shapes of the last parameters, first layer first."""
    placeholders: list[tuple[str, nn.Parameter]] = []
    left = TRIAL_LENGTH
    for name, parameter in reversed(named):
        if not left:
            break
        placeholders.append((name, _placeholder(parameter, min(parameter.numel(), left))))
        left -= placeholders[-1][1].numel()
    return placeholders[::-1]


def _placeholder(parameter: Tensor, count: int) -> nn.Parameter:
    # A whole vector keeps its one dimension, so that it is exchanged exactly.
    shape = parameter.shape if count == parameter.numel() else (count, 1)
    placeholder = nn.Parameter(torch.zeros(shape, device=parameter.device))
    generator = torch.Generator(parameter.device).manual_seed(0)
    placeholder.grad = torch.randn(shape, device=parameter.device, generator=generator)
    return placeholder


def _seconds(exchange: GradientExchange, workers: Communicator, compute: Callable[[], object]) -> float:
    """Median communication time of an exchange, as training counts it, after one that compiles codecs."""
    gradients = [grad_of(p) for bucket in exchange.buckets for p in bucket.parameters]
    scalars = torch.zeros(1, device=gradients[0].device)

    def steps(count: int) -> list[float]:
        # No other collective synchronises the workers between exchanges, as in an epoch.
        for _ in range(count):
            compute()
            exchange.begin(0, 0)
            exchange.finish(scalars)
            exchange.commit(counts=True)
            # Dividing keeps the gradients from growing from one exchange to the next.
            torch._foreach_div_(gradients, workers.size)
        every = workers.all_gather_object(exchange.reset().busy, "trial: seconds")
        # The last worker to arrive has not waited for others.
        return list(map(min, zip(*every, strict=True)))

    steps(1)
    (first,) = steps(1)
    times = steps(repeats_for(first, TRIAL_SECONDS, MAX_REPEATS))
    exchange.close()
    return median(times)
