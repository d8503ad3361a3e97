"""Draw who sends how many bytes to whom in each protocol of the exchange, between four workers.

``python docs/pictures/protocols.py [--out FILE]`` runs the protocols of :mod:`hpcdat.exchange.protocols` for
all workers in this process, and draws the collectives that they start with the bytes that they hand over.
Which workers a collective connects is the convention of :mod:`hpcdat.exchange.traffic`: all-reduce and
all-gather run in a ring, a broadcast in a tree. A transport may choose other ways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from drawing import BLUE, FRAME, GREY, INK, NORMAL, SMALL, WIDTH, card, output, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle
from torch import Tensor

from hpcdat.config.sections import Exchange
from hpcdat.distributed.communicator import Communicator, Pending
from hpcdat.distributed.counting import Counted
from hpcdat.distributed.loopback import loopback, run_in_lockstep
from hpcdat.exchange.protocols import Draw
from hpcdat.exchange.resolve import Plan, make_plan
from hpcdat.exchange.traffic import Kind

COUNT = 65536
"""Numbers of the gradient: 262,144 bytes in float32."""
NODES = (0, 0, 1, 1)
"""The node of each worker, which matters to ``hierarchical`` only."""
SHOWN = {
    "ring, one-sided": Exchange(protocol="ring", bits=8),
    "allgather, one-sided": Exchange(protocol="allgather", bits=8),
    "parameter_server, two-sided": Exchange(protocol="parameter_server", bits=8, two_sided=True),
    "sharded_server, two-sided": Exchange(protocol="sharded_server", bits=8, two_sided=True),
    "hierarchical, across: ring": Exchange(protocol="hierarchical", across="ring", bits=8),
}
"""The exchanges of the picture, by their titles."""
KINDS: Mapping[Kind, str] = {
    "allreduce": "all-reduce",
    "allgather": "all-gather",
    "alltoall": "all-to-all",
    "gather": "gather",
    "broadcast": "broadcast",
}
"""What the picture calls a kind of collective."""
PLACES = ((-0.42, -0.3), (0.42, -0.3), (0.42, 0.3), (-0.42, 0.3))
"""Where the workers stand: inches from the middle of a panel, y downwards."""
PANEL, ROW, RADIUS = 1.75, 2.1, 0.13
"""Width of a panel, height of a row, radius of a worker, inches."""
COLUMNS = 4
"""Panels in a row."""


class Arrow(NamedTuple):
    """What one worker sends to another in a collective.

    Attributes:
        source, target: ranks.
        bytes: in total.
    """

    source: int
    target: int
    bytes: float


class Step(NamedTuple):
    """One collective of a protocol.

    Attributes:
        kind: of collective.
        name: that the protocol gives it.
        arrows: its messages.
    """

    kind: Kind
    name: str
    arrows: list[Arrow]


class Recorder(Counted):
    """Counts what a worker sends, and records of which kind each collective is and whom it connects.

    Args:
        inner: the communicator of this worker.
        members: ranks, among all workers, of those that it connects.

    Attributes:
        calls: kind and members by the name of the collective.
    """

    def __init__(self, inner: Communicator, members: Sequence[int]) -> None:
        super().__init__(inner)
        self.members = tuple(members)
        self.calls: dict[str, tuple[Kind, tuple[int, ...]]] = {}

    def iall_reduce(self, tensors: Sequence[Tensor], name: str) -> Pending:  # noqa: D102
        self.calls[name] = ("allreduce", self.members)
        return super().iall_reduce(tensors, name)

    def iall_reduce_max(self, tensor: Tensor, name: str) -> Pending:  # noqa: D102
        self.calls[name] = ("allreduce", self.members)
        return super().iall_reduce_max(tensor, name)

    def iall_to_all(self, rows: Tensor, name: str) -> Pending:  # noqa: D102
        self.calls[name] = ("alltoall", self.members)
        return super().iall_to_all(rows, name)

    def iall_gather(self, row: Tensor, name: str) -> Pending:  # noqa: D102
        self.calls[name] = ("allgather", self.members)
        return super().iall_gather(row, name)

    def igather(self, row: Tensor, name: str) -> Pending:  # noqa: D102
        self.calls[name] = ("gather", self.members)
        return super().igather(row, name)

    def ibroadcast(self, tensor: Tensor, name: str) -> Pending:  # noqa: D102
        self.calls[name] = ("broadcast", self.members)
        return super().ibroadcast(tensor, name)

    def split(self, groups: Sequence[int]) -> Communicator:  # noqa: D102
        own = groups[self.rank]
        members = [rank for rank, group in zip(self.members, groups, strict=True) if group == own]
        part = Recorder(self.inner.split(groups), members)
        part.messages, part.calls = self.messages, self.calls
        return part


def record(settings: Exchange, node_of: Sequence[int], count: int = COUNT) -> tuple[Plan, list[Step]]:
    """Run the exchange of one vector; its plan, and its collectives in the order of worker 0.

    Worker 0 is the first of its node, so it takes part in one group of every collective.

    Args:
        settings: of the exchange.
        node_of: the node of each worker.
        count: numbers in the vector.
    """
    size = len(node_of)
    workers = [Recorder(rank, range(size)) for rank in loopback(size, node_of=node_of)]
    plans = [make_plan(settings, worker) for worker in workers]
    draw = Draw(0, 0, 0, 0, torch.device("cpu"))
    vectors = torch.randn(size, count, generator=torch.Generator().manual_seed(0))
    run_in_lockstep(
        [
            plan.protocol(worker, vector, draw, "gradients", None)
            for plan, worker, vector in zip(plans, workers, vectors, strict=True)
        ]
    )
    sent = {worker.rank: {message.name: message.sent for message in worker.messages} for worker in workers}
    steps = []
    for name, (kind, _) in workers[0].calls.items():
        groups = sorted({worker.calls[name][1] for worker in workers if name in worker.calls})
        arrows = [
            arrow for group in groups for arrow in _arrows(kind, {rank: sent[rank][name] for rank in group})
        ]
        steps.append(Step(kind, name, arrows))
    return plans[0], steps


def _arrows(kind: Kind, given: Mapping[int, int]) -> list[Arrow]:
    """The messages of a collective between the workers that give so many bytes, in the order of ranks."""
    ranks, size = list(given), len(given)
    following = dict(zip(ranks, ranks[1:] + ranks[:1], strict=True))
    match kind:
        case "allreduce":
            return [Arrow(rank, following[rank], 2 * (size - 1) / size * given[rank]) for rank in ranks]
        case "allgather":
            return [Arrow(rank, following[rank], (size - 1) * given[rank]) for rank in ranks]
        case "alltoall":
            return [Arrow(a, b, given[a] / size) for a in ranks for b in ranks if a != b]
        case "gather":
            return [Arrow(rank, ranks[0], given[rank]) for rank in ranks[1:]]
        case "broadcast":
            # Worker i has it from worker i less its highest bit.
            return [
                Arrow(ranks[i - (1 << i.bit_length() - 1)], ranks[i], given[ranks[0]]) for i in range(1, size)
            ]


def draw(recorded: Mapping[str, list[Step]]) -> Figure:
    """The picture: for each protocol a panel for each of its collectives, four panels in a row.

    Args:
        recorded: the collectives by the title of the protocol.
    """
    places: dict[str, tuple[int, int]] = {}
    row, column = 0, 0
    for title, steps in recorded.items():
        if column + max(len(steps), 2) > COLUMNS:
            row, column = row + 1, 0
        places[title] = (row, column)
        column += max(len(steps), 2)
    height = ROW * (row + 1) + 0.35
    figure = card(height)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
    axes.axis("off")
    _text(axes, 0.1, 0.18, f"Four workers, {COUNT:,} numbers ({4 * COUNT:,} bytes in float32), 8 bits")
    for title, steps in recorded.items():
        row, column = places[title]
        left, top = 0.1 + PANEL * column, 0.35 + ROW * row
        if column == 0:
            axes.plot([0.1, WIDTH - 0.1], [top, top], color=FRAME, linewidth=0.8)
        nodes = "hierarchical" in title
        sent = [arrow for step in steps for arrow in step.arrows]
        total = f"all workers send {sum(arrow.bytes for arrow in sent):,.0f} bytes"
        if nodes:
            across = sum(arrow.bytes for arrow in sent if NODES[arrow.source] != NODES[arrow.target])
            total += f", {across:,.0f} of them from node to node (a frame is a node)"
        _text(axes, left, top + 0.17, title, bold=True)
        _text(axes, left, top + 0.37, total)
        for number, step in enumerate(steps):
            middle = left + PANEL * (number + 0.5)
            _panel(axes, middle, top + 1.03, step, nodes=nodes)
            (size,) = {arrow.bytes for arrow in step.arrows}
            what = f"{number + 1}. {KINDS[step.kind]}: {carried(step)}"
            _text(axes, middle, top + 1.68, what, align="center")
            _text(axes, middle, top + 1.87, f"{size:,.0f} bytes an arrow", align="center")
    return figure


def carried(step: Step) -> str:
    """What a collective carries."""
    if step.name.endswith("norms"):
        return "norms"
    if step.name.endswith("node"):
        return "float32"
    return "sum" if step.name.endswith("sum") else "codes"


def _panel(axes: Axes, x: float, y: float, step: Step, *, nodes: bool) -> None:
    """The four workers and the arrows between them.

    Args:
        axes: in inches, y downwards.
        x, y: the middle.
        step: whose arrows are drawn.
        nodes: whether the two nodes are framed.
    """
    if nodes:
        for side in (PLACES[0][1], PLACES[2][1]):
            frame = Rectangle(
                (x - 0.68, y + side - 0.2), 1.36, 0.4, fill=False, edgecolor=FRAME, linestyle="--"
            )
            axes.add_patch(frame)
    pairs = {(arrow.source, arrow.target) for arrow in step.arrows}
    for source, target in sorted(pairs):
        (x0, y0), (x1, y1) = PLACES[source], PLACES[target]
        bend = 0.16 if (target, source) in pairs else 0.0
        style = {"arrowstyle": "-|>", "mutation_scale": 9, "linewidth": 1.1, "color": INK}
        axes.add_patch(
            FancyArrowPatch(
                (x + x0, y + y0),
                (x + x1, y + y1),
                connectionstyle=f"arc3,rad={bend}",
                shrinkA=11,
                shrinkB=11,
                **style,
            )
        )
    used = {rank for pair in pairs for rank in pair}
    for rank, (dx, dy) in enumerate(PLACES):
        fill = GREY if rank not in used else BLUE
        axes.add_patch(Circle((x + dx, y + dy), RADIUS, facecolor=fill, edgecolor=FRAME, linewidth=0.8))
        _text(axes, x + dx, y + dy, str(rank), align="center")


def _text(axes: Axes, x: float, y: float, text: str, *, bold: bool = False, align: str = "left") -> None:
    weight, size = ("bold", NORMAL) if bold else ("normal", SMALL)
    axes.text(x, y, text, fontsize=size, fontweight=weight, color=INK, ha=align, va="center")


if __name__ == "__main__":
    file = output(__doc__.splitlines()[0], "protocols.svg")
    save(draw({title: record(settings, NODES)[1] for title, settings in SHOWN.items()}), file)
