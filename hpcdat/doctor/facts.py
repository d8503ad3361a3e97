"""Facts about the nodes: software, GPUs, cores and memory, clocks, run folder, images."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcdat.config.job import Job
from hpcdat.config.sections import Data
from hpcdat.data import find_images
from hpcdat.data.cifar import read_cifar
from hpcdat.data.corrupt_images import complaint_about
from hpcdat.data.image_file import Unusable
from hpcdat.data.image_folder import find_classes
from hpcdat.data.images import DataError
from hpcdat.data.shard_folder import existing_index, find_tars
from hpcdat.data.shard_index import Index
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.cores import cgroup_quota, observe_cores
from hpcdat.distributed.device import why_no_gpu
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.local_mpirun import check_temporary_folder
from hpcdat.errors import HpcdatError, InputError, first_line
from hpcdat.hardware.usage import describe_energy
from hpcdat.storage.atomic_files import write_text

CLOCK_ROUNDS = 12
"""How many times the clocks are gathered."""
SECONDS_TO_APPEAR = 10.0
"""How long a file written by another node may take to appear."""
SHARED_MEMORY = "/dev/shm"  # noqa: S108


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node, as its workers see it.

    Attributes:
        host: name of the node.
        versions: of Python, of packages and of hpcdat's checkout, by name.
        horovod: whether it was built with ``mpi``, ``gloo``, ``nccl``; None where it is not used.
        driver: whether there is an NVIDIA driver.
        gpus: names of the GPUs that torch can use, by their UUID.
        takes: for each worker the UUID of the GPU it uses, or None for the CPU.
        dali: version of DALI, or None where it cannot be imported.
        dali_error: why DALI cannot be imported, or empty.
        cores: number of cores that the workers together may use.
        memory: bytes available.
        shared_memory: bytes free in /dev/shm.
        classes: number of image classes, or None if the images were not checked or cannot be used.
        data_error: why the images cannot be used, or empty.
        busy: how many of the cores other processes use.
        no_gpu: why torch finds no GPU in spite of the driver, or empty.
        temporary_error: why temporary files cannot be written, or empty.
        no_energy: which energy a run cannot measure, and why, or empty.
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
    busy: float = 0.0
    no_gpu: str = ""
    temporary_error: str = ""
    no_energy: str = ""


@dataclass(frozen=True)
class RunDir:
    """Whether the nodes see a file that worker 0 writes where the run folder will be.

    Attributes:
        folder: where it was written: ``run_dir``, or its nearest existing parent.
        error: why it could not be written, or empty.
        unseen: the hosts on which it did not appear.
        free: bytes free on its file system.
    """

    folder: str
    error: str
    unseen: list[str]
    free: int


def _gpus() -> list[Any]:
    # With an old driver, torch counts devices that it cannot use.
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.cuda.get_device_properties(number) for number in range(count)]


def device_of(job: Job | None, workers: Communicator) -> torch.device:
    """The device that a run would use on this worker."""
    gpus = len(_gpus())
    if gpus and (job is None or job.device != "cpu"):
        return torch.device("cuda", workers.local_rank % gpus)
    return torch.device("cpu")


def first_ranks(workers: Communicator) -> list[int]:
    """The first rank on every node, which reports for the node."""
    return [workers.node_of.index(node) for node in range(len(set(workers.node_of)))]


def inspect_nodes(job: Job | None, workers: Communicator) -> list[Node]:
    """Inspect every node; all workers call this together.

    Args:
        job: resolved, or None.
        workers: all workers.

    Returns:
        The nodes in the order of ranks, the same on all workers.

    Raises:
        WorkerError: a node cannot be inspected.
    """
    device = device_of(job, workers)
    environment = describe_environment(workers, device)

    def inspect() -> dict[str, Any]:
        # All workers do so at once, when none of them computes.
        busy = observe_cores()
        gpus = _gpus()
        seen: dict[str, Any] = {
            "gpus": {str(gpu.uuid): gpu.name for gpu in gpus},
            "takes": str(gpus[device.index].uuid) if device.type == "cuda" else None,
            "cores": sorted(os.sched_getaffinity(0)),
            "quota": cgroup_quota(),
            "busy": busy,
        }
        if workers.rank in first_ranks(workers):
            seen["node"] = _inspect_host(job, workers, environment)
        return seen

    every = workers.all_gather_object(workers.on_all_ranks("inspect its node", inspect), "nodes")
    nodes = []
    for number, first in enumerate(first_ranks(workers)):
        members = [seen for seen, node in zip(every, workers.node_of, strict=True) if node == number]
        nodes.append(
            Node(
                **every[first]["node"],
                # A worker may see all GPUs and cores of the node, or only its own.
                gpus={gpu: name for seen in members for gpu, name in seen["gpus"].items()},
                takes=[seen["takes"] for seen in members],
                cores=_count_cores(members),
                busy=max(seen["busy"] for seen in members),
            )
        )
    return nodes


def _count_cores(members: Sequence[dict[str, Any]]) -> int:
    """Cores that the workers of a node may use, together and on average."""
    cores = len({core for seen in members for core in seen["cores"]})
    quotas = [seen["quota"] for seen in members if seen["quota"] is not None]
    return max(1, min(cores, int(max(quotas)))) if len(quotas) == len(members) else cores


def _inspect_host(job: Job | None, workers: Communicator, environment: dict[str, Any]) -> dict[str, Any]:
    """The fields of a :class:`Node` that are the same for all its workers."""
    dali, dali_error = None, ""
    try:
        import nvidia.dali

        dali = nvidia.dali.__version__
    except (ImportError, OSError) as error:
        dali_error = first_line(error)
    classes, data_error = None, ""
    if job:
        try:
            classes = _count_classes(job.data, job.module_path or ())
        except (HpcdatError, OSError) as error:
            data_error = _describe(error)
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
        "shared_memory": shutil.disk_usage(SHARED_MEMORY).free if Path(SHARED_MEMORY).exists() else 0,
        "classes": classes,
        "data_error": data_error,
        "no_gpu": why_no_gpu() if not _gpus() else "",
        "temporary_error": _temporary_error(),
        "no_energy": describe_energy([str(gpu.uuid) for gpu in _gpus()]),
    }


def _temporary_error() -> str:
    try:
        check_temporary_folder()
    except InputError as error:
        return str(error)
    return ""


def _count_classes(data: Data, folders: Sequence[Path] = ()) -> int | None:
    """Count the classes of a job's images; None if the run itself writes, downloads or indexes them.

    In a folder of images, one image per split is opened, of shards one image of each; CIFAR is read in full;
    of data sets of one's own the first items are read.

    Raises:
        DataError, OSError: the images are missing or unreadable.
    """
    if data.holds_items and not data.download:
        return len(find_images(data, folders=folders, quiet=True)[0].classes)
    if data.root is None or data.source == "digits" or data.download:
        return None
    if data.source == "shards":
        return _count_classes_of_shards(data, data.root)
    if data.source != "folder":
        return len(read_cifar(data.source, data.root, download=False)[0].classes)
    found = {}
    splits = [data.train] if data.test_fraction else [data.train, data.test]
    for split in splits:
        found[split] = find_classes(data.root / split)
        if not found[split]:
            raise FileNotFoundError(f"{data.root / split} has no folders, one for each class")
        files = (data.root / split / found[split][0]).rglob("*")
        image = next((file for file in files if file.is_file()), None)
        if image is None:
            raise FileNotFoundError(f"{data.root / split / found[split][0]} has no images")
        with image.open("rb") as file:
            file.read(1)
    if found[data.train] != found[splits[-1]]:
        raise InputError(f"{data.root}: {data.train} and {data.test} have different classes")
    return len(found[data.train])


def _count_classes_of_shards(data: Data, root: Path) -> int | None:
    """Count the classes of shards and read an image of each shard; None if the run itself indexes them."""
    indices: list[Index] = []
    for split in [data.train] if data.test_fraction else [data.train, data.test]:
        index = existing_index(root / split, find_tars(root / split))
        if index is None:
            return None
        indices.append(index.with_classes_of(indices[0], root / split) if indices else index)
        _, firsts = np.unique(index.shards.shard_of, return_index=True)
        for image in firsts.tolist():
            try:
                index.shards.read(image)
            except Unusable as reason:
                raise DataError(complaint_about(index.shards.name(image), reason)) from None
    return len(indices[0].classes)


def _describe(error: Exception) -> str:
    """An error as text, without the errno of system errors."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def clock_stamps(workers: Communicator) -> list[list[float]]:
    """Gather every worker's clock several times.

    Returns:
        (rounds, M): seconds since the epoch, read when a worker enters the gathering.
    """
    return [workers.all_gather_object(time.time(), "clocks") for _ in range(CLOCK_ROUNDS)]


