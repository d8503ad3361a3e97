"""AA of the sharded evaluation compared with the package's own, image by image.

``mpirun -np M python benchmarks/autoattack.py --cifar ROOT [--images N] [--json PATH]``: the plainly trained
ResNet-18 among pyautoattack's examples on N test images of CIFAR-10 (ROOT holds cifar-10-batches-py), at
linf, eps 1/255, where some are robust. The workers divide the batches, as in ``hpcdat evaluate``; then the
first one calls the package's standard evaluation on all images at once. Seeds differ between the two, so an
image very close to the boundary may differ.

Ratios:

- ``same_images``: share of images with the same outcome in both.
- ``seconds_over_package``: time of the sharded evaluation with M workers over the package's on one.
"""

from __future__ import annotations

import argparse
import json
import runpy
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyautoattack
import torch
from tabulate import tabulate
from torch import Tensor, nn

from hpcdat.config.job_file import read_job
from hpcdat.data.cifar import read_cifar
from hpcdat.data.images import DataError, Images
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.initialization import init_communicator
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.evaluation.autoattack import AutoAttack
from hpcdat.evaluation.determinism import deterministic
from hpcdat.evaluation.image_batches import ImageBatches
from hpcdat.evaluation.outcomes import Outcomes, merge
from hpcdat.evaluation.sharded_runner import Execution, Measurement, open_store, run_sharded
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


def compare(images: Images, workers: Communicator, folder: Path) -> dict[str, Any]:
    """Both evaluations, on all workers."""
    stop, model = StopRequest(), example_model()
    device, progress = torch.device("cpu"), Progress(shown=workers.is_rank0)
    job = read_job(JOB, ["data.source=cifar10", "data.augmentation=none"])
    batches = ImageBatches(images, job.data, BATCH, device)
    attack = AutoAttack(EPS, "linf", len(images.classes), job.seed)
    execution = Execution(workers, progress, stop)
    with deterministic(device, progress.say):
        began = time.perf_counter()
        store = open_store(folder, attack, batches, model, job, workers)
        ours = merge(run_sharded(attack, batches, model, job, execution, store=store))
        done = time.perf_counter()
        whole = ImageBatches(images, job.data, len(images), device)
        package = merge(run_sharded(PackageEvaluation(), whole, model, job, execution))
    seconds = {"ours": done - began, "package": time.perf_counter() - done}
    last = ours.columns[list(attack.settings["attacks"])[-1]]
    return {
        "environment": describe_environment(workers, torch.device("cpu")),
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


def main() -> None:
    """Attack twice, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description="sharded AutoAttack compared with the package's evaluation")
    parser.add_argument("--cifar", type=Path, required=True, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--images", type=int, default=20, help="of the test images (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write environment, counts, seconds and ratios here")
    arguments = parser.parse_args()
    workers = init_communicator(600)
    try:
        images = read_cifar("cifar10", arguments.cifar, download=False)[1].equal_part(arguments.images)
    except DataError as error:
        raise SystemExit(str(error)) from None
    with tempfile.TemporaryDirectory() as own:
        folder = Path(workers.all_gather_object(own, "folder of outcomes")[0])
        report = compare(images, workers, folder)
    workers.close()
    if not workers.is_rank0:
        return
    shares = [[name, f"{count / len(images):.1%}"] for name, count in report["left"].items()]
    shares.append([f"{report['package']}'s own evaluation", f"{report['left_by_package'] / len(images):.1%}"])
    print(tabulate(shares, ["left after", f"of {len(images)} images"], tablefmt="github"))
    for name, ratio in report["ratios"].items():
        print(f"{name}: {ratio:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
