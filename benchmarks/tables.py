"""Tables 1 and 4 of the DAT paper in miniature, on six emulated nodes: ``make tables``.

``python benchmarks/tables.py [--alone] [--out FOLDER] [--json PATH] [--against PATH]``: every job of
jobs/miniature that reproduces one of their rows, or is shown below one, is trained in a box (root, iproute2):
the baselines on one node, DAT on six with links of ``--rate``, and the HPC rows with links of
``--fast-rate``. The report of both tables is written to FOLDER; with ``--against`` the C of an earlier JSON
file are compared. Its rows are T and C of each job, with the seconds of every epoch. Other work on the
machine lengthens them: a note says how much of the processors it used.

``--alone`` also times each job's exchange by itself, right after the training and in the same box, as
``communication.py --jobs`` does.

Ratios, for PGD and FGSM:

- ``c_8_bits_over_32_*``, ``c_8_bits_two_sided_over_32_*``: C of 8 bits over C of 32 bits, as the
  paper ran them (the DAT paper: 0.66 and 1.21 for PGD).
- ``c_8_bits_lanes_over_32_ring_*``, ``c_8_bits_sharded_over_32_ring_*``: the same for hpcdat's own exchanges.
- ``c_against_*``: C of a job over that of the earlier report, the one furthest from 1.
- ``c_alone_over_c_JOB``, with ``--alone``: C of the exchange by itself over C in training.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from arguments import Parser, errors_in_one_line, existing_file, folder_to_write, link_rate, whole
from quiet import Processors, describe

from hpcdat.config.job import Job
from hpcdat.config.job_file import read_job
from hpcdat.config.methods import METHODS
from hpcdat.emulation.cluster import create_box, remove_box
from hpcdat.errors import InputError, WorkerError
from hpcdat.performance.benchmark_file import BenchmarkFile, Row
from hpcdat.storage.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
NAME, TABLES = "tables", ("dat-1", "dat-4")
RUNS = ROOT / "runs" / "tables"


def rows_of(job: Path) -> list[str]:
    """Rows that a job reproduces or is shown below."""
    settings = read_job(job)
    return [*settings.reproduces, *settings.beside]


JOBS = [
    job
    for job in sorted((ROOT / "jobs" / "miniature").glob("*.yaml"))
    if any(row.split("/")[0] in TABLES for row in rows_of(job))
]
HPC = "-hpc"
C, ALONE = "C", "C, the exchange alone"
"""Parts of rows: in training, and measured by itself."""
HPCDAT = (sys.executable, "-m", "hpcdat")
COMMUNICATION = ROOT / "benchmarks" / "communication.py"
REPETITIONS = 6
"""Timed exchanges of a job by itself."""
RATIOS = (
    ("8_bits_over_32", "-8", ""),
    ("8_bits_two_sided_over_32", "-8-two-sided", ""),
    ("8_bits_lanes_over_32_ring", "-8-lanes", "-ring"),
    ("8_bits_sharded_over_32_ring", "-8-sharded", "-ring"),
)
"""Names of the ratios of C, with the ends of the names of the jobs above and below the line."""


def train(
    jobs: Iterable[Path], rate: str, nodes: int, runs: Path, settings: Sequence[str], *, alone: bool
) -> None:
    """Train jobs one after the other, with settings replaced, in a box with such links.

    Args:
        jobs: by their files.
        rate: of the links.
        nodes: of the box.
        runs: folder of the runs.
        settings: replaced in all jobs.
        alone: whether the exchange of each job is then timed by itself.
    """
    name = f"tables-{os.getpid()}"
    create_box(name, nodes=nodes, rate=rate)
    try:
        for job in jobs:
            workers = 1 if METHODS[read_job(job).method].centralised else nodes
            folder = RunFolder(runs / job.stem)
            programs = [
                [*HPCDAT, "train", str(job), "--overwrite", "--set", f"run_dir={folder.path}", *settings]
            ]
            if alone and workers > 1:
                programs.append(exchange_of(folder, read_job(job, settings), rate))
            began = time.monotonic()
            print(f"{job.stem}: {workers} workers, {rate} links", end="", flush=True)
            log = runs / f"{job.stem}.log"
            with log.open("w") as file:
                for program in programs:
                    command = [*HPCDAT, "box", "run", name, "-np", str(workers), "--", *program]
                    done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT)
                    if done.returncode:
                        print(flush=True)
                        raise WorkerError(f"{job.stem} ended with code {done.returncode}: {log}")
            print(f", {time.monotonic() - began:.0f} s", flush=True)
    finally:
        remove_box(name)


def exchange_of(folder: RunFolder, job: Job, rate: str) -> list[str]:
    """The program that times the exchange of a run by itself, for each worker."""
    settings = {
        "--jobs": folder.job_file,
        "--engines": job.engine,
        "--device": "cpu",
        "--rates": rate,
        "--repetitions": REPETITIONS,
        "--worker-report": file_alone(folder),
    }
    return [sys.executable, str(COMMUNICATION), *(str(word) for pair in settings.items() for word in pair)]


def file_alone(folder: RunFolder) -> Path:
    """The file of what :func:`exchange_of` measures."""
    return folder.path.with_name(f"{folder.path.name}.alone.json")


def seconds_in(text: str) -> dict[str, float]:
    """The type of ``--against``: C by job, of a JSON file of this benchmark."""
    try:
        file = BenchmarkFile.read(existing_file(text))
    except InputError as error:
        raise ArgumentTypeError(str(error)) from None
    if file.benchmark != NAME:
        raise ArgumentTypeError(f"{text} is a file of the benchmark {file.benchmark}, not of {NAME}")
    return seconds_of(file.rows)


def seconds_of(rows: Sequence[Row], part: str = C) -> dict[str, float]:
    """C by job, of those that several workers have trained."""
    return {str(row.parameters["job"]): row.median for row in rows if row.parameters["part"] == part}


def rows_from(folder: RunFolder, rate: str, *, alone: bool = False) -> list[Row]:
    """T and C of a run, the latter only with several workers.

    Args:
        folder: of the run.
        rate: of the links.
        alone: whether there is a measurement of the exchange by itself, for another row.
    """
    result, epochs = folder.read_result(), folder.metrics("epoch")
    common = {"job": folder.path.name, "nodes": result.p, "workers_per_node": result.q, "rate": rate}
    figures = {"ta": result.ta, "ra": result.ra, "mebibytes_per_iteration": result.megabytes}
    seconds = {"T": [epoch["total_seconds"] for epoch in epochs]}
    if result.p * result.q > 1:
        seconds[C] = [epoch["communication_seconds"] for epoch in epochs]
        if alone:
            (measured,) = BenchmarkFile.read(file_alone(folder)).rows
            iterations = math.ceil(epochs[-1]["images"] / (result.batch * result.batches))
            seconds[ALONE] = [iterations * each for each in measured.seconds]
    return [
        Row(
            parameters={"part": part, **common},
            seconds=each,
            # No other job ran between the epochs.
            per_round=len(each),
            figures=figures if part == "T" else {},
        )
        for part, each in seconds.items()
    ]


def ratios_of(
    seconds: dict[str, float], before: dict[str, float], alone: dict[str, float] | None = None
) -> dict[str, float]:
    """What the tables are read for.

    Args:
        seconds: C by job.
        before: of an earlier file.
        alone: of the exchanges by themselves.
    """
    ratios = {}
    for oracle in ("pgd", "fgsm"):
        for name, job, reference in RATIOS:
            full, codes = (seconds.get(f"dat-{oracle}{end}") for end in (reference, job))
            if full and codes:
                ratios[f"c_{name}_{oracle}"] = codes / full
    again = {job: c / before[job] for job, c in seconds.items() if c and before.get(job)}
    if again:
        furthest = max(again, key=lambda job: abs(again[job] - 1))
        ratios[f"c_against_{furthest}"] = again[furthest]
    for job, c in (alone or {}).items():
        if seconds.get(job):
            ratios[f"c_alone_over_c_{job}"] = c / seconds[job]
    return ratios


@errors_in_one_line
def main() -> None:
    """Train, write the report, print it and the ratios."""
    parser = Parser("Tables 1 and 4 of the DAT paper in miniature", alone="it starts workers itself")
    parser.add_argument("--nodes", type=whole(1), default=6, help="nodes of the box")
    parser.add_argument(
        "--rate", type=link_rate, default="100mbit", help="rate of the links (default: %(default)s)"
    )
    parser.add_argument(
        "--fast-rate", type=link_rate, default="1gbit", help="of the HPC rows' links (default: %(default)s)"
    )
    parser.add_argument("--only", default="*", metavar="PATTERN", help="jobs by name, such as 'dat-fgsm*'")
    parser.add_argument(
        "--alone", action="store_true", help="also time each job's exchange by itself, after the training"
    )
    parser.add_settings("all jobs, such as epochs=1 for a try")
    parser.add_argument(
        "--runs", type=folder_to_write, default=RUNS, help="folder of the runs (default: %(default)s)"
    )
    parser.add_argument("--out", type=folder_to_write, default=RUNS / "report", help="of the report")
    parser.add_json()
    parser.add_argument(
        "--against", type=seconds_in, default={}, metavar="PATH", help="JSON file of an earlier time"
    )
    arguments = parser.parse_args()
    jobs = [job for job in JOBS if fnmatch(job.stem, arguments.only)]
    if not jobs:
        parser.error(f"--only {arguments.only}: the jobs are {', '.join(job.stem for job in JOBS)}")
    for job in jobs:
        read_job(job, arguments.set)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    processors = Processors(children=True)
    for rate, some in (
        (arguments.rate, [job for job in jobs if HPC not in job.stem]),
        (arguments.fast_rate, [job for job in jobs if HPC in job.stem]),
    ):
        if some:
            train(some, rate, arguments.nodes, arguments.runs, arguments.set, alone=arguments.alone)
    used = processors.report()
    folders = [arguments.runs / job.stem for job in jobs]
    shown = dict.fromkeys(row.split("/")[0] for job in jobs for row in rows_of(job))
    tables = [word for table in sorted(shown) for word in ("--table", table)]
    tables += ["--out", str(arguments.out)]
    title = ["--title", "The DAT paper's Tables 1 and 4 in miniature"]
    subprocess.run(
        [sys.executable, "-m", "hpcdat", "report", *map(str, folders), *tables, *title], check=True
    )
    rates = {folder: arguments.fast_rate if HPC in folder.name else arguments.rate for folder in folders}
    rows = [
        row
        for folder, rate in rates.items()
        for row in rows_from(RunFolder(folder), rate, alone=arguments.alone)
    ]
    ratios = ratios_of(seconds_of(rows), arguments.against, seconds_of(rows, ALONE))
    notes = [describe([used], rows)]
    print()
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.3f}")
    for note in notes:
        print(f"note: {note}")
    if arguments.json:
        environment = RunFolder(folders[-1]).environment()
        settings = {"nodes": arguments.nodes, "device": "cpu", "settings": arguments.set}
        BenchmarkFile.of(NAME, environment, settings, rows, ratios, notes).write(arguments.json)


if __name__ == "__main__":
    main()
