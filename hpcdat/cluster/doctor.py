"""What a run would stumble over: every node looked at, every link measured, before it is started.

First facts are gathered, by all workers together; then functions without workers turn them into findings.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from tabulate import tabulate
from torchvision.datasets.folder import find_classes

from hpcdat.cluster.stopping import StopRequest
from hpcdat.cluster.workers import Workers
from hpcdat.data.cifar import read_cifar
from hpcdat.environment import describe_environment
from hpcdat.errors import HpcdatError, InputError, Stopped
from hpcdat.files import write_text
from hpcdat.job import Data, Job

CLOCK_ROUNDS = 12
CLOCKS_APART = 1.0
"""Seconds that clocks may differ by."""
SECONDS_TO_SEE = 10.0
"""How long a file of another node's may take to appear."""
LEAST_DISK = 5 * 2**30
"""Bytes free for a run folder: five checkpoints of a ResNet-50 with its LAMB moments take 1.5 GB."""
LEAST_MEMORY = 2**30
"""Bytes a worker: torch, Horovod and DALI take most of it before there is a model."""
SHARED_MEMORY = "/dev/shm"  # noqa: S108
LEAST_SHARED_MEMORY = 2**27
"""Bytes of it a worker; all of a container has 64 MiB unless told otherwise."""

ALL_PAIRS = 16
"""Nodes up to which every pair is measured; with more, each node and its successor."""
TINY_MESSAGES = 9
SIZES = [2**k for k in range(16, 29)]
"""Bytes of a message, tried until they take long enough."""
LONG_ENOUGH, LATENCIES = 0.06, 4
"""Seconds, and times the latency, so that it is the bandwidth that takes them."""
PAIRS_SHOWN = 20

