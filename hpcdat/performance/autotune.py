"""Protocol ``auto``: the exchange that the cost model finds fastest on the links at hand."""

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
from hpcdat.performance.microbenchmarks import Imagined, Rate, coding_rate, measure_network
from hpcdat.performance.trial_exchange import measure_correction
from hpcdat.progress import Progress
from hpcdat.storage.atomic_files import write_text

KINDS: tuple[Kind, ...] = ("allreduce", "allgather", "alltoall", "gather", "broadcast")
Correction = Callable[[Exchange], float]
"""Factor of what is predicted, by settings."""
WORTH = 0.9
"""Of the time of a more exact exchange: what a less exact one must stay below to be chosen."""
BUCKETS = [0.25, 1.0, 4.0, 16.0, 64.0]
"""MiB of gradients exchanged together."""
EXACTNESS: list[int | str] = [32, 16, "float16", 8, 7, 6, 5, 4, 3, 2, 1]
"""Bits, the most exact ones first."""


class Candidate(BaseModel):
    """An exchange that might be chosen.

    Attributes:
        exchange: its settings.
        computing: seconds that a worker computes in an iteration, measured; None where that was not
            needed, since the network alone takes longer than a more exact exchange.
        seconds: that the exchange takes in an iteration, predicted, with the best size of buckets.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    exchange: Exchange
    computing: float | None
    seconds: float


class Choice(BaseModel):
    """What was chosen, and why.

    Attributes:
        workers: among whom.
        network: as it was measured.
        candidates: every protocol and number of bits with its best buckets, fastest first.
        chosen: the one to use.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int
    network: Network
    candidates: list[Candidate]
    chosen: Candidate

    def in_words(self) -> str:
        """For the user: the choice, and what not to compress would take."""
        chosen = self.chosen
        most_exact = min(self.candidates, key=lambda c: (*exactness(c.exchange), c.seconds))
        return (
            f"{chosen.exchange.in_words()}, {chosen.exchange.bucket_mb:g} MiB together: "
            f"{1e3 * chosen.seconds:.1f} ms an iteration predicted, {1e3 * most_exact.seconds:.1f} ms for "
            f"{most_exact.exchange.in_words()}"
        )


def settle(
    settings: Exchange, workers: Communicator, model: nn.Module, record: Path, progress: Progress
) -> Exchange:
    """The settings without ``auto``; all workers call this together.

    The choice of an earlier start is kept, so that a run that is resumed goes on with the same arithmetic.

    Args:
        settings: the job's ``exchange`` section.
        workers: who will exchange.
        model: whose gradients.
        record: the file that the choice is kept in.
        progress: tells the user.

    Raises:
        InputError: the record is damaged.
    """
    if settings.protocol != "auto":
        return settings
    if workers.size == 1:
        return exact(settings)

    def read() -> str | None:
        kept = read_choice(record) if record.exists() else None
        # Another number of workers goes on from an epoch's start, with sums of its own anyway.
        return kept.model_dump_json() if kept and kept.workers == workers.size else None

    text = workers.on_rank0("read the chosen exchange", read)
    if text is None:
        progress.say("exchange: measuring links and codecs")
        choice = choose(settings, workers, model)

        def write() -> str:
            write_text(record, choice.model_dump_json(indent=2) + "\n")
            return choice.model_dump_json()

        # Worker 0's choice, for processors may round differently.
        text = workers.on_rank0("write the chosen exchange", write)
    choice = Choice.model_validate_json(text)
    progress.say(f"exchange: {choice.in_words()}")
    return choice.chosen.exchange


def recall_exchange(settings: Exchange, record: Path) -> Exchange:
    """How a run has exchanged its gradients: by its settings, or as ``auto`` chose for it.

    Raises:
        InputError: the record is damaged.
    """
    if settings.protocol != "auto":
        return settings
    # One worker alone has nothing to choose.
    return read_choice(record).chosen.exchange if record.exists() else exact(settings)


