"""Images per second of DALI against torchvision, from slow file systems too, and how long training waits.

``python benchmarks/loader.py [--images ROOT] [--cifar ROOT] [--device auto|cpu|cuda] [--json PATH]
[--rounds N]``: JPEGs of 500x375 are decoded, cropped at random, resized to 224x224 and mirrored, as for
training on ImageNet, with one thread per core of this process for both loaders, and brought to the device.
The JPEGs are generated from noise with the spectrum of photographs, or are those of ROOT/train/CLASS. In
every round each loader is opened anew and reads the same list for two epochs, once as fast as the disk and
once from files that take 5 ms longer each, as on a parallel file system; medians over the rounds are
compared.

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
from arguments import Parser, errors_in_one_line, image_root, own_device
from PIL import Image
from tabulate import tabulate
from timing import settings_of

from hpcdat.config.loaders import dali_is_installed
from hpcdat.config.paths import escape
from hpcdat.config.sections import Data
from hpcdat.data import Loader, open_loader
from hpcdat.data.encoded_images import Files
from hpcdat.data.image_folder import list_images
from hpcdat.data.images import Images
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError, WorkerError
from hpcdat.performance.benchmark_file import BenchmarkFile, Row
from hpcdat.performance.clock import now
from hpcdat.storage.run_folder import RunFolder

LATENCY = 0.005
"""Seconds that a file takes longer on the slow file system."""
COUNT, WIDTH, HEIGHT, BATCH, PASSES = 400, 500, 375, 50, 3
"""Number of generated images, their size, images in a batch, and passes over the list in a round."""
LOADERS = ("dali", "torchvision")
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


def seconds_to_read(loader: Loader, images: Images, seed: int, device: torch.device) -> float:
    """Seconds of PASSES over the list, without a pause as in a long epoch."""
    indices = np.tile(np.arange(len(images)), PASSES)
    batches = np.array_split(indices, -(-len(indices) // BATCH))
    start = now(device)
    read = sum(len(x) for x, _ in loader.read(batches, seed))
    assert read == len(indices)
    return now(device) - start


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


def compare_loaders(
    root: Path, images: Images, rounds: int, threads: int, device: torch.device
) -> dict[Case, list[float]]:
    """Seconds of each case in every round, for the images below a folder."""
    assert isinstance(images.files, Files)
    slow = replace(images, files=SlowFiles.from_arrays(images.files.arrays()))
    seconds: dict[Case, list[float]] = {}
    for number in range(rounds):
        pairs = list(product(LOADERS, (False, True)))
        for name, latency in reversed(pairs) if number % 2 else pairs:
            settings = Data(root=root, loader=name, threads=threads, augmentation="crop-flip")
            read = slow if latency else images
            loader = open_loader(read, settings, training=True, batch_size=BATCH, device=device)
            with closing(loader):
                for epoch in (1, 2):
                    spent = seconds_to_read(loader, read, epoch, device)
                    seconds.setdefault(Case(name, latency, epoch), []).append(spent)
    return seconds


def latency_ratio(seconds: dict[Case, list[float]], epoch: int) -> float:
    """Images per second with latency over those without, of the loader that suffers more."""
    return min(
        median(seconds[Case(name, latency=False, epoch=epoch)])
        / median(seconds[Case(name, latency=True, epoch=epoch)])
        for name in LOADERS
    )


def data_wait(job: Path, *settings: str) -> float:
    """Share of an epoch's time that worker 0 of two waits for images.

    Raises:
        WorkerError: the job failed; it has said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        common = [f"run_dir={run_dir}", "epochs=2", "evaluation.steps=1", "evaluation.every=0"]
        command = [sys.executable, "-m", "hpcdat", "train", str(job), "-np", "2"]
        done = subprocess.run([*command, *common, *settings], stdout=subprocess.DEVNULL)
        if done.returncode:
            raise WorkerError(f"{job.name} ended with code {done.returncode}")
        epoch = RunFolder(run_dir).metrics("epoch")[-1]
        return epoch["data_seconds"] / epoch["total_seconds"]


@errors_in_one_line
def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = Parser("speed of the loaders", alone="it starts training jobs itself")
    parser.add_argument("--images", type=image_root, metavar="ROOT", help="photographs in ROOT/train/CLASS")
    parser.add_cifar()
    parser.add_device()
    parser.add_rounds(5)
    parser.add_json()
    arguments = parser.parse_args()
    if not dali_is_installed():
        raise InputError("DALI is not installed, which torchvision is compared with: make setup installs it")
    workers = SingleProcess()
    device = own_device(arguments.device, workers)
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.images or Path(folder)
        if arguments.images is None:
            make_photographs(root)
        images = list_images(root / "train")
        seconds = compare_loaders(root, images, arguments.rounds, threads, device)
    dali, torchvision = (median(seconds[Case(name, latency=False, epoch=2)]) for name in LOADERS)
    ratios: dict[str, float | None] = {
        "dali_over_torchvision": torchvision / dali,
        "latency_5ms_over_none": latency_ratio(seconds, 2),
        "latency_5ms_over_none_first": latency_ratio(seconds, 1),
        "demo_data_wait": data_wait(JOBS / "demo.yaml"),
        "cifar_data_wait": None,
    }
    notes = ["cifar_data_wait: not measured (--cifar)"]
    if arguments.cifar is not None:
        settings = [f"data.root={escape(arguments.cifar)}", "data.train_images=2000", "data.test_images=100"]
        settings.append("schedule.peak_epoch=1")
        ratios["cifar_data_wait"], notes = data_wait(JOBS / "cifar10-slice.yaml", *settings), []
    count = PASSES * len(images)
    rows = [
        Row(parameters=asdict(case), seconds=each, figures={"images_per_second": count / median(each)})
        for case, each in seconds.items()
    ]
    lines = [
        [row.parameters["loader"], "5 ms" if row.parameters["latency"] else "none", row.parameters["epoch"]]
        + [f"{count / each:.0f}" for each in (row.median, max(row.seconds), min(row.seconds))]
        for row in rows
    ]
    header = [f"{threads} threads", "added latency", "epoch", "images/s, median", "min", "max"]
    print(tabulate(lines, header, tablefmt="github", disable_numparse=True))
    print()
    for name, ratio in ratios.items():
        print(f"{name}: {'not measured (--cifar)' if ratio is None else format(ratio, '.3f')}")
    if arguments.json:
        source = str(arguments.images or f"{COUNT} generated, {WIDTH}x{HEIGHT}")
        of_run = settings_of(workers, device, arguments.rounds, images=source, threads=threads)
        # Every round opens the loaders anew.
        of_run["warm_up"] = 0
        environment = describe_environment(workers, device)
        BenchmarkFile.of("loader", environment, of_run, rows, ratios, notes).write(arguments.json)


if __name__ == "__main__":
    main()
