"""Figures 1, 2 and A1 of the DAT paper in miniature: accuracy against the global batch.

``python benchmarks/scaling.py [--workers M,M] [--cifar ROOT] [--out FOLDER] [--json PATH]`` trains on the
digits (or 4,000 images of CIFAR-10) with M workers of 50 images, as one real worker that stands for M virtual
ones, three seeds each, at the same number of epochs: so with M times fewer updates.

- figure 1: conventional AT by SGD, its rate left as it is for one worker;
- figure 2: DAT-FGSM (LALR) against DAT-FGSM without LALR and DAT-LSGD (its rate grows with the batch);
- figure A1: Fast AT with the cyclic rate.

Ratios, points of mean RA (and TA) at the largest batch: ``lalr_minus_without_ra``, ``lalr_minus_lsgd_ra``
and the same for ``ta``: whether LALR recovers what large batches lose, which is ``lost_without_lalr_ra``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean, stdev

import torch
from matplotlib.figure import Figure
from tabulate import tabulate

from hpcdat.cluster.stopping import StopRequest
from hpcdat.cluster.workers import Workers
from hpcdat.environment import describe_environment
from hpcdat.job_file import read_job
from hpcdat.run import train_seeds

JOB = Path(__file__).resolve().parents[1] / "jobs" / "demo.yaml"
SEEDS = 3
DIGITS = [
    *("batch_size=50", "epochs=20", "attack.eps=0.1", "attack.steps=null", "evaluation.steps=10"),
    *("evaluation.every=0", "schedule.decay_epochs=[14, 18]", "early_stopping.fgsm_guard=false"),
]
CIFAR = [
    *("data.source=cifar10", "data.image_size=32", "data.channels=3", "data.augmentation=pad-crop"),
    *("data.train_images=4000", "data.test_images=1000", "attack.eps=8/255", "epochs=12"),
    *("model.name=preact-resnet18", "model.width=0.25", "schedule.decay_epochs=[8, 11]"),
    *("model.mean=[0.49,0.48,0.45]", "model.std=[0.25,0.24,0.26]"),
]
SGD = "optimizer.lr=0.05"
CYCLIC = ["schedule.decay_epochs=[]", "schedule.name=cyclic"]
SERIES = {
    "AT": ("1", ["method=at", "attack.steps=4", SGD]),
    "DAT-FGSM": ("2", ["method=dat-fgsm", "optimizer.lr=0.02"]),
    "DAT-FGSM w/o LALR": ("2", ["method=dat-fgsm-without-lalr", SGD]),
    "DAT-LSGD": ("2", ["method=dat-lsgd", "attack.steps=4", "optimizer.lr=0.25"]),
    "Fast AT, cyclic": ("A1", ["method=fast-at", SGD, *CYCLIC]),
}
"""The figure that each belongs to, and its job."""

Curve = dict[int, dict[str, list[float]]]


def draw(curves: dict[str, Curve], batch: int, file: Path) -> None:
    """TA and RA over the global batch, a pair of panels a figure."""
    figures = list(dict.fromkeys(of for of, _ in SERIES.values()))
    figure = Figure(figsize=(5 * len(figures), 6), layout="constrained")
    for column, name in enumerate(figures):
        for row, key in enumerate(("ta", "ra")):
            axes = figure.add_subplot(2, len(figures), row * len(figures) + column + 1)
            for label, curve in curves.items():
                if SERIES[label][0] == name:
                    x = [batch * m for m in curve]
                    means, spread = zip(
                        *((fmean(v[key]), stdev(v[key])) for v in curve.values()), strict=True
                    )
                    axes.errorbar(x, means, spread, fmt="o-", capsize=3, label=label)
            axes.set_xscale("log")
            axes.set_xlabel("global batch")
            axes.set_ylabel(f"{key.upper()} (%)")
            axes.set_title(f"figure {name}", fontsize=10)
            axes.legend(fontsize=8)
    figure.savefig(file)


def main() -> None:
    """Train, print the table, draw, write the JSON."""
    parser = argparse.ArgumentParser(description="accuracy against the global batch, in miniature")
    parser.add_argument("--workers", default="1,4,14", help="numbers of workers M (default: %(default)s)")
    parser.add_argument("--cifar", type=Path, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"), help="folder of runs and plot")
    parser.add_argument("--json", type=Path, help="write environment, results and ratios here")
    arguments = parser.parse_args()
    numbers = [int(m) for m in arguments.workers.split(",")]
    settings = [*DIGITS, *([*CIFAR, f"data.root={arguments.cifar}"] if arguments.cifar else [])]
    curves: dict[str, Curve] = {name: {} for name in SERIES}
    batch = 0
    for m in numbers:
        for name, (_, own) in SERIES.items():
            run_dir = arguments.out / name.replace(" ", "-").replace("/", "") / str(m)
            job = read_job(JOB, [*settings, *own, f"virtual_workers={m}", f"run_dir={run_dir}"])
            results = train_seeds(job, SEEDS, Workers(), StopRequest()).values()
            curves[name][m] = {key: [100 * getattr(r, key) for r in results] for key in ("ta", "ra")}
            batch = job.batch_size
    rows = [
        [SERIES[name][0], name, batch * m, *(f"{fmean(v[k]):.1f} ± {stdev(v[k]):.1f}" for k in ("ta", "ra"))]
        for name, curve in curves.items()
        for m, v in curve.items()
    ]
    header = ["figure", "method", "global batch", "TA (%)", "RA (%)"]
    print("\n" + tabulate(rows, header, tablefmt="github", disable_numparse=True) + "\n")
    most, ratios = numbers[-1], {}
    for key in ("ra", "ta"):
        mean = {name: {m: fmean(v[key]) for m, v in curve.items()} for name, curve in curves.items()}
        for short, other in (("without", "DAT-FGSM w/o LALR"), ("lsgd", "DAT-LSGD")):
            ratios[f"lalr_minus_{short}_{key}"] = mean["DAT-FGSM"][most] - mean[other][most]
        without = mean["DAT-FGSM w/o LALR"]
        ratios[f"lost_without_lalr_{key}"] = without[numbers[0]] - without[most]
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:+.1f}")
    draw(curves, batch, arguments.out / "scaling.svg")
    draw(curves, batch, arguments.out / "scaling.png")
    print(f"plot: {arguments.out / 'scaling.svg'}")
    if arguments.json:
        environment = describe_environment(Workers(), torch.device("cpu"))
        report = {"environment": environment, "curves": curves, "ratios": ratios}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
