"""Checks: from the facts about nodes and links to findings. They need no workers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from statistics import median
from typing import Literal

from hpcdat.config.sections import Data
from hpcdat.distributed.device import INSTEAD_OF_SHARING, why_not_shared
from hpcdat.doctor.facts import SHARED_MEMORY, Node, RunDir
from hpcdat.doctor.findings import Finding, Level, count, hosts_by, megabytes
from hpcdat.doctor.links import MAX_NODES_FOR_ALL_PAIRS, Pair, best_of, slow_pairs
from hpcdat.doctor.storage import Storage
from hpcdat.errors import first_few

MAX_CLOCK_DIFFERENCE = 1.0
"""Seconds that two nodes' clocks may differ by without a warning."""
MIN_FREE_DISK = 5 * 2**30
"""Bytes to have free for a run folder: five checkpoints of a ResNet-50 with its LAMB moments take 1.5 GB."""
MIN_MEMORY = 2**30
"""Bytes per worker; torch, Horovod and DALI use most of it before the model is built."""
MIN_SHARED_MEMORY = 2**27
"""Bytes of shared memory per worker; a container has only 64 MiB in total by default."""

STORAGE_MARGIN = 1.5
"""Factor by which storage should be faster than a job needs: others use a parallel file system, too."""

MAX_BUSY_CORES = 0.5
"""Cores that other processes may use without a warning."""


def check_engine(nodes: Sequence[Node], engine: str, transport: str) -> list[Finding]:
    """Report the engine and the transport of this run; check that Horovod's build is the same on all nodes.

    Args:
        nodes: facts about them.
        engine, transport: of the workers.
    """
    if engine == "torch":
        gpus = ", NCCL between GPUs" if any(any(node.takes) for node in nodes) else ""
        return [Finding("ok", "engine", f"torch.distributed; transport {transport}{gpus}")]
    check, builds = "Horovod", hosts_by(nodes, lambda node: _describe_build(node.horovod))
    if len(builds) > 1:
        found = "; ".join(f"{build} on {first_few(hosts)}" for build, hosts in builds.items())
        return [Finding("failure", check, found, "", "use one environment on all nodes")]
    if nodes[0].horovod is None:
        return [Finding("ok", "engine", "torch.distributed; Horovod is not installed")]
    used = "no transport for one worker" if transport == "none" else f"transport {transport}"
    with_gpus = [node.host for node in nodes if any(node.takes)]
    if with_gpus and nodes[0].horovod["nccl"] and transport != "none":
        used += ", NCCL between GPUs"
    findings = [Finding("ok", check, f"{next(iter(builds))}; {used}")]
    if with_gpus and not nodes[0].horovod["nccl"]:
        found = f"built without NCCL: gradients on GPUs pass through the CPU and {transport}"
        advice = "build Horovod with NCCL, as make setup does"
        findings.append(Finding("warning", check, found, first_few(with_gpus), advice))
    return findings


def _describe_build(build: dict[str, bool] | None) -> str:
    if build is None:
        return "not importable"
    names = {"mpi": "MPI", "gloo": "Gloo", "nccl": "NCCL"}
    return "built with " + (", ".join(names[key] for key, built in build.items() if built) or "no transport")


