"""What grows with the number of workers M: host time, control messages, memory and checkpoints.

``python benchmarks/scale.py [--workers M,M] [--feedback] [--real M,M] [--out FOLDER] [--json PATH]`` trains
the demo's network for a few epochs of four steps, two random images of 8x8 a worker, and measures one worker
at a time: worker 0, and worker 1 for the others, each in a process of its own. The other workers are
simulated: messages take no time, a sum is M times this worker's part, worker 0 gathers M copies of what it
sends, and worker 1 gets what worker 0 gave in its own run. Up to 256 workers all ranks also train together,
as threads of one process over the loopback. Their messages must be as many and, but for the digits of
measured seconds, as long; worker 0 may get less from others than from copies of itself.

For every phase of an epoch: the seconds of a core that the process needs, which leave out waits, the number
of collectives, and the bytes that the worker gives and gets, gradients not counted. An all-to-all, of which a
gather is one, also exchanges 4 bytes for every other worker in Horovod; these are counted separately. The
assignment of 1,281,167 images to a worker is timed as well: all images for all workers (``shares``), and a
part for each (``own shares``). ``--feedback`` quantises gradients to 8 bits with error feedback, whose
residuals are part of a checkpoint.

``--real`` also trains with so many processes over MPI on this machine, and compares the seconds that the
thread that trains needs for a step with those of the same step among simulated workers.

Ratios: ``worker_seconds_PHASE``, ``worker_bytes_PHASE``, ``worker_messages_PHASE`` and ``worker_memory`` are
exponents of M, fitted by least squares of the logarithms, on the worker that is not worker 0; ``rank0_*``
those of worker 0, with ``rank0_*_per_worker`` the bytes or microseconds of each further worker.
``real_over_simulated_M``: the seconds of a step with so many processes, over those among simulated workers.

In the JSON file, ``messages``, ``given`` and ``got`` are those of the phase, with bytes; ``memory_bytes`` is
the most that the worker's process has had, and ``checkpoint_bytes`` the size on disk.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import Parser, errors_in_one_line, folder_to_write, listed, whole
from memory import most_resident
from one_worker import CPU, FEEDBACK, PHASES, OneOf, job_in, seconds_of_shares, train
from tabulate import tabulate

from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.initialization import init_communicator
from hpcdat.distributed.launcher import launched
from hpcdat.distributed.local_mpirun import mpirun_command
from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import WorkerError
from hpcdat.performance.benchmark_file import BenchmarkFile, Row
from hpcdat.report.plots import plot_growth
from hpcdat.storage.atomic_files import write_text

WORKERS = (6, 36, 256, 1536, 4096)
MOST_TOGETHER = 256
"""Largest number of ranks that train as threads of one process."""
DIGITS_OF_SECONDS = 0.05
"""How far the bytes of a phase may differ, in which seconds are sent as text."""
WORKER = {"rank0": "worker 0", "worker": "another worker"}
"""Those that are measured, as the file names them."""
CHECKPOINTS = {"checkpoint": "after", "checkpoint within": "within"}
"""Keys of the checkpoints' sizes, by the phases that write them."""
Measured = dict[str, Any]
"""What one worker has measured: see :func:`one_worker.train`, with ``memory`` in bytes and ``shares``."""


def measure(size: int, rank: int, settings: list[str], recorded: Path) -> Measured:
    """Measure one worker of simulated ones, in this process, which has done nothing else.

    Args:
        size: M.
        rank: of the worker.
        settings: of the job.
        recorded: file of what worker 0 gave, written by worker 0 and read by others.
    """
    of_rank0 = {} if rank == 0 else pickle.loads(recorded.read_bytes())  # noqa: S301
    with tempfile.TemporaryDirectory() as folder:
        report = train(job_in(Path(folder) / "run", settings), OneOf(size, rank, of_rank0))
    report["memory"] = most_resident()
    if rank == 0:
        recorded.write_bytes(pickle.dumps(of_rank0))
    return report | {"shares": seconds_of_shares(size, rank)}


