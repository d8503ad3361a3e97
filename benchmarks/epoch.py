"""Epochs of training on p x q workers, compared with the predictions of ``hpcdat plan``.

``mpirun -np M python benchmarks/epoch.py [--device auto|cpu|cuda] [--json PATH]`` (or ``srun``,
``horovodrun``, ``torchrun``) calibrates the cost model on the links between the workers, and trains a
pre-activation ResNet-18 of a third of its width on digits with every protocol: DAT-FGSM, four steps per
epoch, without overlap of exchanges and backward pass. Runs of an earlier call in ``--runs`` are replaced.
There are several rounds, since a machine's speed drifts; in each, every protocol is predicted and then used
in training, in an order that rotates. C and T are medians over the epochs after each round's first, in which
codecs are compiled. Six rounds are the fewest that can tell whether a row is steady.

Each process compiles the codecs of every protocol, which takes long where several share a core. With
``--width 0.1 --batch 2 --rounds 1 --epochs 2`` there are too few numbers for that; ``--only`` chooses
protocols.

``python benchmarks/epoch.py [--rates R,R] [--shapes PxQ,...]`` does the same on emulated nodes for every rate
and shape (root, iproute2), which all share this machine's cores.

Ratios:

- ``plan_error_max``: largest relative error over the protocols of the predicted C, calibrated on the same
  links and workers, with a trial exchange of up to two million numbers; median over the rounds.
- ``plan_error_elsewhere_max``: the same, calibrated on the first shape, which has other numbers of workers at
  the same rate, and without a trial.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from dataclasses import dataclass, fields
from fnmatch import fnmatch
from pathlib import Path
from statistics import median
from typing import Any, Literal

from arguments import (
    Parser,
    environment_in_a_box,
    errors_in_one_line,
    file_to_write,
    folder_to_write,
    link_rate,
    listed,
    own_device,
    positive,
    shape,
    whole,
)
from tabulate import tabulate
from timing import rotated

from hpcdat.commands.train import train
from hpcdat.config.job_file import read_job
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.initialization import init_communicator
from hpcdat.distributed.launcher import launched
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.emulation.cluster import create_box, emulated_links, remove_box, run_over_gloo
from hpcdat.errors import WorkerError
from hpcdat.exchange.resolve import pays_to_compile
from hpcdat.performance.benchmark_file import BenchmarkFile, Row
from hpcdat.performance.calibration import Calibration, measure_links
from hpcdat.performance.forecast import forecast, no_correction, trial_corrections
from hpcdat.performance.microbenchmarks import coding_rate
from hpcdat.performance.network_bytes import shapes_of
from hpcdat.performance.step_timing import timing_of
from hpcdat.performance.trial_step import TrialStep, trial_step
from hpcdat.storage.run_folder import RunFolder

JOB = Path(__file__).resolve().parents[1] / "jobs" / "miniature" / "dat-fgsm-ring.yaml"
EXCHANGES = {
    "ring, float32": ["protocol=ring"],
    "ring, 8 bits": ["bits=8", "protocol=ring"],
    "allgather, 8 bits": ["bits=8", "protocol=allgather"],
    "parameter server, 8 bits two-sided": ["bits=8", "protocol=parameter_server", "two_sided=true"],
    "sharded server, float32": ["protocol=sharded_server", "bucket_mb=1"],
    "sharded server, 8 bits": ["bits=8", "protocol=sharded_server", "bucket_mb=1"],
    "sharded server, 8 bits two-sided": [
        *("bits=8", "protocol=sharded_server", "two_sided=true", "bucket_mb=1"),
    ],
}
STEPS = 4
"""Steps in an epoch."""
SAMPLES = 3
"""Samples of a step's time, which all workers take at once."""