Level = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: a failure is what a run would fail by, or should.
        check: what was looked at.
        found: what there was.
        where: hosts; empty for all.
        advice: what to do; empty where nothing is wrong.
    """

    level: Level
    check: str
    found: str
    where: str = ""
    advice: str = ""


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


@dataclass(frozen=True)
class Pair:
    """The link between two nodes.

    Attributes:
        one, other: their hosts.
        latency: seconds that a message of one byte takes, half of its way there and back.
        bandwidth: bytes a second, mean of the way there and the way back.
    """

    one: str
    other: str
    latency: float
    bandwidth: float

    def __str__(self) -> str:
        return f"{self.one} - {self.other}"


@dataclass(frozen=True)
class Report:
    """All that was found.

    Attributes:
        title: workers, nodes, launcher, in words.
        nodes: in the order of ranks.
        clocks: seconds that each node's clock is ahead of the first one's, and how far that may be off.
        run_dir: None without a job.
        pairs: in the order they were measured.
        findings: in the order of the checks.
    """

    title: str
    nodes: list[Node]
    clocks: list[tuple[float, float]]
    run_dir: RunDir | None
    pairs: list[Pair]
    findings: list[Finding]

    @property
    def failed(self) -> bool:
        """Whether a check failed; warnings do not count."""
        return any(finding.level == "failure" for finding in self.findings)

    def in_words(self) -> str:
        """For people: a table of the findings, and one of the links."""
        rows = [[f.level, f.check, f.found, f.where, f.advice] for f in self.findings]
        widths = [None, None, 46, 20, 36]
        headers = ["", "Check", "Found", "Where", "What to do"]
        table = tabulate(rows, headers, tablefmt="simple", disable_numparse=True, maxcolwidths=widths)
        parts = [self.title, table]
        if self.pairs:
            parts.append(_pairs_table(self.pairs))
        counts = [sum(f.level == level for f in self.findings) for level in ("failure", "warning")]
        parts.append(f"failures: {counts[0]}, warnings: {counts[1]}")
        return "\n\n".join(parts)

    def write(self, path: Path) -> None:
        """Write facts, findings and links as JSON.

        Raises:
            InputError: the file cannot be written.
        """
        value = {
            "title": self.title,
            "facts": {
                "nodes": [asdict(node) for node in self.nodes],
                "clocks": [
                    {"host": node.host, "seconds_ahead": ahead, "error_bound": bound}
                    for node, (ahead, bound) in zip(self.nodes, self.clocks, strict=True)
                ],
                "run_dir": self.run_dir and asdict(self.run_dir),
            },
            "findings": [asdict(finding) for finding in self.findings],
            "links": [asdict(pair) for pair in self.pairs],
        }
        try:
            write_text(path, json.dumps(value, indent=2) + "\n")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def examine(job: Job | None, workers: Workers, stop: StopRequest) -> Report:
    """Look at all nodes and measure their links; all workers call this together.

    Args:
        job: resolved, or None to leave out what depends on it.
        workers: those of the run that is to be.
        stop: the user's wish to stop.

    Returns:
        The same on all workers.

    Raises:
        WorkerError: something could not be looked at on some worker, or a worker was lost.
        Stopped: a stop was asked for.
    """
    nodes = _look_at_nodes(job, workers)
    offsets = clock_offsets(_stamps(workers))
    clocks = [offsets[rank] for rank in _firsts(workers)]
    run_dir = _look_at_run_dir(job.run_dir, workers) if job else None
    device = _device(job, workers)
    taken = [gpu for node in nodes for gpu in node.takes]
    # Horovod wants a tensor on the same kind of device from all, NCCL each of them on its own.
    if None in taken or len(set(taken)) < workers.size:
        device = torch.device("cpu")
    pairs = _measure_pairs(workers, [node.host for node in nodes], device, stop)
    findings = [
        *check_horovod(nodes, workers.transport),
        *check_gpus(nodes, job.device if job else "auto"),
        *check_dali(nodes, job.data.loader if job else None),
        *check_versions(nodes),
        *check_clocks([node.host for node in nodes], clocks),
        *(check_images(nodes, job.data) if job else []),
        *(check_run_dir(run_dir, nodes[0].host) if run_dir else []),
        *check_room(nodes),
        *check_pairs(pairs, len(nodes)),
    ]
    title = f"{_count(workers.size, 'worker')} on {_count(len(nodes), 'node')}"
    if workers.launcher != "none":
        title += f", started by {workers.launcher}"
    return Report(title, nodes, clocks, run_dir, pairs, findings)


def _gpus() -> list[Any]:
    # An old driver has devices to count that torch cannot use.
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.cuda.get_device_properties(number) for number in range(count)]


def _device(job: Job | None, workers: Workers) -> torch.device:
    gpus = len(_gpus())
    if gpus and (job is None or job.device != "cpu"):
        return torch.device("cuda", workers.local_rank % gpus)
    return torch.device("cpu")


def _firsts(workers: Workers) -> list[int]:
    """The first worker of every node, which speaks for it."""
    return [workers.node_of.index(node) for node in range(len(set(workers.node_of)))]


def _look_at_nodes(job: Job | None, workers: Workers) -> list[Node]:
    device = _device(job, workers)
    environment = describe_environment(workers, device)

    def look() -> dict[str, Any]:
        gpus = _gpus()
        seen: dict[str, Any] = {
            "gpus": {str(gpu.uuid): gpu.name for gpu in gpus},
            "takes": str(gpus[device.index].uuid) if device.type == "cuda" else None,
            "cores": sorted(os.sched_getaffinity(0)),
        }
        if workers.rank in _firsts(workers):
            seen["node"] = _look_here(job, workers, environment)
        return seen

    every = workers.gather(workers.together("look at its node", look), "what was seen")
    nodes = []
    for number, first in enumerate(_firsts(workers)):
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


def _look_here(job: Job | None, workers: Workers, environment: dict[str, Any]) -> dict[str, Any]:
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


def _stamps(workers: Workers) -> list[list[float]]:
    """Every worker's clock at the start of a gathering, for one gathering after the other."""
    return [workers.gather(time.time(), "clocks") for _ in range(CLOCK_ROUNDS)]


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