def exact(settings: Exchange) -> Exchange:
    """Horovod's own all-reduce in float32."""
    return _settled(settings, "ring", 32, False)


def read_choice(record: Path) -> Choice:
    """The choice that a run's folder keeps.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return Choice.model_validate_json(record.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{record} cannot be read: {error}; start over with --overwrite") from None


def choose(settings: Exchange, workers: Communicator, model: nn.Module) -> Choice:
    """Measure, predict, and take the most exact of the fast ones.

    Args:
        settings: with ``auto``; what it allows bounds the choice.
        workers: two or more; all call this together.
        model: whose gradients are exchanged.
    """
    named = gradients_of(model)
    device = named[0][1].device
    compiled = pays_to_compile(sum(p.numel() for _, p in named))
    network = measure_network(workers, KINDS, device)

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
    """The choice over links that were measured.

    Args:
        settings: with ``auto``.
        named: the parameters, first layer first.
        network: as it was measured.
        nodes, per_node: the workers that are to exchange.
        rate: as :func:`~hpcdat.performance.microbenchmarks.coding_rate` gives it; asked only where
            it matters.
        correction: factor of what is predicted for some settings; likewise.
        compiled: whether codecs are.
    """
    size = nodes * per_node
    candidates: list[Candidate] = []
    # The most exact ones first, for what is less exact has to be faster.
    for one in sorted(_allowed(settings), key=exactness):
        plan = make_plan(one, Imagined(size), compiled=compiled)

        def price(computing_rate: float, one: Exchange = one, plan: Plan = plan) -> Candidate:
            tried = [
                predicted(
                    one.model_copy(update={"bucket_mb": bucket_mb}),
                    *(plan, named, network, nodes, per_node, computing_rate),
                )
                for bucket_mb in BUCKETS
            ]
            return min(tried, key=lambda one: one.seconds)

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
    """What the cost model says of one exchange.

    Args:
        exchange: its settings.
        plan: made for them, for as many workers.
        named: the parameters, first layer first.
        network: as it was measured.
        nodes, per_node: the workers that are to exchange.
        rate: seconds a number that a worker computes.
    """
    buckets = make_buckets(named, exchange, coding=not plan.is_exact)
    computing = rate * sum(bucket.count for bucket in buckets if bucket.coded)
    seconds = predict([b.collectives(plan) for b in buckets], computing, network, nodes, per_node)
    return Candidate(exchange=exchange, computing=computing, seconds=seconds)


def exactness(exchange: Exchange) -> tuple[int, bool]:
    """What sorts the most exact one first."""
    return EXACTNESS.index(exchange.bits), exchange.two_sided


def most_exact_of_the_fast(candidates: Iterable[Candidate]) -> Candidate:
    """From the most exact on, each less exact one that saves a tenth of the time or more."""

    def place(candidate: Candidate) -> tuple[int, bool]:
        return exactness(candidate.exchange)

    groups = itertools.groupby(sorted(candidates, key=place), place)
    kept, *later = (min(alike, key=lambda candidate: candidate.seconds) for _, alike in groups)
    for fastest in later:
        if fastest.seconds < WORTH * kept.seconds:
            kept = fastest
    return kept


def _allowed(settings: Exchange) -> list[Exchange]:
    """Every protocol with every number of bits, one-sided and, where allowed, two-sided."""
    allowed = []
    for bits, protocol in itertools.product(settings.bits_allowed, PROTOCOLS):
        allowed.append(_settled(settings, protocol, bits, False))
        served = protocol in ("parameter_server", "sharded_server")
        if settings.two_sided and served and bits not in (32, "float16"):
            allowed.append(_settled(settings, protocol, bits, True))
    return allowed


def _settled(settings: Exchange, protocol: str, bits: int | str, two_sided: bool) -> Exchange:
    feedback = settings.error_feedback and bits not in (32, "float16")
    return settings.model_copy(
        update={"protocol": protocol, "bits": bits, "two_sided": two_sided, "error_feedback": feedback}
    )
