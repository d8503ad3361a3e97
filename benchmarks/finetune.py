"""Figure 4 of the DAT paper: robust pre-training and fine-tuning against training from scratch.

``python benchmarks/finetune.py [--set KEY=VALUE ...] [--seeds N] [--out FOLDER] [--json PATH]`` trains at a
tiny size, on one worker (under mpirun on several, whose batches add up): a small model on the digits 0 to 4;
then, from its weights and with a new head, on 100 of the digits 5 to 9; and the latter also from scratch. All
use DAT-PGD and three seeds. Both variants of the second phase use the learning rate of ``--rates`` that gives
the best final RA with another seed on ``--held-out`` training images (in addition to ``data.train_images``,
if the job sets it). ``--set`` changes the second job, as in ``data.train_images=400``.
``--source JOB --target JOB`` use other jobs, such as ImageNet and CIFAR-10 with ``data.image_size: 224``, to
which its images are then up-sampled.

Ratios: ``ra_gain_3`` and ``ta_gain_3``, the advantage of pre-training in points after three epochs (the
paper: three epochs are enough), and ``ra_gain_end``, ``ta_gain_end`` after the last one; means over seeds.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from arguments import Parser, errors_in_one_line, existing_file, folder_to_write, listed, positive_text, whole
from matplotlib.figure import Figure
from tabulate import tabulate

from hpcdat.commands.train import train
from hpcdat.config.job import Job
from hpcdat.config.job_file import read_job
from hpcdat.data.digits import write_digits
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.initialization import init_communicator
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.storage.atomic_files import write_text
from hpcdat.storage.run_folder import RunFolder

JOBS = Path(__file__).resolve().parents[1] / "jobs" / "miniature"
EARLY, CHOOSING_SEED = 3, 100
"""Epochs after which the variants are compared, and the seed with which rates are chosen."""
KEYS = ("ta", "ra")

Curve = dict[str, list[list[float]]]
"""Percentages by ``ta`` and ``ra``: for every epoch, those of all seeds."""


def write_halves(root: Path) -> None:
    """Write the digits 0 to 4 and 5 to 9 as two image folders of links."""
    write_digits(root / "digits")
    for name, classes in (("low", range(5)), ("high", range(5, 10))):
        for split in ("train", "test"):
            for digit in map(str, classes):
                link = root / name / split / digit
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.exists():
                    link.symlink_to((root / "digits" / split / digit).resolve())


def evaluations_of(job: Job, workers: Communicator) -> list[dict[str, Any]]:
    """The evaluations of a run, the same on all workers."""
    # Another node may see the lines a moment later.
    seen = RunFolder(job.run_dir).metrics("evaluation") if workers.is_rank0 else []
    evaluations: list[dict[str, Any]] = workers.all_gather_object(seen, "evaluations")[0]
    return evaluations


def curve(jobs: list[Job], workers: Communicator, stop: StopRequest) -> Curve:
    """TA and RA on the test images after every epoch of a job, trained with every seed; runs are resumed."""
    evaluations = []
    for job in jobs:
        train(job, workers, stop)
        evaluations.append([e for e in evaluations_of(job, workers) if not e["held_out"]])
    return {key: [[100 * e[key] for e in epoch] for epoch in zip(*evaluations, strict=True)] for key in KEYS}


def spread(values: list[float]) -> float:
    """The standard deviation over the seeds."""
    return stdev(values) if len(values) > 1 else 0.0


def draw(curves: dict[str, Curve], file: Path) -> None:
    """Plot TA and RA over the epochs, with and without pre-training."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for place, key in enumerate(KEYS, start=1):
        axes = figure.add_subplot(1, 2, place)
        for (name, of), style in zip(curves.items(), ("o-", "s--"), strict=True):
            epochs = range(1, len(of[key]) + 1)
            axes.errorbar(
                epochs, [*map(fmean, of[key])], [*map(spread, of[key])], fmt=style, capsize=3, label=name
            )
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"{key.upper()} (%)")
        axes.legend(fontsize=8)
    figure.savefig(file)


