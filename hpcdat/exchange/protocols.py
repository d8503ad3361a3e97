"""Protocols of the gradient exchange: worker-server communication, steps 4 to 7 of Algorithm 1.

A protocol takes one worker's vector and gives every worker the same sum, bit for bit. It is a generator
that yields each collective once it is started and receives its result, so that several buckets can be
exchanged at once while each protocol reads from top to bottom.

One-sided: only the workers quantise what they send (step 4). Two-sided: the server, or each server of a
shard, quantises the sum as well (step 7); all workers, including the server, decode the same bytes.
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
from hpcdat.exchange.counter_rng import correlated_key, place_of, split_key
from hpcdat.exchange.quantizer import Quantizer
from hpcdat.seeds import derive

Exchanging = Generator[Pending, Any, Tensor]
"""A running protocol: yields started collectives, receives their results, returns the sum."""


@dataclass
class ErrorFeedback:
    """Error feedback: the rounding error of a message is added to the next one, in float32.

    Attributes:
        residuals: rounding error of the last committed step, by side (``worker``, ``server``).
        staged: rounding error of the current step, by side.
    """

    residuals: dict[str, Tensor] = field(default_factory=dict)
    staged: dict[str, Tensor] = field(default_factory=dict)

    def add_residual(self, side: str, x: Tensor) -> Tensor:
        """The vector plus the residual, if there is one."""
        return x + self.residuals[side] if side in self.residuals else x

    def stage(self, side: str, x: Tensor, sent: Tensor) -> None:
        """Record that ``sent`` was sent in place of the vector."""
        self.staged[side] = x - sent

    def commit(self, *, counts: bool) -> None:
        """Make the staged errors the residuals, or discard them if the step was skipped."""
        if counts:
            self.residuals.update(self.staged)
        self.staged.clear()


@dataclass(frozen=True)
class Draw:
    """Source of random numbers: a function of the seed, the step, the bucket, the sender and the side.

    Attributes:
        seed: the job's.
        epoch, step: of the training.
        bucket: number of the vector.
        device: where the numbers are used.
    """

    seed: int
    epoch: int
    step: int
    bucket: int
    device: torch.device

    def key(self, side: str, rank: int) -> Tensor:
        """The key of independent numbers for one side (``worker`` or ``server``) and sender."""
        return split_key(self._derived(side, rank), self.device)

    def correlated_key(self, workers: Communicator) -> Tensor:
        """The key of this worker's correlated numbers, with which the workers' errors cancel in the sum."""
        own, shift = self._derived("worker", workers.rank), self._derived("shift")
        place = place_of(workers.rank, workers.size, self._derived("permutation"))
        return correlated_key(own, shift, place, workers.size, self.device)

    def _derived(self, what: str, *rank: int) -> int:
        return derive(self.seed, f"quantizer {what}", self.epoch, self.step, self.bucket, *rank)


class SumProtocol(Protocol):
    """A protocol whose own arguments, such as codecs, are already bound."""

    def __call__(
        self, workers: Communicator, x: Tensor, draw: Draw, name: str, feedback: ErrorFeedback | None
    ) -> Exchanging:
        """Exchange one vector.

        Args:
            workers: all workers that take part.
            x: this worker's vector, float32 (n,).
            draw: source of the random numbers.
            name: of the collectives; the same on all workers, and unique among running exchanges.
            feedback: error feedback, or None.

        Yields:
            Started collectives; receives their results.

        Returns:
            The sum over the workers, float32 (n,), the same bits on all of them.
        """
        ...


def ring(
    workers: Communicator, x: Tensor, draw: Draw, name: str, feedback: ErrorFeedback | None, *, codec: Codec
) -> Exchanging:
    """One-sided, by an ordinary all-reduce: codes on a common grid, so that their sum encodes the sum.

    The workers agree on the largest norm of every block (a Max all-reduce, 4 bytes per block). Codes are
    added exactly, in lanes that cannot carry, by the transport's own ring or tree. Floating-point formats
    are added in their own precision. For the arguments see :class:`SumProtocol`.
    """
    if isinstance(codec, Cast):
        (total,) = yield workers.iall_reduce([x.to(codec.dtype, copy=True)], name)
        rounded: Tensor = total.to(torch.float32)
        return rounded
    assert isinstance(codec, Quantized)
    quantizer = codec.quantizer
    if feedback is not None:
        x = feedback.add_residual("worker", x)
    rotated = codec.rotated(x)
    norms = codec.norms(rotated)
    # The maximum of NaN depends on the transport.
    norms = yield workers.iall_reduce_max(torch.where(norms.isfinite(), norms, torch.inf), f"{name}: norms")
    lanes = lanes_for(quantizer, workers.size)
    words = codec.to_lanes(rotated, norms, _worker_key(workers, codec, draw), lanes)
    if feedback is not None:
        feedback.stage("worker", x, codec.from_lanes(words, norms, lanes, len(x), 1))
    (words,) = yield workers.iall_reduce([words], name)
    return codec.from_lanes(words, norms, lanes, len(x), workers.size)


def lanes_for(quantizer: Quantizer, workers: int) -> Lanes:
    """The lanes for the sum of the codes of so many workers."""
    return Lanes.for_sums_up_to(workers * quantizer.largest)


def allgather(
    workers: Communicator, x: Tensor, draw: Draw, name: str, feedback: ErrorFeedback | None, *, codec: Codec
) -> Exchanging:
    """One-sided: every worker receives the codes of all workers, as in the paper's public code.

    For the arguments see :class:`SumProtocol`.
    """
    (message,) = encode_worker(workers, x[None], codec, draw, feedback)
    messages = yield workers.iall_gather(message, name)
    return codec.decode_sum(messages, len(x))


def parameter_server(
    workers: Communicator,
    x: Tensor,
    draw: Draw,
    name: str,
    feedback: ErrorFeedback | None,
    *,
    codec: Codec,
    sum_codec: Codec,
) -> Exchanging:
    """Algorithm 1 as written: all workers send to one server (worker 0), which broadcasts the sum.

    For the arguments see :class:`SumProtocol`; ``sum_codec`` encodes the sum: a floating-point format makes
    the exchange one-sided, a quantizer two-sided.
    """
    (message,) = encode_worker(workers, x[None], codec, draw, feedback)
    messages = yield workers.igather(message, name)
    if workers.is_rank0:
        total = codec.decode_sum(messages, len(x))
        answer = encode_server(workers, total[None], sum_codec, draw, feedback)
    else:
        answer = torch.empty(1, sum_codec.message_bytes(len(x)), dtype=torch.uint8, device=x.device)
    answer = yield workers.ibroadcast(answer, f"{name}: sum")
    return sum_codec.decode(answer, len(x))[0]


def sharded_server(
    workers: Communicator,
    x: Tensor,
    draw: Draw,
    name: str,
    feedback: ErrorFeedback | None,
    *,
    codec: Codec,
    sum_codec: Codec,
) -> Exchanging:
    """Every worker is the server of a shard: codes by all-to-all, sums of shards by all-gather.

    Each worker sends and receives 2 (M - 1) / M vectors, as in a ring. But codes keep all their levels, and
    numbers are rounded once (two-sided: twice) for any M. For the arguments see :class:`SumProtocol` and
    :func:`parameter_server`.
    """
    missing = workers.size * shard_length(len(x), workers.size, codec, sum_codec) - len(x)
    rows = (pad(x, (0, missing)) if missing else x).view(workers.size, -1)
    messages = yield workers.iall_to_all(encode_worker(workers, rows, codec, draw, feedback), name)
    total = codec.decode_sum(messages, rows.shape[1])
    (shard,) = encode_server(workers, total[None], sum_codec, draw, feedback)
    shards = yield workers.iall_gather(shard, f"{name}: sum")
    return sum_codec.decode(shards, rows.shape[1]).flatten()[: len(x)]


def hierarchical(
    workers: Communicator,
    x: Tensor,
    draw: Draw,
    name: str,
    feedback: ErrorFeedback | None,
    *,
    node: Communicator,
    leaders: Communicator,
    across: SumProtocol,
) -> Exchanging:
    """Full precision inside a node, another protocol among the first workers of the nodes.

    For the arguments see :class:`SumProtocol`; ``node`` holds the workers of this node, ``leaders`` the first
    worker of every node (on other workers it is not used), ``across`` is the protocol of the leaders.
    """
    (total,) = yield node.iall_reduce([x.clone()], f"{name}: in the node")
    if node.is_rank0:
        total = yield from across(leaders, total, draw, f"{name}: across nodes", feedback)
    received: Tensor = yield node.ibroadcast(total, f"{name}: to the node")
    return received


def encode_worker(
    workers: Communicator, rows: Tensor, codec: Codec, draw: Draw, feedback: ErrorFeedback | None
) -> Tensor:
    """Step 4: a worker's messages, uint8 (rows, k), of its gradient, float32 (rows, n)."""
    return _encode("worker", rows, codec, _worker_key(workers, codec, draw), feedback)


