"""The cost of Smooth-AT's noisy copies for workers that share them.

``mpirun -np M python benchmarks/smoothing.py [--json PATH]``: a step of DAT-PGD on a ResNet-18 of half its
width with N = 2 M copies distributed over M workers, against a step with N = 2 on every worker independently,
all workers at the same time, so that both use the same cores. The two alternate; the slowest worker counts,
and medians are compared.

Ratio:

- ``shared_over_alone``: 1 if N = 2 M copies on M workers take no longer than N = 2 on each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from conadv_steps import CLASSES, algorithm_of
from tabulate import tabulate
from timing import in_turns

from hpcdat.config.job_file import read_job
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.device import choose_device
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.initialization import init_communicator
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.models.losses import Labelled
from hpcdat.training.concurrent_attack import Batch
from hpcdat.training.step import Algorithm1

JOB = Path(__file__).resolve().parents[1] / "jobs" / "cifar10-smooth-dat.yaml"
COPIES = 2
"""Noisy copies of each image on a worker."""


def step_of(algorithm: Algorithm1, images: Labelled, workers: Communicator) -> Callable[[], None]:
    """A function that runs a step on one batch, started together by all workers."""
    batch = Batch(0, 0, len(images.y) * algorithm.batches, dict.fromkeys(algorithm.role.reads, images))

    def step() -> None:
        workers.all_gather_object(None, "ready")
        algorithm.step(batch, None)

    return step


def work(arguments: argparse.Namespace, workers: Communicator) -> dict[str, Any]:
    """A worker's whole part; the report, the same on all workers."""
    size = ["model.width=0.5", f"batch_size={arguments.batch}"]
    jobs = {
        f"N = {COPIES} on each worker": (SingleProcess(), COPIES),
        f"N = {COPIES * workers.size} over {workers.size} workers": (workers, COPIES * workers.size),
    }
    generator, steps = torch.Generator().manual_seed(0), {}
    x = torch.rand(arguments.batch, 3, 32, 32, generator=generator)
    y = torch.randint(CLASSES, (arguments.batch,), generator=generator)
    for name, (sharing, copies) in jobs.items():
        job = read_job(JOB, [*size, f"smoothing.copies={copies}", f"smoothing.workers={sharing.size}"])
        device = choose_device(job, workers)
        images = Labelled(x.to(device), y.to(device))
        steps[name] = step_of(algorithm_of(job, sharing, device), images, workers)
    times = in_turns(steps, arguments.rounds, device)
    slowest = {
        name: list(map(max, zip(*workers.all_gather_object(own, "seconds"), strict=True)))
        for name, own in times.items()
    }
    independent, shared = (median(own) for own in slowest.values())
    return {
        "environment": describe_environment(workers, device),
        "seconds": slowest,
        "ratios": {"shared_over_alone": shared / independent},
    }


def main() -> None:
    """Time both, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description="noisy copies shared by workers, and independent ones")
    parser.add_argument("--batch", type=int, default=16, help="images of a batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write environment, seconds and ratio here")
    arguments = parser.parse_args()
    workers = init_communicator(600)
    report = work(arguments, workers)
    workers.close()
    if not workers.is_rank0:
        return
    lines = [
        [name, f"{1e3 * median(own):.0f}", f"{1e3 * min(own):.0f} - {1e3 * max(own):.0f}"]
        for name, own in report["seconds"].items()
    ]
    print(tabulate(lines, ["copies of an image", "ms a step", "range"], tablefmt="github"))
    for name, ratio in report["ratios"].items():
        print(f"{name}: {ratio:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