def _look_at_run_dir(run_dir: Path, workers: Workers) -> RunDir:
    path = run_dir.absolute()
    # Counted in parents, since a node may have its own idea of the folder it is in.
    folders = [path, *path.parents]
    file, answer = None, {}
    if workers.is_first:
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
        answer = workers.gather(answer, "the run folder")[0]
        seen = bool(answer["error"]) or _appears(folders[min(answer["up"], len(folders) - 1)], answer["name"])
        every = workers.gather([workers.host, seen], "who sees the run folder")
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


def _measure_pairs(
    workers: Workers, hosts: Sequence[str], device: torch.device, stop: StopRequest
) -> list[Pair]:
    """One pair after the other, so that none disturbs another; the same on all workers."""
    firsts, places = _firsts(workers), pairs_of(len(hosts))

    def measure(one: int, other: int) -> Pair:
        if any(workers.gather(stop.wanted, "whether to stop")):
            raise Stopped("stopped before all links were measured", everywhere=True)

        here, there = firsts[one], firsts[other]

        def one_way(size: int) -> float:
            # One direction at a time: of two, each keeps the other's acknowledgements waiting.
            row = torch.ones(size, dtype=torch.uint8, device=device)
            workers.gather(None, "links: ready")
            began = time.perf_counter()
            workers.start_send(row, here, there, "links: there").wait()
            workers.start_send(row, there, here, "links: back").wait()
            return workers.gather(time.perf_counter() - began, "links: seconds")[here] / 2

        latency = median(one_way(1) for _ in range(TINY_MESSAGES))
        return Pair(hosts[one], hosts[other], latency, _bandwidth(one_way, latency))

    if workers.is_first and places:
        print(f"measuring {_count(len(places), 'link')}", file=sys.stderr, flush=True)
    pairs = [measure(*place) for place in places]
    # What else a node was busy with at that moment is no reason to accuse its link.
    for number, pair in enumerate(pairs):
        if pair in slow_pairs(pairs):
            pairs[number] = max(pair, measure(*places[number]), key=lambda pair: pair.bandwidth)
    return pairs


def _bandwidth(one_way: Callable[[int], float], latency: float) -> float:
    for size in SIZES:
        seconds = one_way(size)
        if seconds > max(LONG_ENOUGH, LATENCIES * latency):
            break
    return size / min(seconds, one_way(size), one_way(size))


def pairs_of(nodes: int) -> list[tuple[int, int]]:
    """The pairs that are measured: all, or each node and its successor where these are too many."""
    if nodes > ALL_PAIRS:
        return [(node, (node + 1) % nodes) for node in range(nodes)]
    return list(combinations(range(nodes), 2))


def check_horovod(nodes: Sequence[Node], transport: str) -> list[Finding]:
    """Horovod's build on all nodes, and what carries this run."""
    check, builds = "Horovod", _hosts_by(nodes, lambda node: _build_in_words(node.horovod))
    if len(builds) > 1:
        found = "; ".join(f"{build} on {_named(hosts)}" for build, hosts in builds.items())
        return [Finding("failure", check, found, "", "use one environment on all nodes")]
    if nodes[0].horovod is None:
        found = "cannot be imported, so a run has one worker"
        return [Finding("warning", check, found, "", "make setup builds it")]
    carried = "one worker, nothing to carry" if transport == "none" else f"{transport} carries this run"
    with_gpus = [node.host for node in nodes if any(node.takes)]
    if with_gpus and nodes[0].horovod["nccl"] and transport != "none":
        carried += ", NCCL what is between GPUs"
    findings = [Finding("ok", check, f"{next(iter(builds))}; {carried}")]
    if with_gpus and not nodes[0].horovod["nccl"]:
        found = f"built without NCCL: gradients on GPUs go through the CPU and {transport}"
        advice = "build Horovod with NCCL (make setup does)"
        findings.append(Finding("warning", check, found, _named(with_gpus), advice))
    return findings


def _build_in_words(build: dict[str, bool] | None) -> str:
    if build is None:
        return "not to be imported"
    names = {"mpi": "MPI", "gloo": "Gloo", "nccl": "NCCL"}
    return "built with " + (", ".join(names[key] for key, there in build.items() if there) or "nothing")


