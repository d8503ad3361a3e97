"""Protocol ``auto``: the exchange that the cost model predicts to be fastest on the measured links."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from torch import nn

from hpcdat.config.sections import Exchange
from hpcdat.distributed.communicator import Communicator
from hpcdat.errors import InputError
from hpcdat.exchange.gradient_exchange import NamedParameters, gradients_of, make_buckets
from hpcdat.exchange.resolve import PROTOCOLS, Plan, make_plan, pays_to_compile
from hpcdat.exchange.traffic import Kind
from hpcdat.performance.cost_model import Network, predict
from hpcdat.performance.microbenchmarks import Rate, SimulatedCommunicator, coding_rate, measure_network
from hpcdat.performance.trial_exchange import measure_correction
from hpcdat.progress import Progress
from hpcdat.storage.atomic_files import write_text

COLLECTIVE_KINDS: tuple[Kind, ...] = ("allreduce", "allgather", "alltoall", "gather", "broadcast")
"""The collectives that are measured: all that any protocol uses."""
Correction = Callable[[Exchange], float]
"""Measured over predicted time of an exchange, by its settings."""
MAX_RELATIVE_TIME = 0.9
"""A less exact exchange is chosen only if it takes less than this fraction of a more exact one's time."""
BUCKET_SIZES_MB = [0.25, 1.0, 4.0, 16.0, 64.0]
"""Bucket sizes that are compared, MiB."""
BITS_BY_EXACTNESS: list[int | str] = [32, 16, "float16", 8, 7, 6, 5, 4, 3, 2, 1]
"""Values of ``exchange.bits``, the most exact first."""


class Candidate(BaseModel):
    """An exchange that can be chosen.

    Attributes:
        exchange: its settings, with the best bucket size.
        computing: seconds per iteration that a worker spends on codes, measured; None if not measured,
            because the network time alone exceeds the time of a more exact exchange.
        seconds: predicted time of the exchange per iteration.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    exchange: Exchange
    computing: float | None
    seconds: float


class Choice(BaseModel):
    """The chosen exchange and what it was compared with.

    Attributes:
        workers: number of workers.
        network: the measured links.
        candidates: every protocol and number of bits, fastest first.
        chosen: the candidate to use.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int
    network: Network
    candidates: list[Candidate]
    chosen: Candidate

    def describe(self) -> str:
        """One line: the choice and its predicted time, and the time of the most exact candidate."""
        chosen = self.chosen
        most_exact = min(self.candidates, key=lambda c: (*exactness(c.exchange), c.seconds))
        return (
            f"{chosen.exchange.describe()}, buckets of {chosen.exchange.bucket_mb:g} MiB: predicted "
            f"{1e3 * chosen.seconds:.1f} ms per iteration, {1e3 * most_exact.seconds:.1f} ms with "
            f"{most_exact.exchange.describe()}"
        )


def choose_exchange(
    settings: Exchange, workers: Communicator, model: nn.Module, record: Path, progress: Progress
) -> Exchange:
    """Replace ``auto`` by the exchange to use; all workers call this together.

    The choice is saved, so that a resumed run continues with the same arithmetic.

    Args:
        settings: the job's ``exchange`` section.
        workers: all workers of the run.
        model: its gradients will be exchanged.
        record: file in which the choice is saved.
        progress: prints the choice.

    Returns:
        The settings without ``auto``, the same on all workers.

    Raises:
        InputError: the record is damaged.
    """
    if settings.protocol != "auto":
        return settings
    if workers.size == 1:
        return exact(settings)

    def read() -> str | None:
        stored = read_choice(record) if record.exists() else None
        # With another number of workers the sums are different in any case, so the choice is made again.
        return stored.model_dump_json() if stored and stored.workers == workers.size else None

    text = workers.on_rank0("read the chosen exchange", read)
    if text is None:
        progress.say("exchange: measuring links and codecs")
        choice = measure_and_choose(settings, workers, model)

        def write() -> str:
            write_text(record, choice.model_dump_json(indent=2) + "\n")
            return choice.model_dump_json()

        # All take worker 0's choice, since processors may round the predictions differently.
        text = workers.on_rank0("write the chosen exchange", write)
    choice = Choice.model_validate_json(text)
    progress.say(f"exchange: {choice.describe()}")
    return choice.chosen.exchange


def exchange_of_run(settings: Exchange, record: Path) -> Exchange:
    """The exchange that a run has used: that of its settings, or the recorded choice of ``auto``.

    Raises:
        InputError: the record is damaged.
    """
    if settings.protocol != "auto":
        return settings
    # A single worker leaves no record.
    return read_choice(record).chosen.exchange if record.exists() else exact(settings)


def exact(settings: Exchange) -> Exchange:
    """These settings with the engine's own all-reduce in float32."""
    return _with_protocol(settings, "ring", 32, False)


