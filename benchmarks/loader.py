"""Images per second of DALI against torchvision, and how long training waits for data.

``python benchmarks/loader.py [--images ROOT] [--cifar ROOT] [--json PATH] [--rounds N]``: JPEGs of
500x375 are decoded, cropped at random, resized to 224x224 and mirrored, as for training on ImageNet,
with one thread per core of this process for both loaders. The JPEGs are generated from noise with the
spectrum of photographs, or are those of ROOT/train/CLASS. Both loaders read the same list in every round,
after a warm-up, and their medians are compared.

Then two jobs train for an epoch each with two workers: the demo, and, with ``--cifar``,
jobs/cifar10-slice.yaml on 2,000 images.

Ratios:

- ``dali_over_torchvision``: images per second of DALI over those of torchvision.
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
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate

from hpcdat.config.sections import Data
from hpcdat.data import Loader, open_loader
from hpcdat.data.image_folder import list_images
from hpcdat.data.images import Images
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.storage.run_folder import RunFolder

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


def compare_loaders(root: Path, rounds: int, threads: int, device: torch.device) -> dict[str, list[float]]:
    """Images per second of each loader in every round."""
    images = list_images(root / "train")
    loaders = {}
    for name in ("dali", "torchvision"):
        settings = Data(root=root, loader=name, threads=threads, augmentation="crop-flip")
        loaders[name] = open_loader(images, settings, training=True, batch_size=BATCH, device=device)
    speeds: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(rounds + 1):
        for name in sorted(loaders, reverse=number % 2 == 1):
            speed = images_per_second(loaders[name], images, number)
            # The first round starts processes and pipelines.
            if number > 0:
                speeds[name].append(speed)
    return speeds


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
    parser.add_argument("--rounds", type=int, default=5, help="repetitions after a warm-up")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        if arguments.images is None:
            make_photographs(Path(folder))
        speeds = compare_loaders(arguments.images or Path(folder), arguments.rounds, threads, device)
    ratios: dict[str, float | None] = {
        "dali_over_torchvision": median(speeds["dali"]) / median(speeds["torchvision"]),
        "demo_data_wait": data_wait(JOBS / "demo.yaml"),
        "cifar_data_wait": None,
    }
    if arguments.cifar is not None:
        settings = [f"data.root={arguments.cifar}", "data.train_images=2000", "data.test_images=100"]
        schedule = ["schedule.peak_epoch=1"]
        ratios["cifar_data_wait"] = data_wait(JOBS / "cifar10-slice.yaml", *settings, *schedule)
    rows = [[name, f"{median(s):.0f}", f"{min(s):.0f}", f"{max(s):.0f}"] for name, s in speeds.items()]
    header = [f"{threads} threads", "images/s, median", "min", "max"]
    print(tabulate(rows, header, tablefmt="github", disable_numparse=True))
    print()
    for name, ratio in ratios.items():
        print(f"{name}: {'not measured (--cifar)' if ratio is None else format(ratio, '.3f')}")
    if arguments.json:
        report = {
            "environment": describe_environment(SingleProcess(), device),
            "images": str(arguments.images or f"{COUNT} generated, {WIDTH}x{HEIGHT}"),
            "images_per_second": speeds,
            "ratios": ratios,
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