def check_gpus(nodes: Sequence[Node], device: Literal["auto", "cpu", "cuda"]) -> list[Finding]:
    """GPUs and the workers that share them; ``device`` is the job's."""
    check, findings = "GPUs", []
    kinds = _hosts_by(nodes, lambda node: _gpus_in_words(node.gpus))
    without = [node.host for node in nodes if not node.gpus]
    unused = [node.host for node in nodes if not node.gpus and node.driver]
    if unused and device != "cpu":
        found = "an NVIDIA driver, but no GPU that torch can use"
        advice = "ask Slurm for GPUs, or see whether the driver is new enough for torch's CUDA"
        findings.append(Finding("warning", check, found, _named(unused), advice))
    if device == "cuda" and without:
        advice = "take nodes with GPUs, or device: cpu"
        findings.append(Finding("failure", check, "none, but device: cuda", _named(without), advice))
    elif device == "auto" and 0 < len(without) < len(nodes):
        advice = "take nodes of one kind, or device: cpu"
        findings.append(Finding("failure", check, "none, but others have some", _named(without), advice))
    elif len(kinds) > 1:
        found = "; ".join(f"{kind} on {_named(hosts)}" for kind, hosts in kinds.items())
        findings.append(Finding("warning", check, found, "", "the slowest sets the pace of all"))
    else:
        found = f"{next(iter(kinds))}; {_count(max(len(node.takes) for node in nodes), 'worker')} a node"
        findings.append(Finding("ok", check, found))
    for node in nodes:
        taken = [gpu for gpu in node.takes if gpu is not None]
        if len(set(taken)) < len(taken):
            found = f"{len(taken)} workers share {_count(len(set(taken)), 'GPU')}, which NCCL may refuse"
            advice = "start as many workers a node as it has GPUs"
            findings.append(Finding("warning", check, found, node.host, advice))
    return findings


def _gpus_in_words(gpus: dict[str, str]) -> str:
    names = list(gpus.values())
    return " and ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none"


def check_dali(nodes: Sequence[Node], loader: Literal["dali", "torchvision"] | None) -> list[Finding]:
    """Whether DALI can be imported; ``loader`` is the job's."""
    findings = []
    if versions := _hosts_by([node for node in nodes if node.dali], lambda node: node.dali):
        found = "; ".join(versions)
        findings.append(Finding("ok", "DALI", found, "" if len(nodes) == 1 else _where(versions, nodes)))
    level: Level = {"dali": "failure", "torchvision": "ok", None: "warning"}[loader]
    missing = [node for node in nodes if node.dali is None]
    for error, hosts in _hosts_by(missing, lambda node: node.dali_error).items():
        advice = "" if level == "ok" else "install it, or choose data.loader: torchvision"
        findings.append(Finding(level, "DALI", f"cannot be imported: {error}", _named(hosts), advice))
    return findings


def _where(groups: dict[Hashable, list[str]], nodes: Sequence[Node]) -> str:
    hosts = [host for group in groups.values() for host in group]
    return "" if len(hosts) == len(nodes) else _named(hosts)


def check_versions(nodes: Sequence[Node]) -> list[Finding]:
    """Whether Python, packages and checkout are of the same version on all nodes."""
    findings = []
    for name in dict.fromkeys(name for node in nodes for name in node.versions):
        groups = _hosts_by(nodes, lambda node, name=name: node.versions.get(name, "none"))
        if len(groups) > 1:
            found = f"{name}: " + "; ".join(f"{v} on {_named(hosts)}" for v, hosts in groups.items())
            rarest = min(groups.values(), key=len)
            advice = "use one environment, and one state of the checkout, on all nodes"
            findings.append(Finding("failure", "versions", found, _named(rarest), advice))
    if not findings:
        some = ", ".join(f"{k} {v}" for k, v in nodes[0].versions.items() if k in ("python", "torch"))
        same = "the same on all nodes: " if len(nodes) > 1 else ""
        findings.append(Finding("ok", "versions", f"{same}{some}, {len(nodes[0].versions)} in all"))
    return findings


