"""From the start of a job to its first batch, with as many images as ImageNet has.

``mpirun -np 2 python benchmarks/start.py --images ROOT [--folder FOLDER] [--keep] [--json PATH]`` makes a
stand-in below FOLDER, 1,281,000 training and 50,000 test images of 1,000 classes that are hard links of the
photographs in ROOT/train/CLASS, and does what a job does before its first step, without imports and the
network: worker 0 lists the images and sends the list, 10,000 images are held out, images are checked, the
first epoch is divided, and the loader reads its first batch. The stand-in is removed afterwards, unless
``--keep``. Without ``mpirun`` a single worker does all.

The page cache holds the photographs, so that this is the work of the processor and of the file system's
names; a parallel file system adds its latency, of which ``benchmarks/loader.py`` shows the effect.

Ratios: ``start_seconds``, of the slowest worker in each stage; ``list_megabytes``, memory that the list takes
on the last worker.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TypeVar

import torch
from arguments import Parser, errors_in_one_line, folder_to_write, image_root
from tabulate import tabulate
from timing import rows_of, settings_of

from hpcdat.config.job import Job
from hpcdat.config.job_file import read_job
from hpcdat.data import find_images, open_loader
from hpcdat.data.image_check import check_images
from hpcdat.data.image_folder import list_images
from hpcdat.data.listing import find_together
from hpcdat.data.sampler import training_shares
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.initialization import init_communicator
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.errors import InputError
from hpcdat.performance.benchmark_file import BenchmarkFile
from hpcdat.progress import Progress
from hpcdat.training.validation import hold_out

JOB = Path(__file__).resolve().parents[1] / "jobs" / "imagenet-dat-fgsm.yaml"
CPU = torch.device("cpu")
CLASSES, TRAINING, TEST = 1000, 1281, 50
"""Number of classes, and images of each; ImageNet has 1,281,167 for training."""
T = TypeVar("T")


def make_stand_in(photographs: Path, folder: Path) -> None:
    """Hard links of photographs in the folders of ImageNet.

    Raises:
        InputError: there are no photographs, or the links cannot be made.
    """
    files = cycle(list(list_images(photographs / "train").files))
    # Under its own name only when it is whole, since a later call uses what is there.
    growing = folder.with_name(f"{folder.name}.growing")
    shutil.rmtree(growing, ignore_errors=True)
    try:
        for number in range(CLASSES):
            for split, images in (("train", TRAINING), ("test", TEST)):
                of_class = growing / split / f"n{number:08}"
                of_class.mkdir(parents=True)
                for image in range(images):
                    os.link(next(files), of_class / f"n{number:08}_{image}.JPEG")
        growing.rename(folder)
    except OSError as error:
        shutil.rmtree(growing, ignore_errors=True)
        raise InputError(
            f"--folder {folder}: {error.strerror}; it has to be on the file system of --images"
        ) from None


def resident_megabytes() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Stages:
    """Times the stages of a start; all workers wait for each other after each."""

    def __init__(self, workers: Communicator) -> None:
        self.workers = workers
        self.seconds: dict[str, float] = {}

    def time(self, what: str, work: Callable[[], T]) -> T:
        """Call a function, and keep the seconds of the slowest worker."""
        self.workers.all_gather_object(None, f"begin to {what}")
        start = time.perf_counter()
        done = work()
        every = self.workers.all_gather_object(time.perf_counter() - start, f"seconds to {what}")
        self.seconds[what] = max(every)
        return done


def start(job: Job, workers: Communicator) -> tuple[dict[str, float], float]:
    """Seconds of every stage, and megabytes of the list on this worker."""
    stages = Stages(workers)
    before = resident_megabytes()
    find = partial(find_images, job.data)
    train, test = stages.time("list the images", lambda: find_together(find, job.data, workers))
    megabytes = resident_megabytes() - before
    images = stages.time("hold images out", lambda: hold_out(train, test, job))
    progress = Progress(shown=workers.is_rank0)
    checked = [images.validation, images.test]
    stages.time(
        "check images",
        lambda: check_images(images.train, checked, job.data, workers, StopRequest(), progress),
    )
    groups = [0] * workers.size
    shares = stages.time(
        "divide an epoch",
        lambda: training_shares(
            len(images.train), job.batch_size, rank=workers.rank, groups=groups, seed=job.seed, epoch=0
        ),
    )

    def first_batch() -> None:
        loader = open_loader(images.train, job.data, training=True, batch_size=job.batch_size, device=CPU)
        with closing(loader):
            next(iter(loader.read([share.indices for share in shares], seed=0)))

    stages.time("read a batch", first_batch)
    return stages.seconds, megabytes


@errors_in_one_line
def main() -> None:
    """Make the stand-in, start, print the table, write the JSON."""
    parser = Parser("seconds from a start to the first batch of ImageNet's size")
    parser.add_argument(
        "--images", type=image_root, required=True, metavar="ROOT", help="photographs in ROOT/train"
    )
    parser.add_argument("--folder", type=folder_to_write, help="of the stand-in (default: ROOT/stand-in)")
    parser.add_argument("--keep", action="store_true", help="leave the stand-in, which is used again")
    parser.add_json()
    arguments = parser.parse_args()
    folder = arguments.folder or arguments.images / "stand-in"
    workers = init_communicator(600)
    made = workers.on_rank0("look for the stand-in", folder.is_dir)
    if not made:
        workers.on_rank0("make the stand-in", lambda: make_stand_in(arguments.images, folder))
    settings = [f"data.root={folder}", "early_stopping.held_out=10000", "batch_size=64", "data.loader=dali"]
    try:
        seconds, megabytes = start(read_job(JOB, settings), workers)
        of_last = workers.all_gather_object(megabytes, "megabytes")[-1]
    finally:
        if workers.is_rank0 and not arguments.keep:
            shutil.rmtree(folder)
    environment = describe_environment(workers, CPU)
    workers.close()
    if not workers.is_rank0:
        return
    ratios = {"start_seconds": sum(seconds.values()), "list_megabytes": of_last}
    lines = [[what, f"{value:.2f}"] for what, value in seconds.items()]
    print(tabulate(lines, [f"{workers.size} workers", "seconds"], tablefmt="github", disable_numparse=True))
    print()
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.1f}")
    if arguments.json:
        rows = rows_of({what: [value] for what, value in seconds.items()})
        settings = settings_of(workers, CPU, 1) | {"warm_up": 0}
        BenchmarkFile.of("start", environment, settings, rows, ratios).write(arguments.json)


if __name__ == "__main__":
    main()
