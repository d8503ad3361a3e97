"""Draw how the codes of three workers are packed into lanes, added as one word and unpacked.

``python docs/pictures/lanes.py [--out FILE]`` draws what :class:`hpcdat.exchange.quantizer.Quantizer` and
:class:`hpcdat.exchange.bit_packing.Lanes` return for six numbers of each worker.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from drawing import BLUE, FRAME, GREEN, GREY, INK, NORMAL, ORANGE, SMALL, card, output, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from hpcdat.exchange.bit_packing import Lanes
from hpcdat.exchange.counter_rng import split_key
from hpcdat.exchange.protocols import lanes_for
from hpcdat.exchange.quantizer import Quantizer

QUANTIZER = Quantizer(bits=3)
WORKERS, COUNT = 3, 6


class Worker(NamedTuple):
    """What one worker contributes.

    Attributes:
        numbers: float32 (n,).
        codes: 0 to 2 s, (n,).
        words: int32 (1,).
    """

    numbers: Tensor
    codes: Tensor
    words: Tensor


class Example(NamedTuple):
    """A sum of codes in lanes.

    Attributes:
        norm: common to all workers, (1,).
        lanes: their layout.
        workers: what each contributes.
        words: the sum of their words, int32 (1,).
        codes: the sums of their codes, (n,).
        decoded: the numbers that these encode, float32 (n,).
    """

    norm: Tensor
    lanes: Lanes
    workers: list[Worker]
    words: Tensor
    codes: Tensor
    decoded: Tensor


def example() -> Example:
    """Quantise, pack, add and unpack the numbers of all workers, as ``ring`` does."""
    generator = torch.Generator().manual_seed(3)
    # Of few digits, so that what is printed is what is coded.
    rows = (40 * torch.randn(WORKERS, COUNT, generator=generator)).round() / 100
    norm = QUANTIZER.norms(rows).amax(0)
    lanes = lanes_for(QUANTIZER, WORKERS)
    workers = []
    for rank, numbers in enumerate(rows):
        codes = QUANTIZER.encode(numbers, norm, split_key(rank, torch.device("cpu")))
        workers.append(Worker(numbers, codes, lanes.pack(codes)))
    words = torch.stack([worker.words for worker in workers]).sum(0, dtype=torch.int32)
    codes = lanes.unpack(words, COUNT)
    return Example(norm, lanes, workers, words, codes, QUANTIZER.decode(codes, norm, WORKERS))


def draw(shown: Example) -> Figure:
    """The picture: a group of lines for each worker, and one for the sum."""
    height = 6.1
    figure = card(height)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 7.2), ylim=(height, 0))
    axes.axis("off")
    s, width = int(QUANTIZER.s), shown.lanes.width
    _text(axes, 0.1, 0.2, f"Codes of {QUANTIZER.bits} bits: 0 to {2 * s} for -{s} to {s} steps", bold=True)
    _text(
        axes,
        0.1,
        0.45,
        f"Steps of {float(shown.norm):.2f} / {s}, the largest magnitude of all workers. "
        f"A sum is at most {WORKERS} x {2 * s} = {WORKERS * 2 * s}: {width} bits a lane.",
    )
    for lane in range(COUNT):
        _text(axes, _left(lane) + 0.4, 0.8, f"lane {lane}", centred=True)
    _text(axes, _left(COUNT) + 0.2, 0.8, "free", centred=True)
    for rank, worker in enumerate(shown.workers):
        top = 0.95 + 1.12 * rank
        _text(axes, 0.1, top + 0.73, f"worker {rank}", bold=True)
        _numbers(axes, top, "gradient", [f"{number:+.2f}" for number in worker.numbers])
        _numbers(axes, top + 0.25, "code", [str(int(code)) for code in worker.codes])
        _word(axes, top + 0.53, worker.words, shown.lanes, BLUE)
    top = 0.95 + 1.12 * WORKERS
    axes.plot([0.1, 7.1], [top - 0.03, top - 0.03], color=FRAME, linewidth=0.8)
    _text(axes, 0.1, top + 0.35, "sum", bold=True)
    _word(axes, top + 0.15, shown.words, shown.lanes, ORANGE)
    _numbers(axes, top + 0.62, "unpacked", [str(int(code)) for code in shown.codes])
    _numbers(axes, top + 0.87, "decoded", [f"{number:+.2f}" for number in shown.decoded], fill=GREEN)
    exact = torch.stack([worker.numbers for worker in shown.workers]).sum(0)
    _numbers(axes, top + 1.12, "exact", [f"{number:+.2f}" for number in exact])
    decoded = f"decoded = (unpacked - {WORKERS} x {s}) x {float(shown.norm):.2f} / {s}"
    _text(axes, 0.1, top + 1.65, f"{decoded}; one addition of 32-bit words adds {COUNT} codes.")
    return figure


def _left(lane: int) -> float:
    """Where a lane begins; the lowest bits of a word are on the right."""
    return 5.3 - 0.8 * lane if lane < COUNT else 0.9


def _text(axes: Axes, x: float, y: float, text: str, *, bold: bool = False, centred: bool = False) -> None:
    axes.text(
        x,
        y,
        text,
        fontsize=NORMAL if bold else SMALL,
        fontweight="bold" if bold else "normal",
        color=INK,
        ha="center" if centred else "left",
        va="center",
    )


def _numbers(axes: Axes, top: float, what: str, values: list[str], fill: str | None = None) -> None:
    """A line of numbers, each above its lane."""
    _text(axes, 6.2, top + 0.2, what)
    for lane, value in enumerate(values):
        if fill:
            axes.add_patch(Rectangle((_left(lane) + 0.08, top + 0.09), 0.64, 0.22, color=fill))
        _text(axes, _left(lane) + 0.4, top + 0.2, value, centred=True)


def _word(axes: Axes, top: float, words: Tensor, lanes: Lanes, fill: str) -> None:
    """The bits of a word, divided into its lanes."""
    bits = f"{int(words[0]) & 0xFFFFFFFF:032b}"
    free = len(bits) - COUNT * lanes.width
    _cell(axes, _left(COUNT), top, 0.4, bits[:free], GREY)
    for lane in range(COUNT):
        end = len(bits) - lane * lanes.width
        _cell(axes, _left(lane), top, 0.8, bits[end - lanes.width : end], fill)
    _text(axes, 6.2, top + 0.2, f"0x{int(words[0]) & 0xFFFFFFFF:08x}")


def _cell(axes: Axes, left: float, top: float, width: float, text: str, fill: str) -> None:
    axes.add_patch(Rectangle((left, top + 0.05), width, 0.3, facecolor=fill, edgecolor=FRAME, linewidth=0.8))
    axes.text(
        left + width / 2,
        top + 0.2,
        text,
        fontsize=NORMAL,
        family="monospace",
        color=INK,
        ha="center",
        va="center",
    )


if __name__ == "__main__":
    file = output(__doc__.splitlines()[0], "lanes.svg")
    save(draw(example()), file)