def check_clocks(hosts: Sequence[str], clocks: Sequence[tuple[float, float]]) -> list[Finding]:
    """Whether the nodes' clocks agree, as far as can be told."""
    if len(hosts) == 1:
        return []
    last, first = (pick(range(len(hosts)), key=lambda i: clocks[i][0]) for pick in (max, min))
    apart, bound = clocks[last][0] - clocks[first][0], clocks[last][1] + clocks[first][1]
    if apart <= bound:
        return [Finding("ok", "clocks", f"no difference beyond the {_milliseconds(bound)} that can be told")]
    found = f"{hosts[last]} is {_milliseconds(apart)} ahead of {hosts[first]} (± {_milliseconds(bound)})"
    if apart - bound > CLOCKS_APART:
        where = _named([hosts[first], hosts[last]])
        return [Finding("warning", "clocks", found, where, "see whether NTP or chrony runs there")]
    return [Finding("ok", "clocks", found)]


def check_images(nodes: Sequence[Node], data: Data) -> list[Finding]:
    """Whether the job's images are on all nodes, with the same classes."""
    check = "images"
    if data.source == "digits":
        return [Finding("ok", check, "digits, which a run writes where they are not there")]
    if data.root is None:
        found = "not looked at: data.root is left out, which means the user's cache"
        return [Finding("warning", check, found, "", "name data.root")]
    if data.download:
        return [Finding("ok", check, "not looked at: a run fetches them where they are not there")]
    wrong = _hosts_by([node for node in nodes if node.data_error], lambda node: node.data_error)
    findings = [
        Finding("failure", check, error, _named(hosts), "put them there, or mount their file system")
        for error, hosts in wrong.items()
    ]
    right = _hosts_by([node for node in nodes if node.classes], lambda node: node.classes)
    if len(right) > 1:
        found = "; ".join(f"{_count(n, 'class', 'es')} on {_named(hosts)}" for n, hosts in right.items())
        findings.append(Finding("failure", check, found, "", "use the same images on all nodes"))
    elif right:
        classes = next(iter(right))
        found = f"{_count(classes, 'class', 'es')} in {data.root}"
        findings.append(Finding("ok", check, found, _where(right, nodes)))
    return findings


def check_run_dir(run_dir: RunDir, first: str) -> list[Finding]:
    """Whether worker 0, on the host ``first``, can write the run folder, all see it, and there is room."""
    check = "run_dir"
    if run_dir.error:
        found = f"cannot be written: {run_dir.error}"
        return [Finding("failure", check, found, first, "choose another run_dir")]
    findings = []
    if run_dir.unseen:
        found = f"a file that {first} wrote in {run_dir.folder} does not appear"
        advice = "choose a run_dir on a file system that all nodes share"
        findings.append(Finding("failure", check, found, _named(run_dir.unseen), advice))
    else:
        findings.append(Finding("ok", check, f"written by {first}, seen by all: {run_dir.folder}"))
    found = f"{_gib(run_dir.free)} free for run_dir"
    if run_dir.free < LEAST_DISK:
        advice = f"make room for checkpoints: {_gib(LEAST_DISK)}"
        findings.append(Finding("warning", "disk", found, first, advice))
    else:
        findings.append(Finding("ok", "disk", found))
    return findings


def check_room(nodes: Sequence[Node]) -> list[Finding]:
    """Cores, memory and shared memory for the workers of each node."""
    findings = []
    for node in nodes:
        workers = len(node.takes)
        if node.cores < workers:
            found = f"{_count(node.cores, 'core')} for {_count(workers, 'worker')}"
            advice = "start fewer workers a node, or ask for more cores"
            findings.append(Finding("warning", "cores", found, node.host, advice))
        for check, room, least in (
            ("memory", node.memory, LEAST_MEMORY),
            (SHARED_MEMORY, node.shared_memory, LEAST_SHARED_MEMORY),
        ):
            if room < least * workers:
                found = f"{_gib(room)} for {_count(workers, 'worker')}"
                advice = f"start fewer workers a node, or see to {_gib(least)} for each"
                findings.append(Finding("warning", check, found, node.host, advice))
    if not findings:
        cores, memory, shared = (
            min(of(node) / len(node.takes) for node in nodes)
            for of in (lambda n: n.cores, lambda n: n.memory, lambda n: n.shared_memory)
        )
        least = f"cores {cores:.3g}, memory {_gib(memory)}, {SHARED_MEMORY} {_gib(shared)}"
        findings.append(Finding("ok", "room", f"of each worker, at least: {least}"))
    return findings


