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
draws them. The repetitions of a row are spread over rounds, in which all rows take turns. ``--jobs
JOB.yaml,...`` measures the exchanges of jobs instead, as their training runs them: C of an epoch is the time
of one times the iterations. The columns are explained below the tables, the JSON file in
docs/developers/benchmarks.md.

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
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from arguments import environment_in_a_box, errors_in_one_line, own_device
from communication_arguments import OF_GRADIENT, OF_JOBS, OF_SWEEP, RATES, read_arguments, sizes_of
from communication_exchanges import Gradients
from communication_jobs import ExchangesOfJobs
from communication_operations import SECONDS_TO_ANSWER
from communication_ratios import merge, ratios_of_all
from communication_steps import work
from communication_sweep import Sweep, sweep
from communication_tables import gradient_table, swept_tables

from hpcdat.config.job_file import read_job
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.initialization import init_communicator
from hpcdat.distributed.launcher import launched
from hpcdat.emulation.cluster import create_box, remove_box, run_over_gloo
from hpcdat.performance.benchmark_file import BenchmarkFile
from hpcdat.report.benchmarks.plot import plot_times
from hpcdat.report.benchmarks.sections import benchmark_sections
from hpcdat.report.section import Section
from hpcdat.storage.atomic_files import write_output


def as_worker(arguments: argparse.Namespace) -> BenchmarkFile | None:
    """Measure as one of the workers that a launcher has started; the measurement on worker 0."""
    link = arguments.rates[0] if arguments.rates else None
    engine = (arguments.engines or ["auto"])[0]
    workers = init_communicator(SECONDS_TO_ANSWER, engine=engine, divisible=bool(arguments.jobs))
    measure = _swept if arguments.sweeping else _jobs if arguments.jobs else _gradient
    measured = measure(workers, arguments, link)
    workers.close()
    return measured if workers.is_rank0 else None


def _gradient(workers: Communicator, arguments: argparse.Namespace, link: str | None) -> BenchmarkFile:
    torch.set_num_threads(1)
    return work(workers, arguments.count, arguments.rounds, link)


def _swept(workers: Communicator, arguments: argparse.Namespace, link: str | None) -> BenchmarkFile | None:
    device = workers.on_all_ranks("choose a device", lambda: own_device(arguments.device, workers))
    wanted = Sweep(sizes_of(arguments), tuple(arguments.operations), arguments.warm_up, arguments.repetitions)
    return sweep(workers, device, wanted, link)


def _jobs(workers: Communicator, arguments: argparse.Namespace, link: str | None) -> BenchmarkFile | None:
    device = workers.on_all_ranks("choose a device", lambda: own_device(arguments.device, workers))
    jobs = {path.stem: read_job(path) for path in arguments.jobs}
    exchanges = workers.on_all_ranks(
        "read the jobs", lambda: ExchangesOfJobs(Gradients(workers, device), jobs)
    )
    wanted = Sweep(exchanges.sizes, ("exchange",), arguments.warm_up, arguments.repetitions)
    return sweep(workers, device, wanted, link, exchanges)


def in_a_box(link: str, engine: str, arguments: argparse.Namespace) -> BenchmarkFile:
    """Start the workers in a box with links of this rate, over an engine; the measurement."""
    name = f"bench-{os.getpid()}"
    made = create_box(name, nodes=arguments.nodes, rate=link)
    try:
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder) / "report.json"
            program = [sys.executable, __file__, "--rates", link, "--engines", engine, "--device", "cpu"]
            program += ["--worker-report", str(answer)]
            for option in OF_SWEEP if arguments.sweeping else OF_JOBS if arguments.jobs else OF_GRADIENT:
                value = getattr(arguments, option)
                if option != "plot":
                    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
                    program += [f"--{option.replace('_', '-')}", text]
            code = run_over_gloo(made, arguments.nodes, program, environment_in_a_box())
            if code:
                raise SystemExit(f"a worker ended with code {code}")
            return BenchmarkFile.read(answer)
    finally:
        remove_box(name)


def fits_of(file: BenchmarkFile) -> Section:
    """Latency and bandwidth of two or more sizes, with a plot, as ``hpcdat report --benchmark`` has them."""
    sections, _ = benchmark_sections({"medians": file}, None, plot_times)
    return next(section for section in sections if section.name == "fits")


@errors_in_one_line
def main() -> None:
    """Measure, print the tables, draw, write the JSON."""
    arguments = read_arguments()
    swept = arguments.sweeping or arguments.jobs
    table: Callable[[BenchmarkFile], str] = swept_tables if swept else gradient_table
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
    ratios = {} if swept else ratios_of_all(files)
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
            write_output(arguments.plot, fits.plot)


if __name__ == "__main__":
    main()