def read_choice(record: Path) -> Choice:
    """The choice recorded in a run folder.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        return Choice.model_validate_json(record.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{record} cannot be read: {error}; start over with --overwrite") from None


def measure_and_choose(settings: Exchange, workers: Communicator, model: nn.Module) -> Choice:
    """Measure links and codecs, and choose; all workers call this together.

    Args:
        settings: with ``auto``; ``bits_allowed`` and ``two_sided`` limit the candidates.
        workers: two or more.
        model: its gradients are exchanged.
    """
    named = gradients_of(model)
    device = named[0][1].device
    compiled = pays_to_compile(sum(p.numel() for _, p in named))
    network = measure_network(workers, COLLECTIVE_KINDS, device)

    rate = coding_rate(workers, device, compiled=compiled)

    def correction(exchange: Exchange) -> float:
        return measure_correction(exchange, rate, named, network, workers)

    nodes, per_node = network.nodes, network.per_node
    return choose_for(settings, named, network, nodes, per_node, rate, correction, compiled=compiled)


def choose_for(
    settings: Exchange,
    named: NamedParameters,
    network: Network,
    nodes: int,
    per_node: int,
    rate: Rate,
    correction: Correction,
    *,
    compiled: bool,
) -> Choice:
    """The choice for p x q workers connected by measured links.

    Args:
        settings: with ``auto``.
        named: the parameters, first layer first.
        network: the measured links.
        nodes, per_node: p and q, the workers that will exchange.
        rate: from :func:`~hpcdat.performance.microbenchmarks.coding_rate`; called only for candidates whose
            network time does not already exclude them.
        correction: measured over predicted time; called for the same candidates.
        compiled: whether codecs are compiled.
    """
    size = nodes * per_node
    candidates: list[Candidate] = []
    # The most exact ones first, since a less exact one has to be faster than these.
    for one in sorted(_allowed(settings), key=exactness):
        plan = make_plan(one, SimulatedCommunicator(size), compiled=compiled)

        def price(computing_rate: float, one: Exchange = one, plan: Plan = plan) -> Candidate:
            by_size = [
                predicted(
                    one.model_copy(update={"bucket_mb": bucket_mb}),
                    *(plan, named, network, nodes, per_node, computing_rate),
                )
                for bucket_mb in BUCKET_SIZES_MB
            ]
            return min(by_size, key=lambda tried: tried.seconds)

        candidate = price(0.0)
        if all(candidate.seconds < c.seconds for c in candidates if c.computing is not None):
            candidate = price(rate(one, size))
            factor = correction(candidate.exchange)
            candidate = candidate.model_copy(update={"seconds": factor * candidate.seconds})
        else:
            candidate = candidate.model_copy(update={"computing": None})
        candidates.append(candidate)
    return Choice(
        workers=size,
        network=network,
        candidates=sorted(candidates, key=lambda candidate: candidate.seconds),
        chosen=most_exact_of_the_fast(c for c in candidates if c.computing is not None),
    )


def predicted(
    exchange: Exchange,
    plan: Plan,
    named: NamedParameters,
    network: Network,
    nodes: int,
    per_node: int,
    rate: float,
) -> Candidate:
    """The cost model's prediction for one exchange.

    Args:
        exchange: its settings.
        plan: for these settings and this number of workers.
        named: the parameters, first layer first.
        network: the measured links.
        nodes, per_node: the workers that will exchange.
        rate: seconds per number that a worker spends on codes.
    """
    buckets = make_buckets(named, exchange, coding=not plan.is_exact)
    computing = rate * sum(bucket.count for bucket in buckets if bucket.coded)
    seconds = predict([b.collectives(plan) for b in buckets], computing, network, nodes, per_node)
    return Candidate(exchange=exchange, computing=computing, seconds=seconds)


def exactness(exchange: Exchange) -> tuple[int, bool]:
    """Sort key: the most exact exchange first."""
    return BITS_BY_EXACTNESS.index(exchange.bits), exchange.two_sided


def most_exact_of_the_fast(candidates: Iterable[Candidate]) -> Candidate:
    """The most exact candidate, unless a less exact one is faster by a factor of MAX_RELATIVE_TIME."""

    def key(candidate: Candidate) -> tuple[int, bool]:
        return exactness(candidate.exchange)

    groups = itertools.groupby(sorted(candidates, key=key), key)
    best, *less_exact = (min(group, key=lambda candidate: candidate.seconds) for _, group in groups)
    for fastest in less_exact:
        if fastest.seconds < MAX_RELATIVE_TIME * best.seconds:
            best = fastest
    return best


def _allowed(settings: Exchange) -> list[Exchange]:
    """Every protocol with every number of bits, one-sided and, where allowed, two-sided."""
    allowed = []
    for bits, protocol in itertools.product(settings.bits_allowed, PROTOCOLS):
        allowed.append(_with_protocol(settings, protocol, bits, False))
        served = protocol in ("parameter_server", "sharded_server")
        if settings.two_sided and served and bits not in (32, "float16"):
            allowed.append(_with_protocol(settings, protocol, bits, True))
    return allowed


def _with_protocol(settings: Exchange, protocol: str, bits: int | str, two_sided: bool) -> Exchange:
    feedback = settings.error_feedback and bits not in (32, "float16")
    return settings.model_copy(
        update={"protocol": protocol, "bits": bits, "two_sided": two_sided, "error_feedback": feedback}
    )