def best_of(pairs: Sequence[Pair]) -> dict[str, float]:
    """Bytes a second that each host reaches with its best peer."""
    best: dict[str, float] = {}
    for pair in pairs:
        for host in (pair.one, pair.other):
            best[host] = max(best.get(host, 0), pair.bandwidth)
    return best


def slow_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs slower than half of the usual, slowest first.

    The usual is the median over the nodes of what each reaches with its best peer. Not the median over
    the pairs: where one node of three has a slow link, so have two of the three pairs.
    """
    usual = median(best_of(pairs).values())
    return sorted((pair for pair in pairs if pair.bandwidth < usual / 2), key=lambda pair: pair.bandwidth)


def check_pairs(pairs: Sequence[Pair], nodes: int) -> list[Finding]:
    """The links, and those that are slower than half of the usual."""
    if not pairs:
        return []
    told = "each node with its successor" if nodes > ALL_PAIRS else _count(len(pairs), "link")
    slow = slow_pairs(pairs)
    if not slow:
        slowest = min(pairs, key=lambda pair: pair.bandwidth)
        return [Finding("ok", "links", f"{told}; slowest {slowest}, {_megabytes(slowest.bandwidth)} MB/s")]
    best = best_of(pairs)
    usual = median(best.values())
    found = f"{told}; slower than half of the usual {_megabytes(usual)} MB/s: "
    found += ", ".join(f"{pair} {_megabytes(pair.bandwidth)}" for pair in slow[:5])
    found += f" and {len(slow) - 5} more" if len(slow) > 5 else ""
    # Where all that goes through a node is slow, it is the node's own link.
    guilty = [host for host in best if best[host] < usual / 2]
    where = _named(guilty or list(dict.fromkeys(host for pair in slow for host in (pair.one, pair.other))))
    advice = "see to its card, its cable and the network chosen there, or leave the node out"
    return [Finding("warning", "links", found, where, advice)]


def _pairs_table(pairs: Sequence[Pair]) -> str:
    ordered = sorted(pairs, key=lambda pair: pair.bandwidth)
    rows = [
        [pair.one, pair.other, f"{1000 * pair.latency:.2f}", _megabytes(pair.bandwidth)]
        for pair in ordered[:PAIRS_SHOWN]
    ]
    headers = ["Link", "", "ms", "MB/s"]
    align = ("left", "left", "right", "right")
    table = tabulate(rows, headers, tablefmt="simple", disable_numparse=True, colalign=align)
    if len(pairs) > PAIRS_SHOWN:
        table += f"\nand {len(pairs) - PAIRS_SHOWN} faster ones, which --json writes too"
    return table + (
        "\n\nms: half of the way there and back of a byte (median), Horovod's agreement between all workers"
        "\nincluded. MB/s: there and back, one way and one pair at a time."
    )


def _hosts_by(nodes: Iterable[Node], key: Callable[[Node], Hashable]) -> dict[Any, list[str]]:
    """The hosts of the nodes of which something is the same."""
    groups: dict[Any, list[str]] = {}
    for node in nodes:
        groups.setdefault(key(node), []).append(node.host)
    return groups


def _complaint(error: Exception) -> str:
    """Without the number that Python puts before an error of the system's."""
    known = isinstance(error, OSError) and error.strerror
    return f"{error.filename}: {error.strerror}" if known else str(error)


def _named(hosts: Sequence[str]) -> str:
    return ", ".join(hosts[:5]) + (f" and {len(hosts) - 5} more" if len(hosts) > 5 else "")


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{'' if number == 1 else plural}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"


def _milliseconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def _megabytes(rate: float) -> str:
    return f"{rate / 1e6:.3g}" if rate < 1e9 else f"{rate / 1e6:.0f}"
