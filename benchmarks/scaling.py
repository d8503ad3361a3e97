"""Figures 1, 2 and A1 of the DAT paper in miniature: accuracy against the global batch.

``python benchmarks/scaling.py [--cifar ROOT] [--workers M,M] [--seeds N] [--only NAME,NAME] [--out FOLDER]
[--json PATH]`` trains with M virtual workers on one real one (under mpirun on several, which share them), at
the same number of epochs: so with M times fewer updates. Without ``--cifar`` it trains a small model on 700
digits with 25 images a worker, M = 1, 4 and 14, three seeds; with it a narrow pre-activation ResNet-18 on
8,192 images of CIFAR-10 with 128 a worker, M = 1, 4, 16 and 32, one seed. Runs that an earlier call finished
are read, not trained again.

- figure 1: conventional AT by SGD, its rate left as it is for one worker;
- figure 2: DAT-FGSM (LALR) against DAT-FGSM without LALR and DAT-LSGD (its rate grows with the batch);
- figure A1: Fast AT with the cyclic rate, its peak left as it is for one worker.

Every method has the rate of the paper's grid that gives the best RA on held-out training images, with another
seed; DAT-FGSM with and without LALR have it for every global batch anew.

Ratios, points of mean RA (and TA) at the largest batch: ``lalr_minus_without_ra``, ``lalr_minus_lsgd_ra``
and the same for ``ta``: whether LALR recovers what large batches lose, which is ``lost_without_lalr_ra``
(with LALR ``lost_with_lalr_ra``, of conventional AT ``lost_at_ra``).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from arguments import Parser, errors_in_one_line, folder_to_write, listed, one_of, whole
from tabulate import tabulate

from hpcdat.commands.train import train, train_seeds
from hpcdat.config.job import Job
from hpcdat.config.job_file import read_job
from hpcdat.config.paths import escape
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.initialization import init_communicator
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.errors import WorkerError
from hpcdat.report.plots import plot_over_batch
from hpcdat.storage.atomic_files import write_text
from hpcdat.storage.run_folder import RunFolder

JOB = Path(__file__).resolve().parents[1] / "jobs" / "demo.yaml"
COMMON = [
    *("attack.steps=null", "early_stopping.fgsm_guard=false", "evaluation.every=0"),
    # The runs that choose a rate hold images out of more of them.
    "data.last_batch=drop",
]


@dataclass(frozen=True)
class Recipe:
    """What is trained on, and how long.

    Attributes:
        settings: of all jobs.
        images: to train on.
        held_out: further training images, which rates are chosen on.
        batch: images a worker.
        epochs: of a run.
        workers: numbers M.
        seeds: of every result.
    """

    settings: list[str]
    images: int
    held_out: int
    batch: int
    epochs: int
    workers: tuple[int, ...]
    seeds: int

    def of_run(self) -> list[str]:
        """Settings of the runs whose results are reported."""
        size = [f"data.train_images={self.images}", f"batch_size={self.batch}", f"epochs={self.epochs}"]
        return [*COMMON, *size, *self.settings]

    def of_choice(self) -> list[str]:
        """Settings of the runs that rates are chosen by, which train on as many images."""
        best = [f"evaluation.every={self.epochs}", "early_stopping.best_weights=true"]
        held_out = [f"early_stopping.held_out={self.held_out}"]
        return [
            *self.of_run(),
            *best,
            *held_out,
            f"data.train_images={self.images + self.held_out}",
            "seed=100",
        ]


DIGITS = Recipe(
    ["attack.eps=0.1", "schedule.decay_epochs=[10, 13]", "evaluation.steps=10"],
    **{"images": 700, "held_out": 200, "batch": 25, "epochs": 15, "workers": (1, 4, 14), "seeds": 3},
)
CIFAR = Recipe(
    [
        *("data.source=cifar10", "data.image_size=32", "data.channels=3", "data.augmentation=pad-crop"),
        *("data.test_images=1000", "attack.eps=8/255", "evaluation.steps=20", "schedule.decay_epochs=[5, 7]"),
        *("model.name=preact-resnet18", "model.width=0.125", "data.loader=device"),
        *("model.mean=[0.49,0.48,0.45]", "model.std=[0.25,0.24,0.26]"),
    ],
    **{"images": 8192, "held_out": 500, "batch": 128, "epochs": 8, "workers": (1, 4, 16, 32), "seeds": 1},
)
SGD, LAMB = (0.01, 0.05, 0.1, 0.2), (0.01, 0.05, 0.1, 0.2, 0.4)
"""The rates that the paper chose from, supplement 4.1; DAT-FGSM at 0.4 has five more epochs, of warm-up."""
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
    "DAT-LSGD": Series(
        "2",
        ["method=dat-lsgd", PGD, "schedule.warmup_epochs=3", "schedule.warmup_by=step"],
        SGD,
    ),
    "Fast AT (cyclic)": Series("A1", ["method=fast-at", "schedule.decay_epochs=[]", "schedule.name=cyclic"]),
}

Curve = dict[int, dict[str, list[float]]]


def job_of(name: str, m: int, rate: float, settings: list[str], run_dir: Path, real: int = 1) -> Job:
    """The job of a series at so many workers, of which so many are real; the rate is that of one worker."""
    series = SERIES[name]
    own = [*settings, *series.settings, f"virtual_workers={m // real}", f"run_dir={run_dir}"]
    if name == "DAT-LSGD":
        # Its rate is for 256 images; as in Goyal et al. 2017 it is reached from the rate of one worker.
        rate *= 256 / read_job(JOB, settings).batch_size
        own.append(f"schedule.warmup_start={1 / m}")
    return read_job(JOB, [*own, f"optimizer.lr={rate}"])


def robustness_by_rate(
    name: str, m: int, settings: list[str], folder: Path, workers: Communicator, stop: StopRequest
) -> dict[float, float]:
    """RA (%) on training images held out, by rate; 0 where training diverged."""
    found = {}
    for rate in SERIES[name].rates:
        job = job_of(name, m, rate, settings, folder / f"{rate:.3g}", workers.size)
        try:
            train(job, workers, stop)
            # Another node may see the lines a moment later.
            seen = RunFolder(job.run_dir).metrics("evaluation") if workers.is_rank0 else []
            found[rate] = workers.all_gather_object(last_held_out(seen), "RA on held-out images")[0]
        except WorkerError:
            found[rate] = 0.0
    return found


def last_held_out(evaluations: list[dict[str, Any]]) -> float:
    """RA (%) of the last evaluation on held-out images: after all epochs, those of extra warm-up too."""
    return next((100 * e["ra"] for e in reversed(evaluations) if e["held_out"]), 0.0)


@errors_in_one_line
def main() -> None:
    """Choose the rates, train, print the table, draw, write the JSON."""
    parser = Parser("accuracy against the global batch, in miniature")
    parser.add_argument(
        "--workers",
        type=listed(whole(1)),
        metavar="M,M",
        help="numbers of workers (default: 1,4,14; on CIFAR-10 1,4,16,32)",
    )
    parser.add_argument("--seeds", type=whole(1), help="of every result (default: 3; on CIFAR-10 1)")
    parser.add_argument(
        "--only",
        type=listed(one_of(*SERIES)),
        default=[*SERIES],
        metavar="NAME,NAME",
        help=f"methods, of {', '.join(SERIES)} (default: all)",
    )
    parser.add_cifar()
    parser.add_argument("--out", type=folder_to_write, default="runs/scaling", help="folder of runs and plot")
    parser.add_json()
    arguments = parser.parse_args()
    recipe, workers = CIFAR if arguments.cifar else DIGITS, init_communicator(600)
    numbers = arguments.workers or list(recipe.workers)
    seeds, names = arguments.seeds or recipe.seeds, arguments.only
    if any(m % workers.size for m in numbers):
        parser.error(f"--workers: not all of {numbers} are multiples of the {workers.size} that run")
    root = [f"data.root={escape(arguments.cifar)}"] if arguments.cifar else []
    curves: dict[str, Curve] = {name: {} for name in names}
    choices: dict[str, dict[int, dict[float, float]]] = {name: {} for name in names}
    rows, stop = [], StopRequest()
    for name in names:
        series = SERIES[name]
        for m in numbers:
            folder = arguments.out / re.sub(r"\W+", "-", name).strip("-") / str(m)
            if series.anew or m == numbers[0]:
                choosing = [*recipe.of_choice(), *root]
                choices[name][m] = robustness_by_rate(name, m, choosing, folder / "rates", workers, stop)
                by_rate = choices[name][m]
                rate = max(by_rate, key=by_rate.__getitem__)
            job = job_of(name, m, rate, [*recipe.of_run(), *root], folder / "runs", workers.size)
            results = train_seeds(job, seeds, workers, stop).values()
            curves[name][m] = {key: [100 * getattr(r, key) for r in results] for key in ("ta", "ra")}
            cells = [_mean(values) for values in curves[name][m].values()]
            rows.append([series.figure, name, recipe.batch * m, f"{rate:.3g}", *cells])
    environment = describe_environment(workers, torch.device("cpu"))
    workers.close()
    if not workers.is_rank0:
        return
    header = ["figure", "method", "global batch", "rate", "TA (%)", "RA (%)"]
    print("\n" + tabulate(rows, header, tablefmt="github", disable_numparse=True) + "\n")
    ratios = ratios_of(curves)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:+.1f}")
    figures: dict[str, dict[str, Curve]] = {}
    for name, curve in curves.items():
        by_batch = {recipe.batch * m: accuracies for m, accuracies in curve.items()}
        figures.setdefault(f"figure {SERIES[name].figure}", {})[name] = by_batch
    write_text(arguments.out / "scaling.svg", plot_over_batch(figures))
    print(f"plot: {arguments.out / 'scaling.svg'}")
    if arguments.json:
        report = {"environment": environment, "rates": choices, "curves": curves, "ratios": ratios}
        write_text(arguments.json, json.dumps(report, indent=2) + "\n")


def ratios_of(curves: dict[str, Curve]) -> dict[str, float]:
    """Points of accuracy between methods, and between the smallest and the largest batch of one."""
    ratios = {}
    for key in ("ra", "ta"):
        ends = {
            name: [fmean(curve[m][key]) for m in (min(curve), max(curve))] for name, curve in curves.items()
        }
        for short, other in (("without", "DAT-FGSM w/o LALR"), ("lsgd", "DAT-LSGD")):
            if {"DAT-FGSM", other} <= ends.keys():
                ratios[f"lalr_minus_{short}_{key}"] = ends["DAT-FGSM"][1] - ends[other][1]
        for short, of in (("without_lalr", "DAT-FGSM w/o LALR"), ("with_lalr", "DAT-FGSM"), ("at", "AT")):
            if of in ends:
                ratios[f"lost_{short}_{key}"] = ends[of][0] - ends[of][1]
    return ratios


def _mean(values: list[float]) -> str:
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
