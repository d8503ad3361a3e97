"""Draw what two workers do at what time in DisAdv and in ConAdv, from a trace of real training steps.

``python docs/pictures/conadv_timeline.py [--out FILE]`` starts two workers on this machine with torchrun.
They take steps of :class:`hpcdat.training.step.Algorithm1` on random images of CIFAR's size, with one thread
each, and note when each attack, gradient, exchange and update begins and ends. Lengths depend on the machine
and on what else it does; what waits for what does not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from drawing import BLUE, FRAME, GREEN, GREY, INK, NORMAL, ORANGE, SMALL, card, output, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hpcdat.config.job_file import read_job
from hpcdat.distributed.communicator import Communicator, Pending
from hpcdat.distributed.initialization import init_communicator
from hpcdat.models import build_model_for
from hpcdat.models.losses import Labelled
from hpcdat.training.concurrent_attack import Batch
from hpcdat.training.step import Algorithm1

WORKERS = 2
PLACEMENTS = {
    "DisAdv: each worker attacks its batch, then trains on it": ["method=disadv"],
    "ConAdv, place: beside: attacks during the exchange": ["method=conadv"],
    "ConAdv, place: workers: worker 1 attacks for worker 0": ["method=conadv", "concurrent.place=workers"],
}
"""What is drawn, by title, with the settings of its job."""
JOB = Path(__file__).resolve().parents[2] / "jobs" / "miniature" / "dat-fgsm-ring.yaml"
SETTINGS = ["reproduces=[]", "beside=[]", "data.loader=device", "data.channels=3", "data.image_size=32"]
SETTINGS += ["model.mean=[0.5,0.5,0.5]", "model.std=[0.25,0.25,0.25]", "model.width=0.5", "batch_size=16"]
SETTINGS += ["exchange.protocol=ring", "exchange.bucket_mb=2", "exchange.overlap=true"]
SETTINGS += ["optimizer.name=lars", "optimizer.lr=1"]
CLASSES, WARM_UP, STEPS = 10, 2, 3
"""Classes of the random images; steps before the trace; steps in it."""
LOOKS = {
    "attack": (ORANGE, "//"),
    "gradient": (BLUE, ""),
    "update": (GREEN, "xx"),
    "exchange": (GREY, "\\\\"),
}
"""Colour and hatching of each part of a step."""


class Span(NamedTuple):
    """A part of a step, as one worker went through it.

    Attributes:
        part: a key of :data:`LOOKS`.
        step: of the batch that an attack or gradient is of; -1 otherwise.
        begin, end: seconds on the clock that all processes of a machine share.
    """

    part: str
    step: int
    begin: float
    end: float


class _Noted:
    """A collective in progress whose end is noted."""

    def __init__(self, inner: Pending, done: Callable[[], None]) -> None:
        self._inner, self._done = inner, done
        self.ready, self.wait_or = inner.ready, inner.wait_or

    def wait(self) -> Any:
        result = self._inner.wait()
        self._done()
        return result


class Trace:
    """Notes the parts of one worker's steps, by wrapping methods of the objects that compute them."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._lock = threading.Lock()

    def note(self, part: str, step: int, begin: float) -> None:
        """Add a span that ends now."""
        with self._lock:
            self.spans.append(Span(part, step, begin, time.perf_counter()))

    def noting(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, noting its calls; the first argument may be a batch."""

        def noted(*arguments: Any) -> Any:
            step = arguments[0].step if arguments and isinstance(arguments[0], Batch) else -1
            begin = time.perf_counter()
            result = method(*arguments)
            self.note(part, step, begin)
            return result

        return noted

    def note_exchanges(self, workers: Communicator) -> None:
        """Note the sums of gradients on the channels that the workers will open."""
        open_channel = workers.channel

        def channel(name: str, **options: Any) -> Communicator:
            opened = open_channel(name, **options)
            if name.startswith("exchange"):
                start = opened.iall_reduce

                def iall_reduce(tensors: Sequence[torch.Tensor], of: str) -> Pending:
                    begin = time.perf_counter()
                    return _Noted(start(tensors, of), lambda: self.note("exchange", -1, begin))

                opened.iall_reduce = iall_reduce
            return opened

        workers.channel = channel


def trained(settings: Sequence[str], workers: Communicator, trace: Trace) -> list[Span]:
    """The trace of this worker over a few steps of a job."""
    device = torch.device("cpu")
    job = read_job(JOB, [*SETTINGS, *settings])
    algorithm = Algorithm1(job, build_model_for(job, CLASSES).train(), job.exchange, workers, device)
    algorithm.adversary.attack = trace.noting("attack", algorithm.adversary.attack)
    if algorithm.role.trains:
        gradient = trace.noting("gradient", algorithm.local_gradient)
        algorithm.local_gradient = gradient
    algorithm.optimizer.step = trace.noting("update", algorithm.optimizer.step)
    generator = torch.Generator().manual_seed(workers.rank)
    size = job.data.image_size
    x = torch.rand(job.batch_size, job.data.channels, size, size, generator=generator)
    images = Labelled(x, torch.randint(CLASSES, (job.batch_size,), generator=generator))
    delay = algorithm.adversary.delay

    def batch(step: int) -> Batch:
        read = dict.fromkeys(algorithm.role.reads, images)
        return Batch(0, step, job.batch_size * algorithm.batches, read)

    algorithm.adversary.begin_epoch([batch(step) for step in range(delay)])
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            workers.barrier("warm")
            trace.spans = []
        algorithm.step(batch(step), batch(step + delay) if delay else None)
    algorithm.exchange.close()
    return list(trace.spans)


def work(folder: Path) -> None:
    """One worker: write the traces of all placements to a file of its own."""
    workers, trace = init_communicator(600, engine="torch"), Trace()
    trace.note_exchanges(workers)
    traces = {title: trained(settings, workers, trace) for title, settings in PLACEMENTS.items()}
    workers.close()
    (folder / f"{workers.rank}.json").write_text(json.dumps(traces))


def measured() -> dict[str, list[list[Span]]]:
    """The spans of every worker, by the title of the placement."""
    with tempfile.TemporaryDirectory() as folder:
        torchrun = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={WORKERS}",
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*torchrun, __file__, "--work-in", folder], env=environment, check=True)
        traces = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(WORKERS)]
    return {title: [[Span(*span) for span in trace[title]] for trace in traces] for title in PLACEMENTS}


def draw(traces: Mapping[str, list[list[Span]]]) -> Figure:
    """The picture: for each placement what its workers compute, and under it what they exchange."""
    figure = card(7.0)
    for number, (title, workers) in enumerate(traces.items()):
        axes = figure.add_axes((0.125, 0.69 - 0.3 * number, 0.86, 0.2))
        first = min(span.begin for spans in workers for span in spans)
        last = max(span.end for spans in workers for span in spans)
        for rank, spans in enumerate(workers):
            for span in spans:
                _bar(axes, rank, span, first)
        if "place: workers" in title:
            _hand_over(axes, *workers, first)
        axes.set_title(title, fontsize=NORMAL, fontweight="bold", color=INK, loc="left")
        axes.set(xlim=(0, 1000 * (last - first)), ylim=(2.55 * WORKERS - 0.1, -0.15))
        axes.set_yticks([2.55 * rank + at for rank in range(WORKERS) for at in (0.5, 1.5)])
        axes.set_yticklabels([f"{what} {rank}" for rank in range(WORKERS) for what in ("worker", "exchange")])
        axes.tick_params(labelsize=SMALL, colors=INK)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("milliseconds", fontsize=SMALL, color=INK)
    labels = {
        "attack": "attack on the batch of step t",
        "gradient": "gradient of step t",
        "update": "update",
        "exchange": "exchange of a bucket of gradients",
    }
    patches = [
        Patch(facecolor=colour, hatch=hatch, edgecolor=FRAME, label=labels[part])
        for part, (colour, hatch) in LOOKS.items()
    ]
    figure.legend(
        handles=patches, ncols=2, fontsize=SMALL, frameon=False, loc="upper left", borderaxespad=0.3
    )
    return figure


def _bar(axes: Axes, rank: int, span: Span, first: float) -> None:
    """A part of a step; its number in it if there is room."""
    colour, hatch = LOOKS[span.part]
    left, length = 1000 * (span.begin - first), 1000 * (span.end - span.begin)
    top = 2.55 * rank + (span.part == "exchange")
    style = {"facecolor": colour, "hatch": hatch, "edgecolor": FRAME, "linewidth": 0.6}
    axes.barh(top + 0.5, length, 0.86, left, **style)
    if span.step >= 0:
        background = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        axes.text(
            left + length / 2,
            top + 0.5,
            str(span.step),
            fontsize=SMALL,
            color=INK,
            ha="center",
            va="center",
            bbox=background,
        )


def _hand_over(axes: Axes, update: list[Span], attack: list[Span], first: float) -> None:
    """Arrows from the end of an attack to the gradient of its examples."""
    begins = {span.step: span.begin for span in update if span.part == "gradient"}
    for span in attack:
        if span.part == "attack" and span.step in begins:
            start = (1000 * (span.end - first), 2.55 + 0.07)
            end = (1000 * (begins[span.step] - first), 0.93)
            axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.1})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work-in"]:
        work(Path(sys.argv[2]))
    else:
        file = output(__doc__.splitlines()[0], "conadv-timeline.svg")
        save(draw(measured()), file)
