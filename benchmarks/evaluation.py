"""Speed of PGD-50, AutoAttack and certification with batch norm folded, over the network as it is.

``mpirun -np M python benchmarks/evaluation.py --weights FILE --cifar ROOT [--images N] [--rounds N]
[--device auto|cpu|cuda] [--json PATH]``: a trained pre-activation ResNet-18 (FILE, as of ``hpcdat export``)
on N test images of CIFAR-10 (ROOT holds cifar-10-batches-py), linf, eps 8/255, in float32. AutoAttack runs on
a tenth of them, and so does certification, with 1,000 noisy samples an image at sigma 0.25. The workers
divide the batches, as in ``hpcdat evaluate``. Both ways alternate; medians are compared.

Ratios, of the time with folded batch norm over that without:

- ``pgd50_over_plain``, ``autoattack_over_plain``, ``certification_over_plain``.

The table also has what was found both ways: images that withstood the attack, and images certified.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from arguments import Parser, errors_in_one_line, existing_file, whole
from tabulate import tabulate
from timing import rotated, rows_of, settings_of

from hpcdat.commands.trained_model import Trained, load_given
from hpcdat.config.job import Job
from hpcdat.config.job_file import read_job
from hpcdat.data.images import Images
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.initialization import init_communicator
from hpcdat.evaluation.accuracy import PgdAccuracy
from hpcdat.evaluation.autoattack import AutoAttack
from hpcdat.evaluation.certification.certifier import certify_images
from hpcdat.evaluation.determinism import deterministic
from hpcdat.evaluation.image_batches import ImageBatches
from hpcdat.evaluation.outcomes import Outcomes, merge
from hpcdat.evaluation.sharded_runner import Execution, Measurement, run_sharded
from hpcdat.performance.benchmark_file import BenchmarkFile
from hpcdat.performance.clock import seconds
from hpcdat.progress import Progress

JOB = Path(__file__).resolve().parents[1] / "jobs" / "cifar10-n-fgsm.yaml"
BATCH = 20
"""Images in a batch of PGD."""
FEWER = 10
"""AutoAttack and certification have one of so many images."""
SIGMA = 0.25
WAYS = {"folded": True, "plain": False}
"""``evaluation.fold_batch_norm`` by what it is called here."""
MEASURED = {"PGD-50": "withstood", "AutoAttack": "withstood", "certification": "certified"}
"""What is measured, and what is said of the images that it counts."""


def measure(
    trained: Trained, images: Images, rounds: int, settings: list[str], workers: Communicator
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each measurement in every round, both ways, and the number of images that it counts.

    Args:
        trained: the network.
        images: for PGD.
        rounds: that are counted.
        settings: of the job.
        workers: that divide the images.
    """
    execution = Execution(workers, Progress(shown=workers.is_rank0), None)
    found: dict[str, int] = {}
    parts: dict[str, Callable[[], None]] = {}
    for way, folded in WAYS.items():
        job = read_job(JOB, [*settings, f"evaluation.fold_batch_norm={folded}".lower()])
        for name in MEASURED:
            parts[f"{name}, {way}"] = partial(_count, name, way, trained, images, job, execution, found)
    times: dict[str, list[float]] = {part: [] for part in parts}
    with deterministic(trained.device, execution.progress.say):
        # Without a warm-up, which would be as long as a round.
        for number in range(rounds):
            for part in rotated(list(parts), number):
                duration = seconds(parts[part], trained.device)
                times[part].append(max(workers.all_gather_object(duration, "seconds")))
    return times, found


def _count(
    name: str,
    way: str,
    trained: Trained,
    images: Images,
    job: Job,
    execution: Execution,
    found: dict[str, int],
) -> None:
    """Run one measurement, and note how many images it counts."""
    fewer = images.equal_part(len(images) // FEWER)
    key, model, device = f"{name}, {way}", trained.model, trained.device
    if name == "certification":
        each = ImageBatches(fewer, job.data, 1, device)
        certified = certify_images(SIGMA, each, model, job, execution, None)
        found[key] = round(certified.accuracy(0.0) * len(fewer))
        return
    attack: Measurement[Outcomes] = PgdAccuracy(job.evaluation, "linf", job.seed)
    if name == "AutoAttack":
        attack, images = AutoAttack(job.evaluation.resolved_eps, "linf", len(images.classes), job.seed), fewer
    batches = ImageBatches(images, job.data, BATCH if name == "PGD-50" else 1, device)
    counted = merge(run_sharded(attack, batches, model, job, execution))
    found[key] = counted.count(list(counted.columns)[-1])


def concluded(times: dict[str, list[float]]) -> dict[str, float]:
    """The ratios: medians with folded batch norm over those without."""
    names = {name: name.lower().replace("-", "") for name in MEASURED}
    return {
        f"{short}_over_plain": median(times[f"{name}, folded"]) / median(times[f"{name}, plain"])
        for name, short in names.items()
    }


@errors_in_one_line
def main() -> None:
    """Time all measurements, print the table, write the JSON."""
    parser = Parser("evaluation with and without folded batch norm")
    parser.add_argument("--weights", type=existing_file, required=True, metavar="FILE", help="of the network")
    parser.add_cifar(required=True)
    parser.add_argument(
        "--images", type=whole(FEWER), default=100, help="of the test images (default: %(default)s)"
    )
    parser.add_device()
    parser.add_rounds(1)
    parser.add_json()
    arguments = parser.parse_args()
    workers = init_communicator(600)
    settings = [
        f"model.pretrained={arguments.weights}",
        f"data.root={arguments.cifar}",
        "evaluation.steps=50",
    ]
    settings += [f"device={arguments.device}", "model.precision=float32", "model.channels_last=false"]
    settings += [f"certification.sigma=[{SIGMA}]", "certification.n=900", "certification.n0=100"]
    trained = load_given(read_job(JOB, settings), workers)
    assert trained.test_images is not None
    images = trained.test_images.equal_part(arguments.images)
    times, found = measure(trained, images, arguments.rounds, settings, workers)
    environment = describe_environment(workers, trained.device)
    workers.close()
    if not workers.is_rank0:
        return
    counts = {name: len(images) // (1 if name == "PGD-50" else FEWER) for name in MEASURED}
    rows: list[list[Any]] = []
    for part, durations in times.items():
        name = part.split(", ")[0]
        speed = counts[name] / median(durations)
        rows.append([part, f"{speed:.3g}", f"{found[part]} of {counts[name]} {MEASURED[name]}"])
    print(tabulate(rows, ["", "images / s", ""], tablefmt="github", disable_numparse=True))
    ratios = concluded(times)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.3f}")
    if arguments.json:
        given = settings_of(workers, trained.device, arguments.rounds, found=found, images=counts)
        written = BenchmarkFile.of("evaluation", environment, given, rows_of(times), ratios)
        written.write(arguments.json)


if __name__ == "__main__":
    main()
