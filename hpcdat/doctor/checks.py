"""From facts to findings, without workers: what is right, what a run may suffer from or fail by."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from hpcdat.config.sections import Data
from hpcdat.doctor.facts import SHARED_MEMORY, Node, RunDir
from hpcdat.doctor.links import ALL_PAIRS, Pair, best_of, slow_pairs

CLOCKS_APART = 1.0
"""Seconds that clocks may differ by."""
LEAST_DISK = 5 * 2**30
"""Bytes free for a run folder: five checkpoints of a ResNet-50 with its LAMB moments take 1.5 GB."""
LEAST_MEMORY = 2**30
"""Bytes a worker: torch, Horovod and DALI take most of it before there is a model."""
LEAST_SHARED_MEMORY = 2**27
"""Bytes of shared memory a worker; all of a container has 64 MiB unless told otherwise."""

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
        found = f"{next(iter(kinds))}; {count(max(len(node.takes) for node in nodes), 'worker')} a node"
        findings.append(Finding("ok", check, found))
    for node in nodes:
        taken = [gpu for gpu in node.takes if gpu is not None]
        if len(set(taken)) < len(taken):
            found = f"{len(taken)} workers share {count(len(set(taken)), 'GPU')}, which NCCL may refuse"
            advice = "start as many workers a node as it has GPUs"
            findings.append(Finding("warning", check, found, node.host, advice))
    return findings


def _gpus_in_words(gpus: dict[str, str]) -> str:
    names = list(gpus.values())
    return " and ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none"


def check_dali(
    nodes: Sequence[Node], loader: Literal["dali", "torchvision", "device"] | None
) -> list[Finding]:
    """Whether DALI can be imported; ``loader`` is the job's."""
    findings = []
    if versions := _hosts_by([node for node in nodes if node.dali], lambda node: node.dali):
        found = "; ".join(versions)
        findings.append(Finding("ok", "DALI", found, "" if len(nodes) == 1 else _where(versions, nodes)))
    levels: dict[str | None, Level] = {"dali": "failure", None: "warning"}
    level = levels.get(loader, "ok")
    missing = [node for node in nodes if node.dali is None]
    for error, hosts in _hosts_by(missing, lambda node: node.dali_error).items():
        advice = "" if level == "ok" else "install it, or choose data.loader: torchvision"
        findings.append(Finding(level, "DALI", f"cannot be imported: {error}", _named(hosts), advice))
    return findings


def check_versions(nodes: Sequence[Node]) -> list[Finding]:
    """Whether Python, packages and checkout are of the same version on all nodes."""
    findings = []

    def version_of(name: str) -> Callable[[Node], str]:
        return lambda node: node.versions.get(name, "none")

    for name in dict.fromkeys(name for node in nodes for name in node.versions):
        groups = _hosts_by(nodes, version_of(name))
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
        found = "; ".join(f"{count(n, 'class', 'es')} on {_named(hosts)}" for n, hosts in right.items())
        findings.append(Finding("failure", check, found, "", "use the same images on all nodes"))
    elif right:
        classes = next(iter(right))
        found = f"{count(classes, 'class', 'es')} in {data.root}"
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
            found = f"{count(node.cores, 'core')} for {count(workers, 'worker')}"
            advice = "start fewer workers a node, or ask for more cores"
            findings.append(Finding("warning", "cores", found, node.host, advice))
        for check, room, least in (
            ("memory", node.memory, LEAST_MEMORY),
            (SHARED_MEMORY, node.shared_memory, LEAST_SHARED_MEMORY),
        ):
            if room < least * workers:
                found = f"{_gib(room)} for {count(workers, 'worker')}"
                advice = f"start fewer workers a node, or see to {_gib(least)} for each"
                findings.append(Finding("warning", check, found, node.host, advice))
    if not findings:
        cores = min(node.cores / len(node.takes) for node in nodes)
        memory = min(node.memory / len(node.takes) for node in nodes)
        shared = min(node.shared_memory / len(node.takes) for node in nodes)
        shares = f"cores {cores:.3g}, memory {_gib(memory)}, {SHARED_MEMORY} {_gib(shared)}"
        findings.append(Finding("ok", "room", f"of each worker, at least: {shares}"))
    return findings


def check_pairs(pairs: Sequence[Pair], nodes: int) -> list[Finding]:
    """The links, and those that are slower than half of the usual."""
    if not pairs:
        return []
    told = "each node with its successor" if nodes > ALL_PAIRS else count(len(pairs), "link")
    slow = slow_pairs(pairs)
    if not slow:
        slowest = min(pairs, key=lambda pair: pair.bandwidth)
        return [Finding("ok", "links", f"{told}; slowest {slowest}, {megabytes(slowest.bandwidth)} MB/s")]
    best = best_of(pairs)
    usual = median(best.values())
    found = f"{told}; slower than half of the usual {megabytes(usual)} MB/s: "
    found += ", ".join(f"{pair} {megabytes(pair.bandwidth)}" for pair in slow[:5])
    found += f" and {len(slow) - 5} more" if len(slow) > 5 else ""
    # Where all that goes through a node is slow, it is the node's own link.
    guilty = [host for host in best if best[host] < usual / 2]
    where = _named(guilty or list(dict.fromkeys(host for pair in slow for host in (pair.one, pair.other))))
    advice = "see to its card, its cable and the network chosen there, or leave the node out"
    return [Finding("warning", "links", found, where, advice)]


def _hosts_by(nodes: Iterable[Node], key: Callable[[Node], Hashable]) -> dict[Any, list[str]]:
    """The hosts of the nodes of which something is the same."""
    groups: dict[Any, list[str]] = {}
    for node in nodes:
        groups.setdefault(key(node), []).append(node.host)
    return groups


def _where(groups: dict[Hashable, list[str]], nodes: Sequence[Node]) -> str:
    hosts = [host for group in groups.values() for host in group]
    return "" if len(hosts) == len(nodes) else _named(hosts)


def _named(hosts: Sequence[str]) -> str:
    return ", ".join(hosts[:5]) + (f" and {len(hosts) - 5} more" if len(hosts) > 5 else "")


def count(number: int, what: str, plural: str = "s") -> str:
    """A number of things, in words."""
    return f"{number} {what}{'' if number == 1 else plural}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"


def _milliseconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def megabytes(rate: float) -> str:
    """Of a rate in bytes a second, MB/s."""
    return f"{rate / 1e6:.3g}" if rate < 1e9 else f"{rate / 1e6:.0f}"