@dataclass(frozen=True)
class Training:
    """What is trained.

    Attributes:
        batch: images of a worker in a step.
        epochs: of each round.
        rounds: repetitions.
        width: of the network.
        only: pattern of the protocols' names.
        device: of the jobs.
    """

    batch: int
    epochs: int
    rounds: int
    width: float
    only: str
    device: Literal["auto", "cpu", "cuda"]

    @property
    def exchanges(self) -> dict[str, list[str]]:
        """Settings of the exchange by protocol."""
        return {name: settings for name, settings in EXCHANGES.items() if fnmatch(name, self.only)}

    @property
    def turns(self) -> list[tuple[int, str]]:
        """Round and protocol of each run, in their order."""
        names = list(self.exchanges)
        return [(turn, name) for turn in range(self.rounds) for name in rotated(names, turn)]

    @property
    def options(self) -> list[str]:
        """The command line's options that say the same."""
        return [
            text for field in fields(self) for text in (f"--{field.name}", f"{getattr(self, field.name)}")
        ]


def work(training: Training, runs: Path, elsewhere: Path | None, save: Path) -> dict[str, Any]:
    """Measure on all workers.

    Args:
        training: what is trained.
        runs: folder for the runs; earlier ones in it are replaced.
        elsewhere: calibration of another shape, to predict from as well.
        save: file for this shape's calibration.

    Returns:
        The report, the same on all workers.
    """
    workers = init_communicator(600)
    device = own_device(training.device, workers)
    images = STEPS * training.batch * workers.size
    common = [f"batch_size={training.batch}", f"epochs={training.epochs}", f"model.width={training.width}"]
    common += [f"data.train_images={images}", "data.test_images=10", f"device={training.device}"]
    common += ["evaluation.steps=1", "schedule.decay_epochs=[]"]
    common += ["early_stopping.best_weights=false", "early_stopping.held_out=0"]
    calibration = measure_links(workers, device)
    if workers.is_rank0:
        calibration.write(save)
    other = Calibration.read(elsewhere) if elsewhere else None
    p, q = workers.nodes, workers.size // workers.nodes
    # As in training, where compiling pays.
    network = shapes_of(read_job(JOB, common), 10)
    rate = coding_rate(
        workers, device, compiled=pays_to_compile(sum(p.numel() for p in network.parameters()))
    )
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in training.exchanges}
    for turn, name in training.turns:
        settings = training.exchanges[name]
        if workers.is_rank0:
            print(f"round {turn + 1} of {training.rounds}: {name}", file=sys.stderr, flush=True)
        folder = runs / f"{turn}-{re.sub(r'[^a-z0-9]+', '-', name)}"
        job = read_job(JOB, [*common, f"run_dir={folder}", *(f"exchange.{setting}" for setting in settings)])
        trial = trial_step(job, 10, device)
        timing = timing_of([trial.sample() for _ in range(SAMPLES)], trial.images, "this machine")
        brief = TrialStep(job, 10, device, trial.images, attack_steps=1)
        correction = trial_corrections(calibration, brief.model, rate, workers, brief.compute)
        known = forecast(job, images, brief.model, timing, calibration, p, q, rate, correction, timing)
        # An earlier run of the same settings is another measurement.
        train(job, workers, StopRequest(), overwrite=True)
        lines = RunFolder(job.run_dir).metrics("epoch")[1:]
        rows[name].append(
            {
                "communication": [line["communication_seconds"] for line in lines],
                "total": [line["total_seconds"] for line in lines],
                "predicted": known.communication,
                "predicted_total": known.total,
                # Of 2^20 bytes, in spite of the name.
                "mebibytes": lines[-1]["megabytes"],
            }
        )
        if other:
            known = forecast(job, images, brief.model, timing, other, p, q, rate, no_correction, timing)
            rows[name][-1]["predicted_elsewhere"] = known.communication
    report = {
        "environment": describe_environment(workers, device),
        "calibration": calibration.model_dump(mode="json"),
        "elsewhere": other and other.measured_on,
        "links": emulated_links() or f"{workers.transport} as it is",
        "p": p,
        "q": q,
        "rows": rows,
    }
    workers.close()
    return report


