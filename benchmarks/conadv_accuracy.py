"""Clean accuracy of vanilla training, DisAdv and ConAdv with a large batch, at a tiny size.

``python benchmarks/conadv_accuracy.py [--cifar ROOT] [--json PATH]`` trains jobs/miniature/vanilla.yaml,
disadv.yaml and conadv.yaml with three seeds each: batches of 280 of the 1,400 training digits. ``--cifar``
uses 2,500 images of CIFAR-10 in batches of 250, and a pre-activation ResNet-18 of a quarter of its width.

Ratios, here differences in points of TA between means over the seeds:

- ``conadv_minus_disadv``: the effect of stale weights. Expected: at least -MARGIN, which was set beforehand.
- ``conadv_minus_vanilla``, ``disadv_minus_vanilla``: the effect of adversarial learning.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import fmean

import torch
from arguments import Parser, errors_in_one_line

from hpcdat.commands.train import train_seeds
from hpcdat.config.job_file import read_job
from hpcdat.config.paths import escape
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.report.result_table import result_table
from hpcdat.storage.atomic_files import write_text

JOBS = Path(__file__).resolve().parents[1] / "jobs" / "miniature"
METHODS = ("vanilla", "disadv", "conadv")
SEEDS = 3
"""Number of trainings with each method."""
MARGIN = 1.0
"""Largest acceptable loss of TA by ConAdv against DisAdv, in points."""
CIFAR = [
    *("data.source=cifar10", "data.image_size=32", "data.channels=3", "data.augmentation=pad-crop"),
    *("data.train_images=2500", "data.test_images=2000", "batch_size=250", "epochs=8"),
    *("model.name=preact-resnet18", "model.width=0.25", "attack.eps=3/255", "evaluation.steps=1"),
    # With the digits' rate of 20, vanilla training diverges on CIFAR-10.
    *("optimizer.lr=8", "schedule.warmup_epochs=2"),
    *("model.mean=[0.49,0.48,0.45]", "model.std=[0.25,0.24,0.26]"),
]
"""Settings with ``--cifar``, in place of the digits'."""


@errors_in_one_line
def main() -> None:
    """Train, print the tables and the differences, write the JSON."""
    parser = Parser("clean accuracy of ConAdv with a large batch", alone="it trains with one worker")
    parser.add_cifar()
    parser.add_settings("all three jobs")
    parser.add_json()
    arguments = parser.parse_args()
    settings = [*CIFAR, f"data.root={escape(arguments.cifar)}"] if arguments.cifar else []
    accuracy, workers, stop = {}, SingleProcess(), StopRequest()
    with tempfile.TemporaryDirectory() as folder:
        jobs = {
            method: read_job(
                JOBS / f"{method}.yaml", [*settings, *arguments.set, f"run_dir={Path(folder) / method}"]
            )
            for method in METHODS
        }
        for method, job in jobs.items():
            results = train_seeds(job, SEEDS, workers, stop)
            print(f"\n{method}\n\n{result_table(results, mean=True)}\n", flush=True)
            accuracy[method] = [100 * result.ta for result in results.values()]
    mean = {method: fmean(values) for method, values in accuracy.items()}
    ratios = {
        f"{one}_minus_{other}": mean[one] - mean[other]
        for one, other in (("conadv", "disadv"), ("conadv", "vanilla"), ("disadv", "vanilla"))
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:+.2f}")
    expected = ratios["conadv_minus_disadv"] >= -MARGIN
    print(f"ConAdv is {'' if expected else 'NOT '}at least DisAdv minus {MARGIN:g} points")
    if arguments.json:
        environment = describe_environment(workers, torch.device("cpu"))
        report = {"environment": environment, "ta": accuracy, "margin": MARGIN, "ratios": ratios}
        write_text(arguments.json, json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
