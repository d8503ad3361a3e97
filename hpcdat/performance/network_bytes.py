"""Bytes that a job's exchange puts on the network, computed from its settings and its model's shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tabulate import tabulate

from hpcdat.config.job import Job
from hpcdat.config.sections import Data, Exchange
from hpcdat.data import find_images
from hpcdat.data.image_folder import find_classes
from hpcdat.data.images import DataError
from hpcdat.data.shard_folder import indexed_classes
from hpcdat.errors import InputError
from hpcdat.exchange.gradient_exchange import Bucket, NamedParameters, gradients_of, make_buckets, traffic_of
from hpcdat.exchange.resolve import Plan, make_plan
from hpcdat.exchange.traffic import Traffic
from hpcdat.models import build_model_for
from hpcdat.performance.microbenchmarks import SimulatedCommunicator

DEFAULT_CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "folder": 1000, "shards": 1000}
"""Number of classes of each ``data.source``, used where the images are not on this machine. There is none for
data sets that must be opened to know."""
MIB = 2**20
"""Bytes in a MiB."""


@dataclass(frozen=True)
class Crossing:
    """The network traffic of one exchange of a model's gradients.

    Attributes:
        exchange: between the senders; of a hierarchical one, that between nodes.
        nodes, per_node: the senders; of a hierarchical exchange, one a node.
        plan: how a bucket is exchanged.
        buckets: in the order of their exchange.
    """

    exchange: Exchange
    nodes: int
    per_node: int
    plan: Plan
    buckets: Sequence[Bucket]

    @property
    def traffic(self) -> Traffic:
        """Bytes of one iteration."""
        return traffic_of(self.buckets, self.plan)


def crossing_of(
    exchange: Exchange, named: NamedParameters, nodes: int, per_node: int, *, compiled: bool = False
) -> Crossing | None:
    """The traffic between p x q workers; None if there is none.

    Args:
        exchange: settings of the job, not ``auto``.
        named: parameters with their names, first layer first; only their shapes count.
        nodes, per_node: p and q.
        compiled: whether the plan's codecs are.

    Raises:
        InputError: a lane is too narrow for so many senders.
    """
    if exchange.protocol == "hierarchical":
        exchange, per_node = exchange.model_copy(update={"protocol": exchange.across}), 1
    if nodes * per_node == 1:
        return None
    plan = make_plan(exchange, SimulatedCommunicator(nodes * per_node), compiled=compiled)
    return Crossing(exchange, nodes, per_node, plan, make_buckets(named, exchange, coding=not plan.is_exact))


def describe_bytes(job: Job, nodes: Sequence[int], per_node: int) -> str:
    """The output of ``hpcdat plan --bytes``: nothing is timed, and no images are read.

    Args:
        job: resolved.
        nodes: numbers p.
        per_node: q.

    Raises:
        InputError: the protocol is ``auto``, or a lane is too narrow.
    """
    if job.exchange.protocol == "auto":
        raise InputError("--bytes: exchange.protocol auto chooses by measuring links; set another protocol")
    classes = count_classes(job.data, job.module_path or ())
    named = gradients_of(shapes_of(job, classes))
    rows = []
    for p in nodes:
        crossing = crossing_of(job.exchange, named, p, per_node)
        cells = ["", "", "0"]
        if crossing:
            senders = crossing.nodes * crossing.per_node
            codes = _describe_codes(job.exchange, senders)
            cells = [job.exchange.describe(), codes, f"{crossing.traffic.total / MIB:.1f}"]
        rows.append([f"{p} x {per_node}", *cells])
    header = ["p x q", "exchange", "codes", "MiB / iteration"]
    table = tabulate(rows, header, tablefmt="github", disable_numparse=True)
    count = sum(parameter.numel() for _, parameter in named)
    if job.exchange.protocol == "hierarchical":
        senders_are = "that the nodes send to each other, without what stays inside a node"
    else:
        senders_are = "that all workers send"
    return "\n".join(
        [
            table,
            "",
            f"MiB: 2^20 bytes {senders_are}, computed; packet headers add 1 to 3 %.",
            f"Gradients: {count:,} numbers in {len(named)} tensors ({job.model.name}, {classes:,} classes), "
            f"{4 * count / MIB:.2f} MiB in float32.",
        ]
    )


def shapes_of(job: Job, classes: int) -> torch.nn.Module:
    """The model of a job, without memory for its weights where its constructor allows that."""
    try:
        with torch.device("meta"):
            return build_model_for(job, classes)
    except InputError:
        # A constructor that reads the values of its tensors; or what the job says is wrong.
        return build_model_for(job, classes)


def count_classes(data: Data, folders: Sequence[Path] = ()) -> int:
    """Classes of a job's images: its folders where they are here, otherwise those of its data set.

    Args:
        data: the job's ``data`` section.
        folders: its ``module_path``.

    Raises:
        InputError: data sets of the user's own, or of Hugging Face, cannot be read here.
    """
    if data.holds_items and not data.download:
        return len(find_images(data, folders=folders, quiet=True)[0].classes)
    if data.has_folders and data.root:
        try:
            folder = data.root / data.train
            if classes := indexed_classes(folder) if data.source == "shards" else find_classes(folder):
                return len(classes)
        except (OSError, DataError):
            pass
    return DEFAULT_CLASSES.get(data.source, DEFAULT_CLASSES["folder"])


def _describe_codes(exchange: Exchange, senders: int) -> str:
    """Norm, block and levels: ``l2 norm of each tensor, 127 levels``."""
    if exchange.bits in (32, "float16"):
        return "none"
    norm = "l2 norm" if exchange.norm == "l2" else "largest magnitude"
    block = f"{exchange.block} numbers" if isinstance(exchange.block, int) else f"each {exchange.block}"
    levels = exchange.levels_among(senders)
    return f"{norm} of {block}, {f'{levels:,} levels' if levels else 'signs'}"
