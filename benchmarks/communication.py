"""Time, bytes and error of the exchange, over emulated and real links, beside MPI and other all-reduces.

``python benchmarks/communication.py [--rates 100mbit,1gbit] [--engines horovod,torch] [--nodes 6] [--count N]
[--json PATH]`` creates emulated nodes for every rate and engine (root) and starts one worker per node, with
one thread each; under mpirun, horovodrun, srun or torchrun it uses the workers and the network as they are
(``--rates`` then is the rate of a card, ``--engines`` one engine).

Every protocol sums the same gradient over all workers, in buckets as in training, including encode and
decode. After a warm-up all protocols run in every round; a run lasts from a common start until the slowest
worker is done, and medians are compared. MiB are predicted from the messages and measured at the network
cards. Emulated nodes share the cores of this machine. Therefore the tables have the processor time of a
worker, too, and what a node with a core of its own would need at least: the longer of that time and the time
that its bytes need on the link.

``--min-bytes 1K --max-bytes 16M`` sweeps over sizes instead, in the manner of nccl-tests: all-reduce,
all-gather, all-to-all, broadcast and point to point by the engine, all-reduces of other packages, MPI itself
where it connects the workers, and our exchanges at 32 to 4 bits; with one process a GPU over NCCL. ``--plot``
draws them. The columns are explained below the tables, the JSON file in docs/benchmarks.md.

Ratios (for all rates but the first, with the rate as a suffix; over torch.distributed, with the suffix
``torch``, where Horovod is measured as well; of the sweep there are none):

- ``fp32_of_limit``: 2 (M - 1) / M of the gradient's bytes over the rate, over the time of our float32;
  ``torch_distributed_of_limit``, of torch.distributed's.
- ``int8_one_sided_over_fp32``, ``int8_two_sided_over_fp32``, ``int4_two_sided_over_fp32``: time over that of
  our float32; with the suffix ``best``, of the engine where the quantised exchange is faster.
- ``overlap_over_max``: time of a step with an exchange that overlaps a backward pass of the same duration,
  over the longer of the two.
- ``bytes_measured_over_predicted``: the value farthest from 1.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from arguments import Parser, errors_in_one_line, file_to_write, link_rate, listed, one_of, own_device, whole
from communication_operations import OPERATIONS, SECONDS_TO_ANSWER
from communication_ratios import merge, ratios_of_all
from communication_steps import work
from communication_sweep import Sweep, sweep
from communication_tables import gradient_table, swept_tables

from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.initialization import init_communicator
from hpcdat.distributed.launcher import launched
from hpcdat.emulation.cluster import CARD, create_box, remove_box, run_over_gloo
from hpcdat.errors import InputError, shorten
from hpcdat.performance.benchmark_file import BenchmarkFile
from hpcdat.report.benchmarks.plot import plot_times
from hpcdat.report.benchmarks.sections import benchmark_sections
from hpcdat.report.pages import Section
from hpcdat.storage.atomic_files import write_text

RATES = ["100mbit", "1gbit"]
"""Rates of emulated links, unless others are given."""
OF_SWEEP = {
    "min_bytes": 2**10,
    "max_bytes": 2**24,
    "factor": 4,
    "warm_up": 5,
    "repetitions": 20,
    "operations": list(OPERATIONS),
    "plot": None,
}
"""Options of the sweep, and their values if they are not given."""
OF_GRADIENT = {"count": 12_000_000, "rounds": 3}
"""The same without a sweep."""
POWERS = {"": 0, "K": 10, "M": 20, "G": 30}


def size(text: str) -> int:
    """The type of sizes in bytes, as nccl-tests has them: ``1K`` is 1024."""
    found = re.fullmatch(r"(\d{1,15})([KMG]?)", text.strip().upper())
    if not found or not int(found[1]):
        raise ArgumentTypeError(f"{shorten(repr(text))}: expected bytes such as 4096, 64K or 16M (1K: 1024)")
    return int(found[1]) << POWERS[found[2]]


def picture(text: str) -> Path:
    """The type of plots that are written."""
    found = file_to_write(text)
    if found.suffix != ".svg":
        raise ArgumentTypeError(f"{shorten(found)}: expected a name that ends with .svg")
    return found


def read_arguments() -> argparse.Namespace:
    """The command line, with ``sweeping``; exits with code 2 if it is wrong."""
    parser = Parser("the exchange and other collectives over emulated and real links")
    parser.add_argument(
        "--rates",
        type=listed(link_rate),
        metavar="RATE,...",
        help="rates of emulated links (default: 100mbit,1gbit); under a launcher that of a node's card",
    )
    parser.add_argument(
        "--engines",
        type=listed(one_of("auto", "horovod", "torch")),
        metavar="ENGINE,...",
        help="auto, horovod, torch (default: horovod,torch on emulated nodes, auto under a launcher)",
    )
    parser.add_argument("--nodes", type=whole(2), metavar="N", default=6, help="emulated nodes (default: 6)")
    parser.add_json()
    parser.add_argument("--worker-report", type=Path, help=argparse.SUPPRESS)
    gradient = parser.add_argument_group("one gradient")
    gradient.add_argument("--count", type=whole(24), metavar="N", help="numbers in it (default: 12000000)")
    gradient.add_argument("--rounds", type=whole(1), metavar="N", help="repetitions (default: 3)")
    swept = parser.add_argument_group("a sweep over sizes, if --min-bytes or --max-bytes is given")
    swept.add_argument("--min-bytes", type=size, metavar="SIZE", help="smallest, such as 1K (default: 1K)")
    swept.add_argument("--max-bytes", type=size, metavar="SIZE", help="largest, such as 16M (default: 16M)")
    swept.add_argument("--factor", type=whole(2), metavar="N", help="from size to size (default: 4)")
    swept.add_argument("--warm-up", type=whole(0), metavar="N", help="runs before the timed (default: 5)")
    swept.add_argument("--repetitions", type=whole(1), metavar="N", help="timed runs (default: 20)")
    swept.add_argument(
        "--operations",
        type=listed(one_of(*OPERATIONS)),
        metavar="NAME,...",
        help=f"{', '.join(OPERATIONS)} (default: all)",
    )
    swept.add_argument("--plot", type=picture, metavar="PATH", help="draw time over size, as SVG")
    parser.add_device()
    found = parser.parse_args()
    found.sweeping = found.min_bytes is not None or found.max_bytes is not None
    others, own = (OF_GRADIENT, OF_SWEEP) if found.sweeping else (OF_SWEEP, OF_GRADIENT)
    for name in others:
        if getattr(found, name) is not None:
            there = "not with --min-bytes" if found.sweeping else "only with --min-bytes"
            parser.error(f"--{name.replace('_', '-')}: {there}")
    for name, default in own.items():
        if getattr(found, name) is None:
            setattr(found, name, default)
    _check(found, parser)
    return found


def _check(found: argparse.Namespace, parser: Parser) -> None:
    """End with code 2 if options contradict each other."""
    if found.sweeping and found.min_bytes > found.max_bytes:
        parser.error(f"--min-bytes {found.min_bytes} is more than --max-bytes {found.max_bytes}")
    if found.sweeping and found.plot and len(sizes_of(found)) == 1:
        parser.error("--plot: there is one size only")
    place = launched()
    if place.size == 1 and place.launcher not in ("none", "srun"):
        # A shell of salloc has srun's variables.
        parser.error(
            f"{place.launcher} has started one worker: start two or more, or none for emulated nodes"
        )
    if place.size > 1:
        for name in ("rates", "engines"):
            if len(getattr(found, name) or []) > 1:
                parser.error(f"--{name}: workers that a launcher has started have one; give one")
    elif found.device == "cuda":
        parser.error("--device cuda: emulated nodes compute on the CPU; start one worker a GPU by a launcher")
    if found.device == "cuda" and not found.sweeping:
        parser.error("--device cuda: only with --min-bytes")


def sizes_of(arguments: argparse.Namespace) -> tuple[int, ...]:
    """The sizes of a sweep in bytes."""
    sizes = [arguments.min_bytes]
    while sizes[-1] * arguments.factor <= arguments.max_bytes:
        sizes.append(sizes[-1] * arguments.factor)
    return tuple(sizes)


def as_worker(arguments: argparse.Namespace) -> BenchmarkFile | None:
    """Measure as one of the workers that a launcher has started; the measurement on worker 0."""
    link = arguments.rates[0] if arguments.rates else None
    workers = init_communicator(SECONDS_TO_ANSWER, engine=(arguments.engines or ["auto"])[0])
    measured = (_swept if arguments.sweeping else _gradient)(workers, arguments, link)
    workers.close()
    return measured if workers.is_rank0 else None


def _gradient(workers: Communicator, arguments: argparse.Namespace, link: str | None) -> BenchmarkFile:
    torch.set_num_threads(1)
    return work(workers, arguments.count, arguments.rounds, link)


def _swept(workers: Communicator, arguments: argparse.Namespace, link: str | None) -> BenchmarkFile | None:
    device = workers.on_all_ranks("choose a device", lambda: own_device(arguments.device, workers))
    wanted = Sweep(sizes_of(arguments), tuple(arguments.operations), arguments.warm_up, arguments.repetitions)
    return sweep(workers, device, wanted, link)


def in_a_box(link: str, engine: str, arguments: argparse.Namespace) -> BenchmarkFile:
    """Start the workers in a box with links of this rate, over an engine; the measurement."""
    name = f"bench-{os.getpid()}"
    made = create_box(name, nodes=arguments.nodes, rate=link)
    try:
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder) / "report.json"
            program = [sys.executable, __file__, "--rates", link, "--engines", engine, "--device", "cpu"]
            program += ["--worker-report", str(answer)]
            for option in OF_SWEEP if arguments.sweeping else OF_GRADIENT:
                value = getattr(arguments, option)
                if option != "plot":
                    text = ",".join(value) if isinstance(value, list) else str(value)
                    program += [f"--{option.replace('_', '-')}", text]
            card = {"GLOO_SOCKET_IFNAME": CARD}
            code = run_over_gloo(made, arguments.nodes, program, {**os.environ, **card})
            if code:
                raise SystemExit(f"a worker ended with code {code}")
            return BenchmarkFile.read(answer)
    finally:
        remove_box(name)


def fits_of(file: BenchmarkFile) -> Section:
    """Latency and bandwidth of two or more sizes, with a plot, as ``hpcdat report --benchmark`` has them."""
    sections, _ = benchmark_sections({"medians": file}, None, plot_times)
    return next(section for section in sections if section.name == "fits")


def write_plot(path: Path, svg: str) -> None:
    """Write a plot.

    Raises:
        InputError: it cannot be written.
    """
    try:
        write_text(path, svg)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


@errors_in_one_line
def main() -> None:
    """Measure, print the tables, draw, write the JSON."""
    arguments = read_arguments()
    table: Callable[[BenchmarkFile], str] = swept_tables if arguments.sweeping else gradient_table
    if launched().size > 1:
        measured = as_worker(arguments)
        if measured is None:
            return
        if arguments.worker_report:
            measured.write(arguments.worker_report)
            return
        files = [[measured]]
    else:
        engines, links = arguments.engines or ["horovod", "torch"], arguments.rates or RATES
        files = [[in_a_box(link, engine, arguments) for engine in engines] for link in links]
    every = [file for of_rate in files for file in of_rate]
    ratios = {} if arguments.sweeping else ratios_of_all(files)
    for file in every:
        print(table(file))
    merged = merge(every, ratios)
    for note in merged.notes:
        print(f"note: {note}")
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.3f}")
    if arguments.json:
        merged.write(arguments.json)
    if arguments.sweeping and len(sizes_of(arguments)) > 1:
        fits = fits_of(merged)
        print(replace(fits, plot="").markdown)
        if arguments.plot:
            write_plot(arguments.plot, fits.plot)


if __name__ == "__main__":
    main()
