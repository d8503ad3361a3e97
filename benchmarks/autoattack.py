"""AA of the sharded evaluation compared with the package's own, image by image.

``mpirun -np M python benchmarks/autoattack.py --cifar ROOT [--images N] [--device auto|cpu|cuda]
[--json PATH]``: the plainly trained ResNet-18 among pyautoattack's examples on N test images of CIFAR-10
(ROOT holds cifar-10-batches-py), at linf, eps 1/255, where some are robust. The workers divide the batches,
as in ``hpcdat evaluate``; then the first one calls the package's standard evaluation on all images at once.
Seeds differ between the two, so an image very close to the boundary may differ.

Ratios:

- ``same_images``: share of images with the same outcome in both.
- ``seconds_over_package``: time of the sharded evaluation with M workers over the package's on one.
"""

from __future__ import annotations

import runpy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyautoattack
import torch
from arguments import Parser, errors_in_one_line, own_device, whole
from tabulate import tabulate
from timing import rows_of, settings_of
from torch import Tensor, nn

from hpcdat.config.job_file import read_job
from hpcdat.data.cifar import read_cifar
from hpcdat.data.images import Images
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.initialization import init_communicator
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.evaluation.autoattack import AutoAttack
from hpcdat.evaluation.determinism import deterministic
from hpcdat.evaluation.image_batches import ImageBatches
from hpcdat.evaluation.outcomes import Outcomes, merge
from hpcdat.evaluation.sharded_runner import Execution, Measurement, open_store, run_sharded
from hpcdat.performance.benchmark_file import BenchmarkFile
from hpcdat.performance.clock import now
from hpcdat.progress import Progress

EXAMPLES = Path(pyautoattack.__file__).parent / "examples"
JOB = Path(__file__).resolve().parents[1] / "jobs" / "cifar10-dat-pgd.yaml"
EPS, BATCH = 1 / 255, 2
"""Radius, linf, and images in a batch."""


def example_model() -> nn.Module:
    """The ResNet-18 of the package's examples, in evaluation mode."""
    model = runpy.run_path(str(EXAMPLES / "resnet.py"))["ResNet18"]()
    model.load_state_dict(torch.load(EXAMPLES / "model_test.pt", map_location="cpu", weights_only=True))
    return model.eval()


class PackageEvaluation(Measurement[Outcomes]):
    """The package's own standard evaluation of a batch: column ``robust``."""

    name = "the package's evaluation"
    outcome = Outcomes
    settings: Mapping[str, Any] = {}

    def measure(self, model: nn.Module, x: Tensor, y: Tensor, number: int) -> Outcomes:
        """Which images the package finds robust."""
        package = pyautoattack.AutoAttack(model, norm="Linf", eps=EPS, seed=0, version="standard")
        _, predicted = package.run_standard_evaluation(x, y, batch_size=len(x))
        return Outcomes.from_tensors({"robust": predicted == y})


def compare(images: Images, workers: Communicator, device: torch.device, folder: Path) -> dict[str, Any]:
    """Both evaluations, on all workers."""
    stop, model = StopRequest(), example_model().to(device)
    progress = Progress(shown=workers.is_rank0)
    job = read_job(JOB, ["data.source=cifar10", "data.augmentation=none"])
    batches = ImageBatches(images, job.data, BATCH, device)
    attack = AutoAttack(EPS, "linf", len(images.classes), job.seed)
    execution = Execution(workers, progress, stop)
    with deterministic(device, progress.say):
        began = now(device)
        store = open_store(folder, attack, batches, model, job, workers)
        ours = merge(run_sharded(attack, batches, model, job, execution, store=store))
        done = now(device)
        whole = ImageBatches(images, job.data, len(images), device)
        package = merge(run_sharded(PackageEvaluation(), whole, model, job, execution))
        ended = now(device)
    seconds = {"ours": done - began, "package": ended - done}
    last = ours.columns[list(attack.settings["attacks"])[-1]]
    return {
        "environment": describe_environment(workers, device),
        "package": attack.package,
        "standard": attack.is_standard,
        "left": {name: int(flags.sum()) for name, flags in ours.columns.items()},
        "left_by_package": package.count("robust"),
        "images": len(images),
        "seconds": seconds,
        "ratios": {
            "same_images": float(np.mean(last == package.columns["robust"])),
            "seconds_over_package": seconds["ours"] / seconds["package"],
        },
    }


@errors_in_one_line
def main() -> None:
    """Attack twice, print the table, write the JSON."""
    parser = Parser("sharded AutoAttack compared with the package's evaluation")
    parser.add_cifar(required=True)
    parser.add_argument(
        "--images", type=whole(1), default=20, help="of the test images (default: %(default)s)"
    )
    parser.add_device()
    parser.add_json()
    arguments = parser.parse_args()
    workers = init_communicator(600)
    device = own_device(arguments.device, workers)
    images = read_cifar("cifar10", arguments.cifar, download=False)[1].equal_part(arguments.images)
    with tempfile.TemporaryDirectory() as own:
        folder = Path(workers.all_gather_object(own, "folder of outcomes")[0])
        report = compare(images, workers, device, folder)
    workers.close()
    if not workers.is_rank0:
        return
    shares = [[name, f"{count / len(images):.1%}"] for name, count in report["left"].items()]
    shares.append([f"{report['package']}'s own evaluation", f"{report['left_by_package'] / len(images):.1%}"])
    print(tabulate(shares, ["left after", f"of {len(images)} images"], tablefmt="github"))
    for name, ratio in report["ratios"].items():
        print(f"{name}: {ratio:.3f}")
    if arguments.json:
        found = {key: report[key] for key in ("package", "standard", "left", "left_by_package", "images")}
        settings = settings_of(workers, device, 1, **found) | {"warm_up": 0}
        rows = rows_of({who: [seconds] for who, seconds in report["seconds"].items()})
        written = BenchmarkFile.of("autoattack", report["environment"], settings, rows, report["ratios"])
        written.write(arguments.json)


if __name__ == "__main__":
    main()