def in_a_box(
    rate: str, p: int, q: int, arguments: argparse.Namespace, folder: Path, elsewhere: Path | None
) -> dict[str, Any]:
    """Start the workers in a box of this rate; worker 0's report."""
    name = f"epoch-{os.getpid()}"
    made = create_box(name, nodes=p, rate=rate)
    answer = folder / f"{rate}-{p}x{q}.json"
    program = [sys.executable, __file__, "--worker-report", str(answer), *training_of(arguments).options]
    program += ["--elsewhere", str(elsewhere)] if elsewhere else []
    try:
        code = run_over_gloo(made, p * q, program, environment_in_a_box())
    finally:
        remove_box(name)
    if code:
        raise WorkerError(f"a worker ended with code {code}")
    return json.loads(answer.read_text())


def in_boxes(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Reports of every rate and shape, in order; the first shape's calibration is used for the others."""
    reports = []
    with tempfile.TemporaryDirectory() as folder:
        for rate in arguments.rates:
            first: Path | None = None
            for p, q in arguments.shapes:
                report = in_a_box(rate, p, q, arguments, Path(folder), first)
                first = first or Path(folder) / f"{rate}-{p}x{q}.calibration"
                reports.append(report)
                print(table_of(report), flush=True)
    return reports


def of_measured(rounds: list[dict[str, Any]], key: str = "predicted") -> float | None:
    """Predicted over measured C, median over the rounds; None without a prediction."""
    if key not in rounds[0]:
        return None
    return median(row[key] / median(row["communication"]) for row in rounds)


def error_max(reports: list[dict[str, Any]], key: str = "predicted") -> float | None:
    """The largest relative error of a prediction of C over all workers and protocols."""
    ratios = [of_measured(rounds, key) for report in reports for rounds in report["rows"].values()]
    return max((abs(ratio - 1) for ratio in ratios if ratio is not None), default=None)


def table_of(report: dict[str, Any]) -> str:
    """A table with a row for each protocol."""
    lines = []
    for name, rounds in report["rows"].items():
        c, total = ([seconds for row in rounds for seconds in row[key]] for key in ("communication", "total"))
        elsewhere = of_measured(rounds, "predicted_elsewhere")
        of_c = [row["predicted"] / median(row["communication"]) for row in rounds]
        lines.append(
            [
                name,
                f"{rounds[0]['mebibytes']:.1f}",
                f"{median(c):.3f}",
                f"{min(c):.3f} - {max(c):.3f}",
                f"{median(row['predicted'] for row in rounds):.3f}",
                f"{of_measured(rounds):.2f}",
                f"{min(of_c):.2f} - {max(of_c):.2f}",
                "" if elsewhere is None else f"{elsewhere:.2f}",
                f"{median(total):.2f}",
                f"{median(row['predicted_total'] for row in rounds):.2f}",
            ]
        )
    header = [
        "protocol",
        "MiB / iteration",
        "C (s)",
        "range",
        "predicted",
        "of C",
        "range",
        "elsewhere, of C",
    ]
    header += ["T (s)", "predicted"]
    sharing = report["calibration"]["network"]["sharing"]
    title = f"{report['p']} x {report['q']} workers, {report['links']}, sharing {sharing:.2f}"
    return f"{title}\n{tabulate(lines, header, tablefmt='github', disable_numparse=True)}\n"


def rows_of(report: dict[str, Any]) -> list[Row]:
    """A row for each protocol: seconds are C of every epoch of all rounds."""
    common = {"nodes": report["p"], "workers_per_node": report["q"], "links": report["links"]}
    return [
        Row(
            parameters={"protocol": name, **common},
            seconds=[seconds for row in rounds for seconds in row["communication"]],
            per_round=len(rounds[0]["communication"]),
            figures={
                "total": median(seconds for row in rounds for seconds in row["total"]),
                "predicted": median(row["predicted"] for row in rounds),
                "predicted_total": median(row["predicted_total"] for row in rounds),
                "predicted_over_measured": of_measured(rounds),
                "predicted_elsewhere_over_measured": of_measured(rounds, "predicted_elsewhere"),
                "mebibytes_per_iteration": rounds[0]["mebibytes"],
            },
        )
        for name, rounds in report["rows"].items()
    ]


def parse() -> argparse.Namespace:
    """The command line's arguments."""
    parser = Parser("epochs on p x q workers compared with their prediction")
    parser.add_argument(
        "--rates",
        type=listed(link_rate),
        default="100mbit,1gbit",
        metavar="R,R",
        help="rates of the emulated links (default: %(default)s)",
    )
    parser.add_argument(
        "--shapes",
        type=listed(shape),
        default="6x1,3x1,2x1",
        metavar="PxQ,...",
        help="emulated nodes x workers on each (default: %(default)s)",
    )
    parser.add_argument(
        "--batch", type=whole(2), default=10, help="images of a worker in a step (default: %(default)s)"
    )
    parser.add_argument(
        "--epochs",
        type=whole(2),
        default=5,
        help="of a round, the first of which warms up (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=whole(1), default=3, help="repetitions (default: %(default)s)")
    parser.add_argument(
        "--width", type=positive, default=0.35, help="of the network; 1: the whole one (default: %(default)s)"
    )
    parser.add_argument(
        "--only", default="*", metavar="PATTERN", help=f"protocols by name, of {'; '.join(EXCHANGES)}"
    )
    parser.add_argument(
        "--runs",
        type=folder_to_write,
        default="runs/epoch",
        help="folder of the runs under a launcher, which all nodes see (default: %(default)s)",
    )
    parser.add_device()
    parser.add_json()
    parser.add_argument("--worker-report", type=file_to_write, help=argparse.SUPPRESS)
    parser.add_argument("--elsewhere", type=Path, help=argparse.SUPPRESS)
    found = parser.parse_args()
    if not training_of(found).exchanges:
        parser.error(f"--only {found.only}: the protocols are {'; '.join(EXCHANGES)}")
    return found


def training_of(arguments: argparse.Namespace) -> Training:
    """What is trained."""
    return Training(**{field.name: getattr(arguments, field.name) for field in fields(Training)})


@errors_in_one_line
def main() -> None:
    """Train and predict, print the tables, write the JSON."""
    arguments = parse()
    training = training_of(arguments)
    if arguments.worker_report:
        answer = arguments.worker_report
        save, runs = answer.with_suffix(".calibration"), answer.with_suffix(".runs")
        report = work(training, runs, arguments.elsewhere, save)
        if launched().rank == 0:
            answer.write_text(json.dumps(report))
        return
    if launched().size > 1:
        save = arguments.runs / "calibration.json"
        save.parent.mkdir(parents=True, exist_ok=True)
        reports = [work(training, arguments.runs, None, save)]
        if launched().rank > 0:
            return
        print(table_of(reports[0]))
    else:
        reports = in_boxes(arguments)
    errors = {
        "plan_error_max": error_max(reports),
        "plan_error_elsewhere_max": error_max(reports, "predicted_elsewhere"),
    }
    ratios = {name: error for name, error in errors.items() if error is not None}
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.3f}")
    if arguments.json:
        settings = {
            "batch_size": arguments.batch,
            "epochs": arguments.epochs,
            "warm_up": 1,
            "repetitions": arguments.rounds,
            "width": arguments.width,
            "device": arguments.device,
            "calibrations": [report["calibration"] for report in reports],
        }
        rows = [row for report in reports for row in rows_of(report)]
        environment = reports[0]["environment"]
        BenchmarkFile.of("epoch", environment, settings, rows, ratios).write(arguments.json)


if __name__ == "__main__":
    main()