def check_gpus(nodes: Sequence[Node], device: Literal["auto", "cpu", "cuda"], *, nccl: bool) -> list[Finding]:
    """Check the GPUs, and that no workers which NCCL connects share one.

    Args:
        nodes: facts about them.
        device: the job's.
        nccl: whether NCCL connects the workers in training.
    """
    check, findings = "GPUs", []
    kinds = hosts_by(nodes, lambda node: _describe_gpus(node.gpus))
    without = [node.host for node in nodes if not node.gpus]
    unused = [node.host for node in nodes if not node.gpus and node.driver]
    if unused and device != "cpu":
        found = "an NVIDIA driver, but no GPU that torch can use"
        found += "".join(
            dict.fromkeys(f": {node.no_gpu}" for node in nodes if node.host in unused and node.no_gpu)
        )
        advice = "request GPUs from Slurm, or check that the driver is new enough for torch's CUDA"
        findings.append(Finding("warning", check, found, first_few(unused), advice))
    if device == "cuda" and without:
        advice = "use nodes with GPUs, or device: cpu"
        findings.append(Finding("failure", check, "none, but device: cuda", first_few(without), advice))
    elif device == "auto" and 0 < len(without) < len(nodes):
        advice = "use nodes of one kind, or device: cpu"
        findings.append(Finding("failure", check, "none, but others have GPUs", first_few(without), advice))
    elif len(kinds) > 1:
        found = "; ".join(f"{kind} on {first_few(hosts)}" for kind, hosts in kinds.items())
        findings.append(Finding("warning", check, found, "", "the slowest GPU limits all"))
    else:
        found = f"{next(iter(kinds))}; {count(max(len(node.takes) for node in nodes), 'worker')} per node"
        findings.append(Finding("ok", check, found))
    for node in nodes:
        # As training does, which refuses it.
        if nccl and (shared := why_not_shared([gpu for gpu in node.takes if gpu is not None])):
            findings.append(Finding("failure", check, shared, node.host, INSTEAD_OF_SHARING))
    return findings


def _describe_gpus(gpus: dict[str, str]) -> str:
    names = list(gpus.values())
    return " and ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none"


def check_dali(
    nodes: Sequence[Node], loader: Literal["dali", "torchvision", "device"] | None
) -> list[Finding]:
    """Check that DALI can be imported.

    Args:
        nodes: facts about them.
        loader: the job's; None without a job.
    """
    findings = []
    if versions := hosts_by([node for node in nodes if node.dali], lambda node: node.dali):
        found = "; ".join(versions)
        findings.append(Finding("ok", "DALI", found, "" if len(nodes) == 1 else _where(versions, nodes)))
    levels: dict[str | None, Level] = {"dali": "failure", None: "warning"}
    level = levels.get(loader, "ok")
    missing = [node for node in nodes if node.dali is None]
    for error, hosts in hosts_by(missing, lambda node: node.dali_error).items():
        advice = "" if level == "ok" else "install it, or choose data.loader: torchvision"
        findings.append(Finding(level, "DALI", f"cannot be imported: {error}", first_few(hosts), advice))
    return findings


def check_versions(nodes: Sequence[Node]) -> list[Finding]:
    """Check that Python, packages and checkout have the same version on all nodes."""
    findings = []

    def version_of(name: str) -> Callable[[Node], str]:
        return lambda node: node.versions.get(name, "none")

    for name in dict.fromkeys(name for node in nodes for name in node.versions):
        groups = hosts_by(nodes, version_of(name))
        if len(groups) > 1:
            found = f"{name}: " + "; ".join(f"{v} on {first_few(hosts)}" for v, hosts in groups.items())
            minority = min(groups.values(), key=len)
            advice = "use the same environment and the same checkout on all nodes"
            findings.append(Finding("failure", "versions", found, first_few(minority), advice))
    if not findings:
        some = ", ".join(f"{k} {v}" for k, v in nodes[0].versions.items() if k in ("python", "torch"))
        same = "the same on all nodes: " if len(nodes) > 1 else ""
        findings.append(Finding("ok", "versions", f"{same}{some}, {len(nodes[0].versions)} in total"))
    return findings


