"""Figures 1, 2 and A1 of the DAT paper in miniature: accuracy against the global batch.

``python benchmarks/scaling.py [--workers M,M] [--cifar ROOT] [--out FOLDER] [--json PATH]`` trains on 700
digits (or 4,000 images of CIFAR-10) with M workers of 25 images, as one real worker that stands for M virtual
ones (under mpirun as several, which share them), three seeds each, at the same number of epochs: so with M
times fewer updates.

- figure 1: conventional AT by SGD, its rate left as it is for one worker;
- figure 2: DAT-FGSM (LALR) against DAT-FGSM without LALR and DAT-LSGD (its rate grows with the batch);
- figure A1: Fast AT with the cyclic rate, its peak left as it is for one worker.

Every method has the rate of the paper's grid that does best (RA) on 200 training images held out, with a seed
of its own; DAT-FGSM with and without LALR have it for every global batch anew.

Ratios, points of mean RA (and TA) at the largest batch: ``lalr_minus_without_ra``, ``lalr_minus_lsgd_ra``
and the same for ``ta``: whether LALR recovers what large batches lose, which is ``lost_without_lalr_ra``
(with LALR ``lost_with_lalr_ra``, of conventional AT ``lost_at_ra``).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import torch
from tabulate import tabulate

from hpcdat.commands.train import train, train_seeds
from hpcdat.config.job import Job
from hpcdat.config.job_file import read_job
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.initialization import init_communicator
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.errors import WorkerError
from hpcdat.report.plots import plot_over_batch
from hpcdat.storage.atomic_files import write_text
from hpcdat.storage.run_folder import RunFolder

JOB = Path(__file__).resolve().parents[1] / "jobs" / "demo.yaml"
SEEDS, EPOCHS = 3, 15
DIGITS = [
    *("data.train_images=700", "batch_size=25", "attack.eps=0.1", "attack.steps=null"),
    *(f"epochs={EPOCHS}", "schedule.decay_epochs=[10, 13]", "early_stopping.fgsm_guard=false"),
    *("evaluation.steps=10", "evaluation.every=0"),
]
CIFAR = [
    *("data.source=cifar10", "data.image_size=32", "data.channels=3", "data.augmentation=pad-crop"),
    *("data.train_images=4000", "data.test_images=1000", "attack.eps=8/255", "evaluation.steps=20"),
    *("model.name=preact-resnet18", "model.width=0.25"),
    *("model.mean=[0.49,0.48,0.45]", "model.std=[0.25,0.24,0.26]"),
]
SGD, LAMB = (0.01, 0.05, 0.1, 0.2), (0.01, 0.05, 0.1, 0.2, 0.4)
"""The rates that the paper chose from, supplement 4.1; DAT-FGSM at 0.4 has five more epochs, of warm-up."""
CHOOSING = [
    *("seed=100", "evaluation.every=1000", "early_stopping.held_out=200", "early_stopping.patience=1"),
    # The last images of an epoch fill no large batch.
    "data.last_batch=short",
]
"""Settings of the runs that rates are chosen by: they evaluate at their end."""
PGD = "attack.steps=2"


@dataclass(frozen=True)
class Series:
    """A line of a figure.

    Attributes:
        figure: that it belongs to.
        settings: of its job.
        rates: that its rate is chosen from.
        anew: whether it is for every number of workers, or for the first and then left.
    """

    figure: str
    settings: list[str]
    rates: tuple[float, ...] = SGD
    anew: bool = False


SERIES = {
    "AT": Series("1", ["method=at", PGD]),
    "DAT-FGSM": Series("2", ["method=dat-fgsm"], LAMB, anew=True),
    "DAT-FGSM w/o LALR": Series("2", ["method=dat-fgsm-without-lalr"], anew=True),
    # Its rate is for 256 images; as in Goyal et al. 2017 it is reached from the rate of one worker.
    "DAT-LSGD": Series(
        "2",
        ["method=dat-lsgd", PGD, "schedule.warmup_epochs=3", "schedule.warmup_by=step"],
        tuple(rate * 256 / 25 for rate in SGD),
    ),
    "Fast AT, cyclic": Series("A1", ["method=fast-at", "schedule.decay_epochs=[]", "schedule.name=cyclic"]),
}

Curve = dict[int, dict[str, list[float]]]


def job_of(name: str, m: int, rate: float, settings: list[str], run_dir: Path, real: int = 1) -> Job:
    """The job of a series at so many workers, of which so many are real."""
    series = SERIES[name]
    own = [*series.settings, f"optimizer.lr={rate}", f"virtual_workers={m // real}", f"run_dir={run_dir}"]
    if name == "DAT-LSGD":
        own.append(f"schedule.warmup_start={1 / m}")
    return read_job(JOB, [*settings, *own])


def robustness_by_rate(
    name: str, m: int, settings: list[str], folder: Path, workers: Communicator, stop: StopRequest
) -> dict[float, float]:
    """RA (%) on training images held out, by rate; 0 where training diverged."""
    found = {}
    for rate in SERIES[name].rates:
        job = job_of(name, m, rate, [*settings, *CHOOSING], folder / f"{rate:.3g}", workers.size)
        try:
            train(job, workers, stop)
            # Another node may see the lines a moment later.
            seen = RunFolder(job.run_dir).metrics("evaluation") if workers.is_rank0 else []
            evaluations = workers.all_gather_object(seen, "evaluations")[0]
            found[rate] = next(100 * e["ra"] for e in evaluations if e["held_out"])
        except WorkerError:
            found[rate] = 0.0
    return found


def main() -> None:
    """Choose the rates, train, print the table, draw, write the JSON."""
    parser = argparse.ArgumentParser(description="accuracy against the global batch, in miniature")
    parser.add_argument("--workers", default="1,4,14", help="numbers of workers M (default: %(default)s)")
    parser.add_argument("--cifar", type=Path, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"), help="folder of runs and plot")
    parser.add_argument("--json", type=Path, help="write environment, results and ratios here")
    arguments = parser.parse_args()
    numbers, workers = [int(m) for m in arguments.workers.split(",")], init_communicator(600)
    if any(m % workers.size for m in numbers):
        parser.error(f"--workers {arguments.workers}: not all are multiples of the {workers.size} that run")
    common = [*DIGITS, *([*CIFAR, f"data.root={arguments.cifar}"] if arguments.cifar else [])]
    curves: dict[str, Curve] = {name: {} for name in SERIES}
    choices: dict[str, dict[int, dict[float, float]]] = {name: {} for name in SERIES}
    rows, batch, stop = [], 0, StopRequest()
    for name, series in SERIES.items():
        for m in numbers:
            folder = arguments.out / name.replace(" ", "-").replace("/", "").replace(",", "") / str(m)
            if series.anew or m == numbers[0]:
                choices[name][m] = robustness_by_rate(name, m, common, folder / "rates", workers, stop)
                by_rate = choices[name][m]
                rate = max(by_rate, key=by_rate.__getitem__)
            job = job_of(name, m, rate, common, folder / "runs", workers.size)
            results = train_seeds(job, SEEDS, workers, stop).values()
            curves[name][m] = {key: [100 * getattr(r, key) for r in results] for key in ("ta", "ra")}
            batch = job.batch_size
            told = (f"{fmean(v):.1f} ± {stdev(v):.1f}" for v in curves[name][m].values())
            rows.append([series.figure, name, batch * m, f"{rate:.3g}", *told])
    environment = describe_environment(workers, torch.device("cpu"))
    workers.close()
    if not workers.is_rank0:
        return
    header = ["figure", "method", "global batch", "rate", "TA (%)", "RA (%)"]
    print("\n" + tabulate(rows, header, tablefmt="github", disable_numparse=True) + "\n")
    most, ratios = numbers[-1], {}
    for key in ("ra", "ta"):
        mean = {name: {m: fmean(v[key]) for m, v in curve.items()} for name, curve in curves.items()}
        for short, other in (("without", "DAT-FGSM w/o LALR"), ("lsgd", "DAT-LSGD")):
            ratios[f"lalr_minus_{short}_{key}"] = mean["DAT-FGSM"][most] - mean[other][most]
        for short, of in (("without_lalr", "DAT-FGSM w/o LALR"), ("with_lalr", "DAT-FGSM"), ("at", "AT")):
            ratios[f"lost_{short}_{key}"] = mean[of][numbers[0]] - mean[of][most]
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:+.1f}")
    figures: dict[str, dict[str, Curve]] = {}
    for name, curve in curves.items():
        by_batch = {batch * m: accuracies for m, accuracies in curve.items()}
        figures.setdefault(f"figure {SERIES[name].figure}", {})[name] = by_batch
    write_text(arguments.out / "scaling.svg", plot_over_batch(figures))
    print(f"plot: {arguments.out / 'scaling.svg'}")
    if arguments.json:
        report = {"environment": environment, "rates": choices, "curves": curves, "ratios": ratios}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