def alone(size: int, rank: int, settings: list[str], folder: Path) -> Measured:
    """:func:`measure` in a process of its own."""
    answer, recorded = folder / "answer.json", folder / f"of-rank-0-of-{size}"
    task = [size, rank, settings, str(recorded), str(answer)]
    done = subprocess.run([sys.executable, __file__, "--one", json.dumps(task)])
    if done.returncode:
        raise WorkerError(f"M = {size}, worker {rank}: its process ended with code {done.returncode}")
    return json.loads(answer.read_text())


def together(size: int, settings: list[str]) -> list[Measured]:
    """What workers 0 and 1 measure while all ranks train as threads of this process."""
    with tempfile.TemporaryDirectory() as folder:
        job = job_in(Path(folder) / "run", settings)
        node_of = [rank // 6 for rank in range(size)]
        answers = run_threads(loopback(size, node_of=node_of, timeout=600), lambda rank: train(job, rank))
    return answers[:2]


def check_messages(size: int, simulated: list[Measured], real: list[Measured]) -> None:
    """Compare the messages of workers 0 and 1 of a simulation with those among so many ranks.

    Raises:
        WorkerError: they differ.
    """
    for rank, (one, other) in enumerate(zip(simulated, real, strict=True)):
        for name in PHASES:
            expected, found = one["phases"][name], other["phases"][name]
            same = expected["messages"] == found["messages"] and expected["counts"] == found["counts"]
            # The outcomes of one batch go to all workers, of six among real ranks.
            keys = () if name == "evaluation" else ("given", "got")
            off = [(expected[k] - found[k]) / max(found[k], 100) for k in keys]
            # Not every worker has as much to tell worker 0 as it has itself.
            more = math.inf if rank == 0 else DIGITS_OF_SECONDS
            if not same or any(not -DIGITS_OF_SECONDS <= one <= more for one in off):
                raise WorkerError(f"M = {size}, worker {rank}, {name}: simulated {expected}, found {found}")


def over_mpi(sizes: list[int], settings: list[str], folder: Path) -> dict[int, list[Measured]]:
    """What workers 0 and 1 measure with so many processes over MPI."""
    found = {}
    for size in sizes:
        answer = folder / f"real-{size}"
        task = ["--process", json.dumps([settings, str(answer)])]
        command = mpirun_command(size, [sys.executable, __file__, *task])
        if code := subprocess.run(command).returncode:
            raise WorkerError(f"--real {size}: a worker ended with code {code}")
        found[size] = [json.loads(answer.with_suffix(f".{rank}").read_text()) for rank in (0, 1)]
    return found


def as_process(settings: list[str], answer: Path) -> None:
    """Train as one of several processes; workers 0 and 1 write what they have measured."""
    workers = init_communicator(600)
    with tempfile.TemporaryDirectory() as folder:
        place = workers.broadcast_object(folder, "run folder")
        report = train(job_in(Path(place) / "run", settings), workers)
        if workers.rank < 2:
            answer.with_suffix(f".{workers.rank}").write_text(json.dumps(report))
        workers.close()


def quantities(measured: Measured) -> dict[str, float]:
    """The numbers whose growth is fitted, by name."""
    found = {"memory": measured["memory"]}
    for name, phase in measured["phases"].items():
        key = name.replace(" ", "_")
        found[f"seconds_{key}"] = phase["seconds"]
        found[f"bytes_{key}"] = phase["given"] + phase["got"]
        found[f"messages_{key}"] = phase["messages"]
    for name, size in measured["checkpoint_bytes"].items():
        found[f"checkpoint_bytes_{name}"] = size
    for name, seconds in measured["shares"].items():
        found[f"seconds_{name.replace(' ', '_')}"] = seconds
    return found


def exponent(growth: dict[int, float]) -> float:
    """The exponent of M in a power law, fitted to logarithms; 0 if nothing is there with any M."""
    if not any(growth.values()):
        return 0.0
    sizes, values = np.log(list(growth)), np.log(list(growth.values()))
    return round(float(np.polyfit(sizes, values, 1)[0]), 3)


def per_worker(growth: dict[int, float]) -> float:
    """What each further worker adds, between the smallest and the largest M."""
    least, most = min(growth), max(growth)
    return (growth[most] - growth[least]) / (most - least)


def ratios_of(rows: dict[str, dict[int, Measured]]) -> dict[str, float]:
    """Exponents of both workers, and what each further worker costs worker 0."""
    ratios: dict[str, float] = {}
    for who, of_sizes in rows.items():
        by_name: dict[str, dict[int, float]] = {}
        for size, measured in of_sizes.items():
            for name, value in quantities(measured).items():
                by_name.setdefault(name, {})[size] = value
        for name, growth in by_name.items():
            ratios[f"{who}_{name}"] = exponent(growth)
            if who == "rank0" and not name.startswith("messages"):
                micro = name.startswith("seconds")
                unit = "microseconds_" if micro else ""
                added = per_worker(growth) * (1e6 if micro else 1)
                ratios[f"rank0_{unit}{name.removeprefix('seconds_')}_per_worker"] = added
    return ratios


def rows_of(measured: dict[str, dict[int, Measured]]) -> list[Row]:
    """The rows of the file: every phase, and the assignment of images, of both workers with each M."""
    rows = []
    for who, of_sizes in measured.items():
        for size, one in of_sizes.items():
            common = {"worker": WORKER[who], "workers": size, "by": "simulation"}
            for name, phase in one["phases"].items():
                figures = {key: phase[key] for key in ("messages", "given", "got")}
                figures["memory_bytes"] = one["memory"]
                if saved := one["checkpoint_bytes"].get(CHECKPOINTS.get(name, "")):
                    figures["checkpoint_bytes"] = saved
                parameters = {"part": PHASES[name], **common}
                rows.append(Row(parameters=parameters, seconds=[phase["seconds"]], figures=figures))
            for name, seconds in one["shares"].items():
                parameters = {"part": f"{name} of ImageNet", **common}
                rows.append(Row(parameters=parameters, seconds=[seconds]))
    return rows


def rows_of_steps(size: int, of_ranks: list[Measured], by: str) -> list[Row]:
    """The rows of the thread that trains, of workers 0 and 1."""
    return [
        Row(
            parameters={"part": "step, the thread that trains", "worker": name, "workers": size, "by": by},
            seconds=[one["phases"]["step"]["thread"]],
        )
        for name, one in zip(WORKER.values(), of_ranks, strict=True)
    ]


def table_of(rows: dict[str, dict[int, Measured]]) -> str:
    """A row for each phase and worker, a column for each M."""
    sizes = list(rows["rank0"])
    lines: list[list[Any]] = []
    for name, label in PHASES.items():
        for who, of_sizes in rows.items():
            every = [of_sizes[size]["phases"][name] for size in sizes]
            values = [
                f"{1e3 * one['seconds']:.1f} ms, {one['messages']}, {_size(one['given'] + one['got'])}"
                for one in every
            ]
            lines.append([label, who, *values])
    for name in ("shares", "own shares"):
        for who, of_sizes in rows.items():
            values = [f"{1e3 * of_sizes[size]['shares'][name]:.0f} ms" for size in sizes]
            lines.append([f"{name} of ImageNet", who, *values])
    for who, of_sizes in rows.items():
        lines.append(["memory", who, *(_size(of_sizes[size]["memory"]) for size in sizes)])
    for name in ("after", "within"):
        values = [_size(rows["rank0"][size]["checkpoint_bytes"][name]) for size in sizes]
        lines.append([f"checkpoint {name} an epoch, on disk", "", *values])
    header = ["", "", *(f"M = {size:,}" for size in sizes)]
    return tabulate(lines, header, tablefmt="github", disable_numparse=True)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def plot(rows: dict[str, dict[int, Measured]]) -> str:
    """Seconds and bytes of every phase over M, for both workers."""
    panels: dict[str, dict[str, dict[int, float]]] = {}
    for title, value in (
        ("seconds of a core", lambda phase: phase["seconds"]),
        ("control bytes", lambda phase: phase["given"] + phase["got"]),
    ):
        for who, of_sizes in rows.items():
            panels[f"{title}, {'worker 0' if who == 'rank0' else 'another worker'}"] = {
                label: {size: value(one["phases"][name]) for size, one in of_sizes.items()}
                for name, label in PHASES.items()
            }
    return plot_growth(panels, "workers M")


@errors_in_one_line
def main() -> None:
    """Measure, print the table, draw, write the JSON."""
    parser = Parser("what grows with the number of workers")
    parser.add_argument(
        "--workers",
        type=listed(whole(2)),
        default=",".join(map(str, WORKERS)),
        metavar="M,M",
        help="two or more numbers of workers (default: %(default)s)",
    )
    parser.add_argument("--feedback", action="store_true", help="quantise with error feedback")
    parser.add_argument(
        "--real",
        type=listed(whole(2)),
        default=[],
        metavar="M,M",
        help="numbers of processes to train with over MPI",
    )
    parser.add_argument("--out", type=folder_to_write, default="runs/scale", help="folder of the plot")
    parser.add_json()
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--process", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        size, rank, settings, recorded, answer = json.loads(arguments.one)
        Path(answer).write_text(json.dumps(measure(size, rank, settings, Path(recorded))))
        return
    if arguments.process:
        settings, answer = json.loads(arguments.process)
        as_process(settings, Path(answer))
        return
    if launched().size > 1:
        parser.refuse_launcher("it starts others itself")
    sizes, real = arguments.workers, arguments.real
    if len(sizes) < 2:
        parser.error(f"--workers {sizes[0]}: expected two numbers or more, since growth is fitted")
    if real:
        # Before the long measurement that comes first.
        mpirun_command(max(real), [])
    settings = FEEDBACK if arguments.feedback else []
    rows: dict[str, dict[int, Measured]] = {"rank0": {}, "worker": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in sizes:
            for rank, who in enumerate(rows):
                rows[who][size] = alone(size, rank, settings, folder)
            if size <= MOST_TOGETHER:
                check_messages(size, [of[size] for of in rows.values()], together(size, settings))
        processes = over_mpi(real, settings, folder)
        simulated = {size: [alone(size, rank, settings, folder) for rank in (0, 1)] for size in real}
    print(table_of(rows) + "\n")
    ratios = ratios_of(rows)
    for size, of_ranks in processes.items():
        steps = [
            [one["phases"]["step"]["thread"] for one in measured] for measured in (of_ranks, simulated[size])
        ]
        ratios[f"real_over_simulated_{size}"] = steps[0][1] / steps[1][1]
        texts = [", ".join(f"{1e3 * seconds:.2f}" for seconds in pair) for pair in steps]
        print(f"{size} processes: ms of a step on workers 0 and 1: {texts[0]}; simulated: {texts[1]}")
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.3g}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out / "scale.svg", plot(rows))
    print(f"plot: {arguments.out / 'scale.svg'}")
    if arguments.json:
        environment = describe_environment(SingleProcess(), CPU)
        of_file = rows_of(rows)
        for size, of_ranks in processes.items():
            of_file += rows_of_steps(size, of_ranks, "MPI") + rows_of_steps(
                size, simulated[size], "simulation"
            )
        run = {"device": "cpu", "threads": 1, "feedback": arguments.feedback}
        BenchmarkFile.of("scale", environment, run, of_file, ratios).write(arguments.json)


if __name__ == "__main__":
    main()