def encode_server(
    workers: Communicator, rows: Tensor, codec: Codec, draw: Draw, feedback: ErrorFeedback | None
) -> Tensor:
    """Step 7: a server's messages, uint8 (rows, k), of the sum, float32 (rows, n).

    Rounded independently: each server has a shard of its own, and nothing is added.
    """
    return _encode("server", rows, codec, draw.key("server", workers.rank), feedback)


def _worker_key(workers: Communicator, codec: Codec, draw: Draw) -> Tensor:
    """The key for what this worker sends."""
    if isinstance(codec, Quantized) and codec.quantizer.rounding == "correlated":
        return draw.correlated_key(workers)
    return draw.key("worker", workers.rank)


def _encode(side: str, rows: Tensor, codec: Codec, key: Tensor, feedback: ErrorFeedback | None) -> Tensor:
    """Encode rows, with error feedback if given; each side has its own random numbers and residual."""
    if feedback is not None:
        rows = feedback.add_residual(side, rows)
    messages = codec.encode(rows, key)
    if feedback is not None:
        feedback.stage(side, rows, codec.decode(messages, rows.shape[1]))
    return messages


def shard_length(count: int, workers: int, codec: Codec, sum_codec: Codec) -> int:
    """Numbers in each worker's shard of a vector of ``count`` numbers, with padding.

    A shard holds whole blocks, unless it is smaller than a block.
    """
    length = -(-count // workers)
    block = max(_block(codec), _block(sum_codec))
    return length if length < block else -(-length // block) * block


def _block(codec: Codec) -> int:
    """Number of coordinates that share a norm."""
    return (codec.quantizer.block or 1) if isinstance(codec, Quantized) else 1
