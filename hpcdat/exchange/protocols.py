"""How gradients reach all workers: worker-server communication, steps 4 to 7 of Algorithm 1.

A protocol takes one worker's vector and gives every worker the same sum, bit for bit. It is written
as a generator that yields each collective when it is under way and goes on with its result, so that
several buckets can be exchanged at once while each protocol reads from top to bottom.

One-sided: the workers quantise what they send (step 4). Two-sided: the server, or each server of a
shard, quantises the sum as well (step 7), and all workers, the server among them, decode the same bytes.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from hpcdat.distributed.communicator import Communicator, Pending
from hpcdat.exchange.bit_packing import Lanes
from hpcdat.exchange.codecs import Cast, Codec, Quantized
from hpcdat.exchange.counter_rng import split_key
from hpcdat.exchange.quantizer import Quantizer
from hpcdat.seeds import derive

Exchanging = Generator[Pending, Any, Tensor]


@dataclass
class Memory:
    """Error feedback: what a sender's rounding left out is added to what it sends next, in float32.

    Attributes:
        kept: by place, what was left out last time.
        staged: by place, what is left out this time; kept once the step counts.
    """

    kept: dict[str, Tensor] = field(default_factory=dict)
    staged: dict[str, Tensor] = field(default_factory=dict)

    def recall(self, place: str, x: Tensor) -> Tensor:
        """The vector and what was left out of it last time."""
        return x + self.kept[place] if place in self.kept else x

    def note(self, place: str, x: Tensor, sent: Tensor) -> None:
        """Note that of the vector only ``sent`` will arrive."""
        self.staged[place] = x - sent

    def settle(self, *, counts: bool) -> None:
        """Keep what was noted since the last time, or forget it where the step was left out."""
        if counts:
            self.kept.update(self.staged)
        self.staged.clear()


@dataclass(frozen=True)
class Draw:
    """Whose random numbers: a function of the seed, the step, the bucket, the sender and the side.

    Attributes:
        seed: the job's.
        epoch, step: of the training.
        bucket: number of the vector.
        device: where the numbers are wanted.
    """

    seed: int
    epoch: int
    step: int
    bucket: int
    device: torch.device

    def key(self, side: str, rank: int) -> Tensor:
        """The key for one side (``worker`` or ``server``) and sender."""
        seed = derive(self.seed, f"quantizer {side}", self.epoch, self.step, self.bucket, rank)
        return split_key(seed, self.device)


class SumProtocol(Protocol):
    """One way to sum; what is particular to it has been given before."""

    def __call__(
        self, workers: Communicator, x: Tensor, draw: Draw, name: str, memory: Memory | None
    ) -> Exchanging:
        """Exchange one vector.

        Args:
            workers: all that take part.
            x: this worker's vector, float32 (n,).
            draw: of the random numbers.
            name: of the collectives, the same on all workers and of no other exchange under way.
            memory: of error feedback, or None.

        Yields:
            Collectives under way, and takes their results.

        Returns:
            The sum over the workers, float32 (n,), the same bits on all of them.
        """
        ...


def ring(
    workers: Communicator, x: Tensor, draw: Draw, name: str, memory: Memory | None, *, codec: Codec
) -> Exchanging:
    """One-sided, by an ordinary all-reduce: codes on one grid, whose sum is the code of the sum.

    The workers agree on the largest norm of every block (a Max all-reduce, 4 bytes a block). Codes
    are added in lanes that cannot carry, by whatever ring or tree the transport prefers, exactly.
    Floating-point formats are added as they are. For the arguments see :class:`SumProtocol`.
    """
    if isinstance(codec, Cast):
        (total,) = yield workers.iall_reduce([x.to(codec.dtype, copy=True)], name)
        rounded: Tensor = total.to(torch.float32)
        return rounded
    assert isinstance(codec, Quantized)
    quantizer = codec.quantizer
    if memory is not None:
        x = memory.recall("worker", x)
    norms = codec.norms(x)
    # What a maximum makes of NaN depends on the transport.
    norms = yield workers.iall_reduce_max(torch.where(norms.isfinite(), norms, torch.inf), f"{name}: norms")
    lanes = lanes_for(quantizer, workers.size)
    words = codec.to_lanes(x, norms, draw.key("worker", workers.rank), lanes)
    if memory is not None:
        memory.note("worker", x, codec.from_lanes(words, norms, lanes, len(x), 1))
    (words,) = yield workers.iall_reduce([words], name)
    return codec.from_lanes(words, norms, lanes, len(x), workers.size)


def lanes_for(quantizer: Quantizer, workers: int) -> Lanes:
    """The lanes in which the codes of so many workers are added."""
    return Lanes.for_sums_up_to(workers * quantizer.largest)


def allgather(
    workers: Communicator, x: Tensor, draw: Draw, name: str, memory: Memory | None, *, codec: Codec
) -> Exchanging:
    """One-sided: every worker receives all codes, as in the paper's public code.

    For the arguments see :class:`SumProtocol`.
    """
    (message,) = _encode("worker", workers, x[None], codec, draw, memory)
    messages = yield workers.iall_gather(message, name)
    return codec.decode_sum(messages, len(x))


def parameter_server(
    workers: Communicator,
    x: Tensor,
    draw: Draw,
    name: str,
    memory: Memory | None,
    *,
    codec: Codec,
    back: Codec,
) -> Exchanging:
    """Algorithm 1 as written: all send to one server (worker 0), which sends the sum back.

    For the arguments see :class:`SumProtocol`; ``back`` is the format of the sum: a floating-point one
    makes the exchange one-sided, a quantizer two-sided.
    """
    (message,) = _encode("worker", workers, x[None], codec, draw, memory)
    messages = yield workers.igather(message, name)
    if workers.is_rank0:
        total = codec.decode_sum(messages, len(x))
        answer = _encode("server", workers, total[None], back, draw, memory)
    else:
        answer = torch.empty(1, back.message_bytes(len(x)), dtype=torch.uint8, device=x.device)
    answer = yield workers.ibroadcast(answer, f"{name}: sum")
    return back.decode(answer, len(x))[0]


def sharded_server(
    workers: Communicator,
    x: Tensor,
    draw: Draw,
    name: str,
    memory: Memory | None,
    *,
    codec: Codec,
    back: Codec,
) -> Exchanging:
    """Every worker is the server of a shard: codes by all-to-all, sums of shards by all-gather.

    Each worker sends and receives 2 (M - 1) / M vectors, as in a ring, but of codes with all their
    levels, rounded once or, two-sided, twice whatever M is. For the arguments see
    :class:`SumProtocol` and :func:`parameter_server`.
    """
    missing = -len(x) % (workers.size * max(_block(codec), _block(back)))
    rows = (pad(x, (0, missing)) if missing else x).view(workers.size, -1)
    messages = yield workers.iall_to_all(_encode("worker", workers, rows, codec, draw, memory), name)
    total = codec.decode_sum(messages, rows.shape[1])
    (shard,) = _encode("server", workers, total[None], back, draw, memory)
    shards = yield workers.iall_gather(shard, f"{name}: sum")
    return back.decode(shards, rows.shape[1]).flatten()[: len(x)]


def hierarchical(
    workers: Communicator,
    x: Tensor,
    draw: Draw,
    name: str,
    memory: Memory | None,
    *,
    node: Communicator,
    leaders: Communicator,
    across: SumProtocol,
) -> Exchanging:
    """Full precision inside a node, another protocol among the first workers of the nodes.

    For the arguments see :class:`SumProtocol`; ``node`` are the workers of this node, ``leaders`` the
    first of every node (any team of its size elsewhere), ``across`` is their protocol.
    """
    (total,) = yield node.iall_reduce([x.clone()], f"{name}: in the node")
    if node.is_rank0:
        total = yield from across(leaders, total, draw, f"{name}: across nodes", memory)
    received: Tensor = yield node.ibroadcast(total, f"{name}: to the node")
    return received


def _encode(
    side: str, workers: Communicator, rows: Tensor, codec: Codec, draw: Draw, memory: Memory | None
) -> Tensor:
    """Step 4 (``worker``) or step 7 (``server``): messages of rows, with error feedback."""
    if memory is not None:
        rows = memory.recall(side, rows)
    messages = codec.encode(rows, draw.key(side, workers.rank))
    if memory is not None:
        memory.note(side, rows, codec.decode(messages, rows.shape[1]))
    return messages


def _block(codec: Codec) -> int:
    """Numbers that share a norm, which a shard must not divide."""
    return (codec.quantizer.block or 1) if isinstance(codec, Quantized) else 1
