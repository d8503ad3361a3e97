"""What there is on the nodes: their software, GPUs and room, their clocks, the run folder, the images."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets.folder import find_classes

from hpcdat.config.job import Job
from hpcdat.config.sections import Data
from hpcdat.data.cifar import read_cifar
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.environment import describe_environment
from hpcdat.errors import HpcdatError, InputError
from hpcdat.storage.atomic_files import write_text

CLOCK_ROUNDS = 12
SECONDS_TO_SEE = 10.0
"""How long a file of another node's may take to appear."""
SHARED_MEMORY = "/dev/shm"  # noqa: S108


@dataclass(frozen=True)
class Node:
    """What its workers saw of a node.

    Attributes:
        host: its name.
        versions: of Python, of packages and of hpcdat's checkout, by name.
        horovod: whether it was built with ``mpi``, ``gloo``, ``nccl``; None where it cannot be imported.
        driver: whether there is an NVIDIA driver.
        gpus: names of the GPUs that torch can use, by their UUID.
        takes: for each worker the UUID of the GPU that it takes, or None for the CPU.
        dali: version of DALI, or None where it cannot be imported.
        dali_error: why it cannot.
        cores: that the workers may use, all together.
        memory: bytes available.
        shared_memory: bytes free in /dev/shm.
        classes: of the images, or None where they were not looked at or are not right.
        data_error: what is not right with them.
    """

    host: str
    versions: dict[str, str]
    horovod: dict[str, bool] | None
    driver: bool
    gpus: dict[str, str]
    takes: list[str | None]
    dali: str | None
    dali_error: str
    cores: int
    memory: int
    shared_memory: int
    classes: int | None
    data_error: str


@dataclass(frozen=True)
class RunDir:
    """What becomes of a file that worker 0 writes where the run folder will be.

    Attributes:
        folder: where it was written: ``run_dir``, or of its parents the nearest that is there.
        error: why it could not be written, or empty.
        unseen: the hosts on which it did not appear.
        free: bytes left on its file system.
    """

    folder: str
    error: str
    unseen: list[str]
    free: int


def _gpus() -> list[Any]:
    # An old driver has devices to count that torch cannot use.
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.cuda.get_device_properties(number) for number in range(count)]


def device_of(job: Job | None, workers: Communicator) -> torch.device:
    """Where this worker's tensors are, as a run would place them."""
    gpus = len(_gpus())
    if gpus and (job is None or job.device != "cpu"):
        return torch.device("cuda", workers.local_rank % gpus)
    return torch.device("cpu")


def firsts_of(workers: Communicator) -> list[int]:
    """The first worker of every node, which speaks for it."""
    return [workers.node_of.index(node) for node in range(len(set(workers.node_of)))]


def look_at_nodes(job: Job | None, workers: Communicator) -> list[Node]:
    """Every node as its workers see it, in the order of ranks; the same on all workers."""
    device = device_of(job, workers)
    environment = describe_environment(workers, device)

    def look() -> dict[str, Any]:
        gpus = _gpus()
        seen: dict[str, Any] = {
            "gpus": {str(gpu.uuid): gpu.name for gpu in gpus},
            "takes": str(gpus[device.index].uuid) if device.type == "cuda" else None,
            "cores": sorted(os.sched_getaffinity(0)),
        }
        if workers.rank in firsts_of(workers):
            seen["node"] = _look_here(job, workers, environment)
        return seen

    every = workers.all_gather_object(workers.on_all_ranks("look at its node", look), "what was seen")
    nodes = []
    for number, first in enumerate(firsts_of(workers)):
        members = [seen for seen, node in zip(every, workers.node_of, strict=True) if node == number]
        nodes.append(
            Node(
                **every[first]["node"],
                # Each may see its own GPUs and cores alone, and all of them the same.
                gpus={gpu: name for seen in members for gpu, name in seen["gpus"].items()},
                takes=[seen["takes"] for seen in members],
                cores=len({core for seen in members for core in seen["cores"]}),
            )
        )
    return nodes


