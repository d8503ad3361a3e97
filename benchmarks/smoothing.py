"""The cost of Smooth-AT's noisy copies for workers that share them.

``mpirun -np M python benchmarks/smoothing.py [--device auto|cpu|cuda] [--json PATH]``: a step of DAT-PGD on a
ResNet-18 of half its width with N = 2 M copies distributed over M workers, against a step with N = 2 on every
worker independently, all workers at the same time, so that both use the same cores. The two alternate; the
slowest worker counts, and medians are compared.

Ratio:

- ``shared_over_alone``: 1 if N = 2 M copies on M workers take no longer than N = 2 on each.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from arguments import Parser, errors_in_one_line, own_device, whole
from conadv_steps import CLASSES, algorithm_of
from tabulate import tabulate
from timing import in_turns, rows_of, settings_of

from hpcdat.config.job_file import read_job
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.initialization import init_communicator
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.models.losses import Labelled
from hpcdat.performance.benchmark_file import BenchmarkFile
from hpcdat.training.concurrent_attack import Batch
from hpcdat.training.step import Algorithm1

JOB = Path(__file__).resolve().parents[1] / "jobs" / "cifar10-smooth-dat.yaml"
COPIES = 2
"""Noisy copies of each image on a worker."""


def step_of(algorithm: Algorithm1, images: Labelled) -> Callable[[], None]:
    """A function that runs a step on one batch."""
    batch = Batch(0, 0, len(images.y) * algorithm.batches, dict.fromkeys(algorithm.role.reads, images))
    return lambda: algorithm.step(batch, None)


def measure(batch: int, rounds: int, device: torch.device, workers: Communicator) -> dict[str, list[float]]:
    """Seconds of a step of the slowest worker, in every round, by how the copies are distributed."""
    size = ["model.width=0.5", f"batch_size={batch}"]
    jobs = {
        f"N = {COPIES} on each worker": (SingleProcess(), COPIES),
        f"N = {COPIES * workers.size} over {workers.size} workers": (workers, COPIES * workers.size),
    }
    generator, steps = torch.Generator().manual_seed(0), {}
    x = torch.rand(batch, 3, 32, 32, generator=generator)
    y = torch.randint(CLASSES, (batch,), generator=generator)
    images = Labelled(x.to(device), y.to(device))
    for name, (sharing, copies) in jobs.items():
        job = read_job(JOB, [*size, f"smoothing.copies={copies}", f"smoothing.workers={sharing.size}"])
        steps[name] = step_of(algorithm_of(job, sharing, device), images)
    return in_turns(steps, rounds, device, workers)


@errors_in_one_line
def main() -> None:
    """Time both, print the table, write the JSON."""
    parser = Parser("noisy copies shared by workers, and independent ones")
    parser.add_argument("--batch", type=whole(1), default=16, help="images of a batch (default: %(default)s)")
    parser.add_device()
    parser.add_rounds(7)
    parser.add_json()
    arguments = parser.parse_args()
    workers = init_communicator(600, divisible=True)
    device = own_device(arguments.device, workers)
    times = measure(arguments.batch, arguments.rounds, device, workers)
    environment = describe_environment(workers, device)
    workers.close()
    if not workers.is_rank0:
        return
    rows = rows_of(times, batch_size=arguments.batch, device=device.type)
    lines = [
        [
            row.parameters["part"],
            f"{1e3 * row.median:.0f}",
            f"{1e3 * min(row.seconds):.0f} - {1e3 * max(row.seconds):.0f}",
        ]
        for row in rows
    ]
    print(tabulate(lines, ["copies of an image", "ms a step", "range"], tablefmt="github"))
    independent, shared = (row.median for row in rows)
    ratios = {"shared_over_alone": shared / independent}
    print(f"shared_over_alone: {ratios['shared_over_alone']:.3f}")
    if arguments.json:
        settings = settings_of(workers, device, arguments.rounds, copies=COPIES)
        BenchmarkFile.of("smoothing", environment, settings, rows, ratios).write(arguments.json)


if __name__ == "__main__":
    main()