def check_clocks(hosts: Sequence[str], clocks: Sequence[tuple[float, float]]) -> list[Finding]:
    """Check that the nodes' clocks agree.

    Args:
        hosts: of the nodes.
        clocks: seconds that each clock is ahead of the first one, and the error bound.
    """
    if len(hosts) == 1:
        return []
    last, first = (pick(range(len(hosts)), key=lambda i: clocks[i][0]) for pick in (max, min))
    difference, bound = clocks[last][0] - clocks[first][0], clocks[last][1] + clocks[first][1]
    if difference <= bound:
        return [Finding("ok", "clocks", f"no difference beyond the measurement error of {_duration(bound)}")]
    found = f"{hosts[last]} is {_duration(difference)} ahead of {hosts[first]} (± {_duration(bound)})"
    if difference - bound > MAX_CLOCK_DIFFERENCE:
        where = first_few([hosts[first], hosts[last]])
        return [Finding("warning", "clocks", found, where, "check that NTP or chrony runs there")]
    return [Finding("ok", "clocks", found)]


def check_images(nodes: Sequence[Node], data: Data) -> list[Finding]:
    """Check that the job's images are on all nodes, with the same classes."""
    check = "images"
    if data.source == "digits":
        return [Finding("ok", check, "digits; a run writes them if they are missing")]
    if data.root is None and not data.is_user_code:
        found = "not checked: data.root is not set, so the user's cache is used"
        return [Finding("warning", check, found, "", "set data.root")]
    if data.download:
        return [Finding("ok", check, "not checked: a run downloads them if they are missing")]
    wrong = hosts_by([node for node in nodes if node.data_error], lambda node: node.data_error)
    findings = [
        Finding("failure", check, error, first_few(hosts), "copy them there, or mount their file system")
        for error, hosts in wrong.items()
    ]
    right = hosts_by([node for node in nodes if node.classes], lambda node: node.classes)
    if len(right) > 1:
        found = "; ".join(f"{count(n, 'class', 'es')} on {first_few(hosts)}" for n, hosts in right.items())
        findings.append(Finding("failure", check, found, "", "use the same images on all nodes"))
    elif right:
        classes = next(iter(right))
        found = f"{count(classes, 'class', 'es')} in {data.root or data.source}"
        findings.append(Finding("ok", check, found, _where(right, nodes)))
    elif not wrong and data.source == "shards":
        found = f"not checked: a run first indexes the tar files in {data.root}"
        findings.append(Finding("ok", check, found))
    return findings


def check_storage(storage: Sequence[Storage]) -> list[Finding]:
    """Compare how fast each node reads images with how fast the job needs them."""
    findings = []
    for node in storage:
        read = f"reads {node.images:.0f} images/s ({megabytes(node.bytes)} MB/s) while all nodes read"
        if node.needed is None:
            findings.append(
                Finding("ok", "storage", f"{read}; this machine is too busy to time a step", node.host)
            )
            continue
        found = f"{read}; the job needs {node.needed:.0f}"
        enough = node.images >= STORAGE_MARGIN * node.needed
        advice = "" if enough else "pack the images into shards, or copy them to local disks before training"
        findings.append(Finding("ok" if enough else "warning", "storage", found, node.host, advice))
    return findings


def check_run_dir(run_dir: RunDir, first: str) -> list[Finding]:
    """Check that worker 0 can write the run folder, that all nodes see it, and that there is enough space.

    Args:
        run_dir: facts about it.
        first: worker 0's host.
    """
    check = "run_dir"
    if run_dir.error:
        found = f"cannot be written: {run_dir.error}"
        return [Finding("failure", check, found, first, "choose another run_dir")]
    findings = []
    if run_dir.unseen:
        found = f"a file that {first} wrote in {run_dir.folder} does not appear"
        advice = "choose a run_dir on a file system that all nodes share"
        findings.append(Finding("failure", check, found, first_few(run_dir.unseen), advice))
    else:
        findings.append(Finding("ok", check, f"writable by {first}, visible on all nodes: {run_dir.folder}"))
    found = f"{_gib(run_dir.free)} free for run_dir"
    if run_dir.free < MIN_FREE_DISK:
        advice = f"free space for checkpoints: {_gib(MIN_FREE_DISK)}"
        findings.append(Finding("warning", "disk", found, first, advice))
    else:
        findings.append(Finding("ok", "disk", found))
    return findings