@errors_in_one_line
def main() -> None:
    """Train, print the table, draw, write the JSON."""
    parser = Parser("robust pre-training and fine-tuning: figure 4")
    parser.add_argument(
        "--source", type=existing_file, default=JOBS / "pretrain.yaml", help="job of pre-training"
    )
    parser.add_argument(
        "--target", type=existing_file, default=JOBS / "finetune.yaml", help="job of fine-tuning"
    )
    parser.add_settings("the target job")
    parser.add_argument(
        "--rates",
        type=listed(positive_text),
        default="0.01,0.05,0.1,0.2",
        help="rates that the target job's is chosen from (default: %(default)s)",
    )
    parser.add_argument(
        "--held-out",
        type=whole(1),
        default=100,
        help="images that rates are chosen on (default: %(default)s)",
    )
    parser.add_argument("--seeds", type=whole(1), default=3, help="runs of everything (default: %(default)s)")
    parser.add_argument(
        "--out", type=folder_to_write, default=Path("runs/figure-4"), help="folder of runs and plot"
    )
    parser.add_json()
    arguments = parser.parse_args()
    source_job, target_job = arguments.source.resolve(), arguments.target.resolve()
    out, stop, workers = arguments.out, StopRequest(), init_communicator(600)
    if JOBS in (source_job.parent, target_job.parent):
        workers.on_rank0("write the digits", lambda: write_halves(out / "data"))

    def read(path: Path, name: str, seed: int, *settings: str) -> Job:
        half = {"pretrain": "low", "finetune": "high"}.get(path.stem)
        data = half if path.parent == JOBS else None
        root = [f"data.root={out / 'data' / data}"] if data else []
        where = [f"run_dir={out / name / f'seed-{seed}'}", f"seed={seed}"]
        return read_job(path, [*where, *root, *settings])

    def target(seed: int, rate: str, *settings: str, name: str) -> Job:
        data = "digits" if target_job.parent == JOBS else read_job(target_job).data.source
        row = f"reproduces=[dat-fig4/{data}-{name.replace(' ', '-')}]"
        own = [row, *arguments.set, f"optimizer.lr={rate}", *settings]
        return read(target_job, f"{name}/rate-{rate}", seed, *own)

    def chosen(*settings: str, name: str) -> str:
        """The rate that ends with the best RA on held-out training images."""
        ra = {}
        for rate in arguments.rates:
            job = target(CHOOSING_SEED, rate, *settings, name=name)
            held_out = [
                *(f"evaluation.every={job.epochs}", f"early_stopping.held_out={arguments.held_out}"),
                "early_stopping.best_weights=true",
            ]
            if job.data.train_images:
                held_out.append(f"data.train_images={job.data.train_images + arguments.held_out}")
            job = target(CHOOSING_SEED, rate, *settings, *held_out, name=name)
            train(job, workers, stop)
            ra[rate] = next(e["ra"] for e in evaluations_of(job, workers) if e["held_out"])
        if workers.is_rank0:
            by_rate = ", ".join(f"{rate}: {100 * value:.1f}" for rate, value in ra.items())
            print(f"{name}: RA on held-out images by rate: {by_rate}")
        return max(ra, key=ra.__getitem__)

    seeds, start = range(arguments.seeds), []
    for seed in seeds:
        source = read(source_job, "pretrained", seed)
        train(source, workers, stop)
        start.append(f"model.pretrained={source.run_dir}")
    curves, epochs = {}, 0
    for name, of_seed in (("fine-tuned", [[s] for s in start]), ("from scratch", [[] for _ in seeds])):
        rate = chosen(*of_seed[0], name=name)
        jobs = [target(seed, rate, "evaluation.every=1", *of_seed[seed], name=name) for seed in seeds]
        curves[f"{name}, rate {rate}"] = curve(jobs, workers, stop)
        epochs = jobs[0].total_epochs
    environment = describe_environment(workers, torch.device("cpu"))
    workers.close()
    if not workers.is_rank0:
        return
    rows = [
        [
            epoch + 1,
            *(
                f"{fmean(of[key][epoch]):.1f} ± {spread(of[key][epoch]):.1f}"
                for key in KEYS
                for of in curves.values()
            ),
        ]
        for epoch in range(epochs)
    ]
    header = ["epoch", *(f"{key.upper()} {name}" for key in KEYS for name in curves)]
    print("\n" + tabulate(rows, header, tablefmt="github", disable_numparse=True) + "\n")
    fine, scratch = curves.values()
    ratios = {
        f"{key}_gain_{when}": fmean(fine[key][at]) - fmean(scratch[key][at])
        for when, at in ((EARLY, EARLY - 1), ("end", -1))
        for key in KEYS
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:+.1f}")
    draw(curves, out / "figure-4.svg")
    draw(curves, out / "figure-4.png")
    print(f"plot: {out / 'figure-4.svg'}")
    if arguments.json:
        report = {"environment": environment, "curves": curves, "ratios": ratios}
        write_text(arguments.json, json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