def clock_offsets(stamps: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Compute each worker's clock offset from worker 0's.

    A worker enters gathering i after worker 0 has entered gathering i - 1, and before worker 0 enters
    gathering i + 1. So its stamp lies between two of worker 0's; the round in which these are closest gives
    the tightest bound.

    Args:
        stamps: (rounds, M) seconds, at least three rounds.

    Returns:
        For each worker the seconds its clock is ahead, and the error bound in seconds.
    """
    before, now, after = min(
        zip(stamps, stamps[1:], stamps[2:], strict=False), key=lambda three: three[2][0] - three[0][0]
    )
    middle, bound = (before[0] + after[0]) / 2, (after[0] - before[0]) / 2
    return [(stamp - middle, bound) if rank else (0.0, 0.0) for rank, stamp in enumerate(now)]


def probe_run_dir(run_dir: Path, workers: Communicator) -> RunDir:
    """Write a file where the run folder will be, check which nodes see it, and remove it.

    All workers call this together; the result is the same on all of them.
    """
    path = run_dir.absolute()
    # The folder is communicated as a number of parents, since working directories may differ between nodes.
    folders = [path, *path.parents]
    file, answer = None, {}
    if workers.is_rank0:
        name, up, error, free = f".hpcdat-doctor-{uuid.uuid4().hex}", 0, "", 0
        try:
            up = next(i for i, folder in enumerate(folders) if folder.is_dir())
            if up and folders[up - 1].exists():
                raise NotADirectoryError(f"{folders[up - 1]} is not a folder")
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
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while True:
        try:
            if (folder / name).read_text() == name:
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