def check_resources(nodes: Sequence[Node], shared_memory: int = MIN_SHARED_MEMORY) -> list[Finding]:
    """Check cores, memory, shared memory and temporary files for the workers of each node.

    Args:
        nodes: facts about them.
        shared_memory: bytes that each worker needs in /dev/shm.
    """
    findings = []
    for node in nodes:
        workers = len(node.takes)
        if node.cores < workers:
            found = f"{count(node.cores, 'core')} for {count(workers, 'worker')}"
            advice = "start fewer workers per node, or request more cores"
            findings.append(Finding("warning", "cores", found, node.host, advice))
        if node.busy > MAX_BUSY_CORES:
            found = f"other processes use {node.busy:.1f} of {count(node.cores, 'core')}"
            advice = "set OMP_NUM_THREADS to the number of free cores, or use a node of your own"
            findings.append(Finding("warning", "cores", found, node.host, advice))
        if node.temporary_error:
            advice = "set TMPDIR to a folder that can be written"
            findings.append(Finding("failure", "temporary files", node.temporary_error, node.host, advice))
        for check, available, minimum in (
            ("memory", node.memory, MIN_MEMORY),
            (SHARED_MEMORY, node.shared_memory, max(shared_memory, MIN_SHARED_MEMORY)),
        ):
            if available < minimum * workers:
                found = f"{_gib(available)} for {count(workers, 'worker')}"
                advice = f"start fewer workers per node, or provide {_gib(minimum)} for each"
                if check == SHARED_MEMORY:
                    advice += "; start a container with a larger --shm-size, or with --ipc=host"
                findings.append(Finding("warning", check, found, node.host, advice))
    if not findings:
        cores = min(node.cores / len(node.takes) for node in nodes)
        memory = min(node.memory / len(node.takes) for node in nodes)
        shared = min(node.shared_memory / len(node.takes) for node in nodes)
        shares = f"cores {cores:.3g}, memory {_gib(memory)}, {SHARED_MEMORY} {_gib(shared)}"
        findings.append(Finding("ok", "resources", f"per worker, at least: {shares}"))
    return findings


def check_energy(nodes: Sequence[Node]) -> list[Finding]:
    """Report which energy a run can measure; without any, it trains as well."""
    kinds = hosts_by(nodes, lambda node: node.no_energy)
    return [
        Finding(
            "ok",
            "energy",
            f"not measured: {missing}" if missing else "measured: GPUs and processors, as far as there are",
            "" if len(kinds) == 1 else first_few(hosts),
        )
        for missing, hosts in kinds.items()
    ]


def check_pairs(pairs: Sequence[Pair], nodes: int) -> list[Finding]:
    """Check the links; report those slower than half of the typical bandwidth."""
    if not pairs:
        return []
    successors = nodes > MAX_NODES_FOR_ALL_PAIRS
    measured = "each node with its successor" if successors else count(len(pairs), "link")
    slow = slow_pairs(pairs)
    if not slow:
        slowest = min(pairs, key=lambda pair: pair.bandwidth)
        return [Finding("ok", "links", f"{measured}; slowest {slowest}, {megabytes(slowest.bandwidth)} MB/s")]
    best = best_of(pairs)
    typical = median(best.values())
    found = f"{measured}; slower than half of the typical {megabytes(typical)} MB/s: "
    found += first_few([f"{pair} {megabytes(pair.bandwidth)}" for pair in slow])
    # If all links of a node are slow, the cause is the node's own link.
    slow_hosts = [host for host in best if best[host] < typical / 2]
    where = first_few(
        slow_hosts or list(dict.fromkeys(host for pair in slow for host in (pair.one, pair.other)))
    )
    advice = "check its network card, cable and selected interface, or exclude the node"
    return [Finding("warning", "links", found, where, advice)]


def _where(groups: dict[Hashable, list[str]], nodes: Sequence[Node]) -> str:
    hosts = [host for group in groups.values() for host in group]
    return "" if len(hosts) == len(nodes) else first_few(hosts)


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
