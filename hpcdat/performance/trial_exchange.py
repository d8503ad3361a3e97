"""What a whole exchange of gradients takes between the workers, over what is predicted for it."""

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

TRIAL = 2**21
"""Numbers of an exchange that is tried."""
SECONDS, MOST_REPEATS = 3.0, 21
"""For how long it is tried again, and how often at most: workers come to it at other moments every time."""


def measure_correction(
    settings: Exchange,
    rate: Rate,
    named: NamedParameters,
    network: Network,
    workers: Communicator,
    compute: Callable[[], object] = lambda: None,
) -> float:
    """Seconds of a trial over those that are predicted for it; all workers call this together.

    The gradients of the last layers are exchanged, of as many as make TRIAL numbers.

    Args:
        settings: of the exchange.
        rate: as :func:`~hpcdat.performance.microbenchmarks.coding_rate` gives it.
        named: the parameters, first layer first.
        network: as it was measured between these workers.
        workers: two or more.
        compute: what a worker does before its gradients are there; then workers come to the exchange one
            after the other, as in training, and the first ones code beside the others' computation.
    """
    exchange = GradientExchange(workers, _stand_ins(named), settings, 0)
    coded = sum(bucket.count for bucket in exchange.buckets if bucket.coded)
    expected = predict(
        [bucket.collectives(exchange.plan) for bucket in exchange.buckets],
        rate(settings, exchange.plan.senders) * coded,
        *(network, network.nodes, network.per_node),
    )
    return _seconds(exchange, workers, compute) / expected


def _stand_ins(named: NamedParameters) -> list[tuple[str, nn.Parameter]]:
    """Parameters with gradients of random numbers, first layer first, in place of the last of these."""
    kept: list[tuple[str, nn.Parameter]] = []
    left = TRIAL
    for name, parameter in reversed(named):
        if not left:
            break
        kept.append((name, _stand_in(parameter, min(parameter.numel(), left))))
        left -= kept[-1][1].numel()
    return kept[::-1]


def _stand_in(parameter: Tensor, count: int) -> nn.Parameter:
    # A vector stays exact, as does what stands for it.
    shape = parameter.shape if count == parameter.numel() else (count, 1)
    stand_in = nn.Parameter(torch.zeros(shape, device=parameter.device))
    generator = torch.Generator(parameter.device).manual_seed(0)
    stand_in.grad = torch.randn(shape, device=parameter.device, generator=generator)
    return stand_in


def _seconds(exchange: GradientExchange, workers: Communicator, compute: Callable[[], object]) -> float:
    """C of an exchange, as training counts it: the median, after one in which codecs are compiled."""
    gradients = [grad_of(p) for bucket in exchange.buckets for p in bucket.parameters]
    scalars = torch.zeros(1, device=gradients[0].device)

    def steps(count: int) -> list[float]:
        # Nothing else brings the workers together in between, as nothing does in an epoch.
        for _ in range(count):
            compute()
            exchange.begin(0, 0)
            exchange.finish(scalars)
            exchange.commit(counts=True)
            # Sums become means, lest they grow from one to the next.
            torch._foreach_div_(gradients, workers.size)
        every = workers.all_gather_object(exchange.reset().busy, "trial: seconds")
        # The worker that came last has waited for nobody.
        return list(map(min, zip(*every, strict=True)))

    steps(1)
    (first,) = steps(1)
    times = steps(repeats_for(first, SECONDS, MOST_REPEATS))
    exchange.close()
    return median(times)
