"""From the ``exchange`` section of a job to a protocol with its codecs and communicators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch

from hpcdat.config.sections import Exchange
from hpcdat.distributed.communicator import Communicator
from hpcdat.errors import InputError
from hpcdat.exchange.codecs import Cast, Codec, Quantized, can_compile
from hpcdat.exchange.protocols import (
    Exchanging,
    SumProtocol,
    allgather,
    hierarchical,
    lanes_for,
    parameter_server,
    ring,
    sharded_server,
)
from hpcdat.exchange.quantizer import Quantizer
from hpcdat.exchange.traffic import Collective, Traffic, collectives, traffic

PROTOCOLS: dict[str, Callable[..., Exchanging]] = {
    "ring": ring,
    "allgather": allgather,
    "parameter_server": parameter_server,
    "sharded_server": sharded_server,
}
"""The protocols between workers or nodes, by the values of ``exchange.protocol`` and ``exchange.across``."""


@dataclass(frozen=True)
class Plan:
    """How one vector is exchanged.

    Attributes:
        protocol: with its codecs bound.
        name: of the protocol between nodes.
        codec: encodes what workers send.
        sum_codec: encodes the sum that a server sends.
        senders: workers that send over the network: M, or the number of nodes for ``hierarchical``.
        remark: a note for the user; empty if there is none.
    """

    protocol: SumProtocol
    name: str
    codec: Codec
    sum_codec: Codec
    senders: int
    remark: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether this is the plain float32 all-reduce, which needs neither codes nor copies."""
        return (
            isinstance(self.protocol, partial)
            and self.protocol.func is ring
            and isinstance(self.codec, Cast)
            and self.codec.dtype == torch.float32
        )

    def collectives(self, count: int) -> list[Collective]:
        """The collectives between nodes for a vector of ``count`` numbers."""
        return collectives(self.name, count, self.senders, self.codec, self.sum_codec)

    def traffic(self, count: int) -> Traffic:
        """Bytes on the network for a vector of ``count`` numbers."""
        return traffic(self.collectives(count), self.senders)


MIN_COUNT_TO_COMPILE = 2**20
"""Smallest model, in numbers, for which compiling the codec saves more time than it takes."""


def pays_to_compile(count: int) -> bool:
    """Whether to compile the codec for ``count`` numbers; False without a C++ compiler."""
    return count >= MIN_COUNT_TO_COMPILE and can_compile()


def make_plan(settings: Exchange, workers: Communicator, *, compiled: bool = False) -> Plan:
    """Build the codecs and communicators of an exchange; all workers call this together.

    Args:
        settings: of the exchange, without ``auto``.
        workers: all workers that take part.
        compiled: whether to compile the codec with torch.compile.

    Raises:
        InputError: ``lane_bits`` is too narrow for so many workers.
    """
    if settings.protocol == "hierarchical":
        node = workers.split(workers.node_of)
        place = [workers.node_of[:rank].count(n) for rank, n in enumerate(workers.node_of)]
        leaders = workers.split([min(p, 1) for p in place])
        inner = _flat_plan(settings, settings.across, len(set(workers.node_of)), compiled)
        protocol = partial(hierarchical, node=node, leaders=leaders, across=inner.protocol)
        return Plan(protocol, inner.name, inner.codec, inner.sum_codec, inner.senders, inner.remark)
    return _flat_plan(settings, settings.protocol, workers.size, compiled)


def _flat_plan(settings: Exchange, name: str, senders: int, compiled: bool) -> Plan:
    codec, remark = _codec(settings, name, senders, compiled)
    sum_codec = codec if settings.two_sided else Cast(getattr(torch, settings.sum_format))
    protocol = partial(PROTOCOLS[name], codec=codec)
    if name in ("parameter_server", "sharded_server"):
        protocol = partial(protocol, sum_codec=sum_codec)
    return Plan(protocol, name, codec, sum_codec, senders, remark)


def _codec(settings: Exchange, name: str, senders: int, compiled: bool) -> tuple[Codec, str]:
    if settings.bits == 32 or settings.bits == "float16":
        return Cast(torch.float32 if settings.bits == 32 else torch.float16), ""
    block = settings.block if isinstance(settings.block, int) else None
    quantizer = Quantizer(
        settings.bits, settings.norm, block, settings.levels, settings.rounding, settings.rotation
    )
    if name != "ring":
        return _quantized(quantizer, compiled=compiled), ""
    full, most = quantizer.s, settings.lane_levels(senders)
    if most is not None:
        if most < 1:
            raise InputError(
                f"exchange.lane_bits: {settings.lane_bits} bits cannot hold the sum of {senders} workers' "
                f"codes: take {(2 * senders).bit_length()} or more, or protocol sharded_server",
                everywhere=True,
            )
        if most < full:
            quantizer = replace(quantizer, levels=most)
    return _quantized(quantizer, compiled=compiled), _remark_on(quantizer, senders, full)


@cache
def _quantized(quantizer: Quantizer, *, compiled: bool) -> Quantized:
    """Shared by all plans, so that it is compiled once."""
    return Quantized(quantizer, compiled=compiled)


def _remark_on(quantizer: Quantizer, senders: int, full: float) -> str:
    """A note for the user where lanes of a ring cost more than another protocol; otherwise empty."""
    cost = lanes_for(quantizer, senders).bits_per_code
    if cost >= 2 * quantizer.bits:
        return (
            f"exchange: in a ring the sum of {senders} workers' {quantizer.bits}-bit codes takes {cost:.1f} "
            f"bits each, where sharded_server takes {quantizer.bits}; exchange.lane_bits saves bits at the "
            "cost of levels"
        )
    if quantizer.s < full / 8:
        return (
            f"exchange: with {senders} workers these lanes hold only {quantizer.levels} of {full:g} levels; "
            "protocol sharded_server keeps all"
        )
    return ""
