"""Images per second of DALI against torchvision, from slow file systems too, and how long training waits.

``python benchmarks/loader.py [--images ROOT] [--cifar ROOT] [--json PATH] [--rounds N]``: JPEGs of
500x375 are decoded, cropped at random, resized to 224x224 and mirrored, as for training on ImageNet,
with one thread per core of this process for both loaders. The JPEGs are generated from noise with the
spectrum of photographs, or are those of ROOT/train/CLASS. In every round each loader is opened anew and reads
the same list for two epochs, once as fast as the disk and once from files that take 5 ms longer each, as on a
parallel file system; medians over the rounds are compared.

Then two jobs train for an epoch each with two workers: the demo, and, with ``--cifar``,
jobs/cifar10-slice.yaml on 2,000 images.

Ratios:

- ``dali_over_torchvision``: images per second of DALI over those of torchvision, in the second epoch.
- ``latency_5ms_over_none``: images per second with 5 ms a file over those without, the smaller one of the two
  loaders; ``latency_5ms_over_none_first`` in the first epoch, with the start of threads and processes.
- ``demo_data_wait``, ``cifar_data_wait``: seconds that worker 0 waited for images over those of the
  epoch; null where there are no images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate

from hpcdat.config.sections import Data
from hpcdat.data import Loader, open_loader
from hpcdat.data.encoded_images import Files
from hpcdat.data.image_folder import list_images
from hpcdat.data.images import Images
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.storage.run_folder import RunFolder

LATENCY = 0.005
"""Seconds that a file takes longer on the slow file system."""
COUNT, WIDTH, HEIGHT, BATCH, PASSES = 400, 500, 375, 50, 3
"""Number of generated images, their size, images in a batch, and passes over the list in a round."""
JOBS = Path(__file__).resolve().parents[1] / "jobs"


def make_photographs(root: Path) -> None:
    """Write JPEGs of about 100 KB: colour noise whose amplitude falls as 1/f, as in photographs."""
    generator = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = 1.0
    for index in range(COUNT):
        folder = root / "train" / str(index % 10)
        folder.mkdir(parents=True, exist_ok=True)
        spectrum = np.fft.rfft2(generator.standard_normal((3, HEIGHT, WIDTH))) / frequency
        spectrum[:, 0, 0] = 0
        picture = np.fft.irfft2(spectrum, s=(HEIGHT, WIDTH))
        pixels = np.clip(128 + 48 * picture / picture.std(), 0, 255).astype(np.uint8)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{index}.jpg", quality=90)


def images_per_second(loader: Loader, images: Images, seed: int) -> float:
    """Images per second in PASSES over the list, without a pause as in a long epoch."""
    indices = np.tile(np.arange(len(images)), PASSES)
    batches = np.array_split(indices, -(-len(indices) // BATCH))
    start = time.perf_counter()
    read = sum(len(x) for x, _ in loader.read(batches, seed))
    return read / (time.perf_counter() - start)


class SlowFiles(Files):
    """Files of a file system that takes :data:`LATENCY` longer for each."""

    def read(self, index: int) -> bytes:
        """The content of a file."""
        time.sleep(LATENCY)
        return super().read(index)


@dataclass(frozen=True)
class Case:
    """What is timed.

    Attributes:
        loader: its name.
        latency: whether files take 5 ms longer.
        epoch: of the loader, 1 or 2.
    """

    loader: str
    latency: bool
    epoch: int


def compare_loaders(root: Path, rounds: int, threads: int, device: torch.device) -> dict[Case, list[float]]:
    """Images per second of each case in every round."""
    images = list_images(root / "train")
    assert isinstance(images.files, Files)
    slow = replace(images, files=SlowFiles.from_arrays(images.files.arrays()))
    speeds: dict[Case, list[float]] = {}
    for number in range(rounds):
        pairs = list(product(("dali", "torchvision"), (False, True)))
        for name, latency in reversed(pairs) if number % 2 else pairs:
            settings = Data(root=root, loader=name, threads=threads, augmentation="crop-flip")
            read = slow if latency else images
            loader = open_loader(read, settings, training=True, batch_size=BATCH, device=device)
            with closing(loader):
                for epoch in (1, 2):
                    speed = images_per_second(loader, read, epoch)
                    speeds.setdefault(Case(name, latency, epoch), []).append(speed)
    return speeds


def latency_ratio(speeds: dict[Case, list[float]], epoch: int) -> float:
    """Images per second with latency over those without, of the loader that suffers more."""
    return min(
        median(speeds[Case(name, latency=True, epoch=epoch)])
        / median(speeds[Case(name, latency=False, epoch=epoch)])
        for name in ("dali", "torchvision")
    )


def data_wait(job: Path, *settings: str) -> float:
    """Share of an epoch's time that worker 0 of two waits for images."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        common = [f"run_dir={run_dir}", "epochs=2", "evaluation.steps=1", "evaluation.every=0"]
        command = [sys.executable, "-m", "hpcdat", "train", str(job), "-np", "2"]
        subprocess.run([*command, *common, *settings], check=True, stdout=subprocess.DEVNULL)
        epoch = RunFolder(run_dir).metrics("epoch")[-1]
        return epoch["data_seconds"] / epoch["total_seconds"]


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description="speed of the loaders")
    parser.add_argument("--images", type=Path, metavar="ROOT", help="photographs in ROOT/train/CLASS")
    parser.add_argument("--cifar", type=Path, metavar="ROOT", help="holds cifar-10-batches-py")
    parser.add_argument("--json", type=Path, help="write environment, speeds and ratios here")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions")
    arguments = parser.parse_args()
    if arguments.images is not None and not (arguments.images / "train").is_dir():
        parser.error(f"--images {arguments.images}: there is no folder train in it, with one folder a class")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        if arguments.images is None:
            make_photographs(Path(folder))
        speeds = compare_loaders(arguments.images or Path(folder), arguments.rounds, threads, device)
    without = [median(speeds[Case(name, latency=False, epoch=2)]) for name in ("dali", "torchvision")]
    ratios: dict[str, float | None] = {
        "dali_over_torchvision": without[0] / without[1],
        "latency_5ms_over_none": latency_ratio(speeds, 2),
        "latency_5ms_over_none_first": latency_ratio(speeds, 1),
        "demo_data_wait": data_wait(JOBS / "demo.yaml"),
        "cifar_data_wait": None,
    }
    if arguments.cifar is not None:
        settings = [f"data.root={arguments.cifar}", "data.train_images=2000", "data.test_images=100"]
        schedule = ["schedule.peak_epoch=1"]
        ratios["cifar_data_wait"] = data_wait(JOBS / "cifar10-slice.yaml", *settings, *schedule)
    rows = [
        [case.loader, "5 ms" if case.latency else "none", case.epoch]
        + [f"{number:.0f}" for number in (median(s), min(s), max(s))]
        for case, s in speeds.items()
    ]
    header = [f"{threads} threads", "added latency", "epoch", "images/s, median", "min", "max"]
    print(tabulate(rows, header, tablefmt="github", disable_numparse=True))
    print()
    for name, ratio in ratios.items():
        print(f"{name}: {'not measured (--cifar)' if ratio is None else format(ratio, '.3f')}")
    if arguments.json:
        report = {
            "environment": describe_environment(SingleProcess(), device),
            "images": str(arguments.images or f"{COUNT} generated, {WIDTH}x{HEIGHT}"),
            "images_per_second": [asdict(case) | {"rounds": s} for case, s in speeds.items()],
            "ratios": ratios,
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
