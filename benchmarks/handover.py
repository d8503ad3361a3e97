"""Hand-over of adversarial examples from attack to update workers: by an all-to-all, or in pairs.

``python benchmarks/handover.py [--workers 2,4,6,8] [--json PATH]`` starts so many workers on this machine
with mpirun, one number after the other and ``--starts`` times each; under mpirun it uses the workers as they
are. Even ranks update, and the next higher rank attacks for each of them, as with ``concurrent.place:
workers`` and ``concurrent.update_workers: 1``. Images and labels of a batch go from each attack worker to its
update worker, in rotating order after a common start,

- by the engine's all-to-all of all workers, with an empty message for every other worker,
- in pairs: by MPI_Isend and MPI_Irecv, as in training; with ``--engine torch`` by torch.distributed's send
  and recv.

Columns, medians of the repetitions in milliseconds:

- ``arrival``: until images and labels are there, on the slowest update worker. While the main threads
  compute: until one first sees, between two products of matrices and without a call of MPI, that they are.
- ``step``: until the computation, if any, and the wait for the hand-over are over, on the slowest worker.
- ``processor``: processor time of all workers and their threads in the same interval.

``nothing`` is the computation alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch
from arguments import Parser, errors_in_one_line, listed, whole
from handover_steps import work
from tabulate import tabulate

from hpcdat.distributed.launcher import launched
from hpcdat.distributed.local_mpirun import mpirun_command
from hpcdat.errors import WorkerError
from hpcdat.performance.benchmark_file import BenchmarkFile, Row


def launch(workers: int, arguments: argparse.Namespace) -> BenchmarkFile:
    """Start workers on this machine; their measurement."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        passed = ("engine", "rounds", "chunks")
        given = [f"--{key}={getattr(arguments, key)}" for key in passed]
        program = [sys.executable, __file__, *given, "--json", str(answer)]
        done = subprocess.run(
            mpirun_command(workers, program),
            # Open MPI otherwise scans for networks that local workers do not use.
            env={"OMPI_MCA_btl": "^ofi,openib", **os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        if done.returncode:
            raise WorkerError(f"one of {workers} workers ended with code {done.returncode}")
        return BenchmarkFile.read(answer)


def merged(files: list[BenchmarkFile]) -> BenchmarkFile:
    """One file of several starts; the repetitions of equal rows together."""
    rows: dict[tuple[object, ...], list[Row]] = {}
    for row in (row for file in files for row in file.rows):
        rows.setdefault(tuple(row.parameters.values()), []).append(row)
    together = [
        Row(
            parameters=same[0].parameters,
            seconds=[each for row in same for each in row.seconds],
            # Medians over the starts of each start's median.
            figures={key: median(row.figures[key] for row in same) for key in same[0].figures},
        )
        for same in rows.values()
    ]
    settings = files[0].settings | {"starts": len(files)}
    settings["workers"] = sorted({file.settings["workers"] for file in files})
    notes = list(dict.fromkeys(note for file in files for note in file.notes))
    return BenchmarkFile.of("handover", files[0].environment, settings, together, notes=notes)


def table(file: BenchmarkFile) -> str:
    """The measurement as text, times in milliseconds."""
    lines = []
    for row in file.rows:
        given, figures = row.parameters, row.figures
        lines.append(
            [given[key] for key in ("workers", "bytes", "beside", "by", "protocol")]
            + ["" if given["by"] == "nothing" else f"{1e3 * row.median:.2f}"]
            + [f"{1e3 * figures[key]:.2f}" for key in ("step_seconds", "processor_seconds")]
        )
    heads = ["workers", "bytes a pair", "main thread", "by", "protocol", "arrival", "step", "processor"]
    return tabulate(lines, heads, tablefmt="github", disable_numparse=True)


def pairs_of(text: str) -> int:
    """An even number of workers, from the command line."""
    number = whole(2)(text)
    if number % 2:
        raise argparse.ArgumentTypeError(f"{text}: an even number of workers is needed")
    return number


@errors_in_one_line
def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = Parser("hand-over from attack to update workers")
    parser.add_argument(
        "--workers",
        type=listed(pairs_of),
        default=[2, 4, 6, 8],
        help="even numbers of workers to start on this machine, as 2,4 (default: 2,4,6,8)",
    )
    parser.add_argument("--engine", choices=["horovod", "torch"], default="horovod")
    parser.add_rounds(20)
    parser.add_argument("--starts", type=whole(1), default=1, help="starts of each number of workers")
    parser.add_argument("--chunks", type=whole(1), default=40, help="products of 256x256 matrices to compute")
    parser.add_json()
    arguments = parser.parse_args()
    if launched().size > 1:
        torch.set_num_threads(1)
        file = work(arguments.engine, arguments.rounds, arguments.chunks)
        if launched().rank:
            return
    else:
        file = merged([launch(n, arguments) for _ in range(arguments.starts) for n in arguments.workers])
    print(table(file) + "\n\n" + "\n".join(file.notes))
    if arguments.json:
        file.write(arguments.json)


if __name__ == "__main__":
    main()