def _look_here(job: Job | None, workers: Communicator, environment: dict[str, Any]) -> dict[str, Any]:
    """What of a :class:`Node` one worker can say for all of them."""
    dali, dali_error = None, ""
    try:
        import nvidia.dali

        dali = nvidia.dali.__version__
    except (ImportError, OSError) as error:
        dali_error = str(error).splitlines()[0]
    classes, data_error = None, ""
    if job:
        try:
            classes = _count_classes(job.data)
        except (HpcdatError, OSError) as error:
            data_error = _complaint(error)
    memory = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    commit = environment["git_commit"]
    return {
        "host": workers.host,
        "versions": {
            "python": environment["python"],
            **environment["packages"],
            **({"git commit": commit} if commit else {}),
        },
        "horovod": environment["horovod"],
        "driver": Path("/proc/driver/nvidia/version").exists(),
        "dali": dali,
        "dali_error": dali_error,
        "memory": int(memory["MemAvailable"].split()[0]) * 1024,
        "shared_memory": shutil.disk_usage(SHARED_MEMORY).free,
        "classes": classes,
        "data_error": data_error,
    }


def _count_classes(data: Data) -> int | None:
    """Of the images that a job names, or None where the run itself will write or fetch them.

    Of a folder of images the classes are listed and one image opened, of CIFAR all is read.

    Raises:
        DataError, OSError: they are not there, or not readable.
    """
    if data.root is None or data.source == "digits" or data.download:
        return None
    if data.source != "folder":
        return len(read_cifar(data.source, data.root, download=False)[0].classes)
    found = {}
    for split in (data.train, data.test):
        found[split], _ = find_classes(data.root / split)
        files = (data.root / split / found[split][0]).rglob("*")
        image = next((file for file in files if file.is_file()), None)
        if image is None:
            raise FileNotFoundError(f"{data.root / split / found[split][0]} has no images")
        with image.open("rb") as file:
            file.read(1)
    if found[data.train] != found[data.test]:
        raise InputError(f"{data.root}: {data.train} and {data.test} hold different classes")
    return len(found[data.train])


def _complaint(error: Exception) -> str:
    """Without the number that Python puts before an error of the system's."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def clock_stamps(workers: Communicator) -> list[list[float]]:
    """Every worker's clock at the start of a gathering, for one gathering after the other."""
    return [workers.all_gather_object(time.time(), "clocks") for _ in range(CLOCK_ROUNDS)]


def clock_offsets(stamps: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Seconds that each worker's clock is ahead of worker 0's, and how far that may be off.

    No worker begins a gathering before worker 0 has begun the one before it, nor does worker 0 begin the
    next before all have begun this one. So a worker's stamp lies between two of worker 0's, and of all
    gatherings the one where these are closest says most.

    Args:
        stamps: (rounds, M), three rounds or more.
    """
    before, now, after = min(
        zip(stamps, stamps[1:], stamps[2:], strict=False), key=lambda three: three[2][0] - three[0][0]
    )
    middle, bound = (before[0] + after[0]) / 2, (after[0] - before[0]) / 2
    return [(stamp - middle, bound) if rank else (0.0, 0.0) for rank, stamp in enumerate(now)]


def look_at_run_dir(run_dir: Path, workers: Communicator) -> RunDir:
    """Write a file where the run folder will be, see who sees it, and take it away again."""
    path = run_dir.absolute()
    # Counted in parents, since a node may have its own idea of the folder it is in.
    folders = [path, *path.parents]
    file, answer = None, {}
    if workers.is_rank0:
        name, up, error, free = f".hpcdat-doctor-{uuid.uuid4().hex}", 0, "", 0
        try:
            up = next(i for i, folder in enumerate(folders) if folder.is_dir())
            if up and folders[up - 1].exists():
                raise NotADirectoryError(f"{folders[up - 1]} is no folder")
            free = shutil.disk_usage(folders[up]).free
            file = folders[up] / name
            write_text(file, name)
        except OSError as failure:
            error = f"{folders[up]}: {failure.strerror or failure}"
        answer = {"name": name, "up": up, "error": error, "free": free}
    try:
        answer = workers.all_gather_object(answer, "the run folder")[0]
        seen = bool(answer["error"]) or _appears(folders[min(answer["up"], len(folders) - 1)], answer["name"])
        every = workers.all_gather_object([workers.host, seen], "who sees the run folder")
    finally:
        if file:
            file.unlink(missing_ok=True)
    unseen = dict.fromkeys(host for host, seen in every if not seen)
    return RunDir(str(folders[answer["up"]]), answer["error"], list(unseen), answer["free"])


def _appears(folder: Path, name: str) -> bool:
    deadline = time.monotonic() + SECONDS_TO_SEE
    while True:
        try:
            if (folder / name).read_text() == name:
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
