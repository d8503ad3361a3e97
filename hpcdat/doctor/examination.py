"""Run all checks on all workers, and report the findings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tabulate import tabulate

from hpcdat.config.job import Job
from hpcdat.data.reading_processes import shared_bytes
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.doctor.checks import (
    check_clocks,
    check_dali,
    check_energy,
    check_engine,
    check_gpus,
    check_images,
    check_pairs,
    check_resources,
    check_run_dir,
    check_storage,
    check_versions,
)
from hpcdat.doctor.fabric import Counters, Fabric, Traffic, gather_fabrics, gather_traffic
from hpcdat.doctor.fabric_checks import (
    check_cards,
    check_errors,
    check_gpu_distances,
    check_interfaces,
    check_locked_memory,
    describe_traffic,
)
from hpcdat.doctor.facts import (
    Node,
    RunDir,
    clock_offsets,
    clock_stamps,
    device_of,
    first_ranks,
    inspect_nodes,
    probe_run_dir,
)
from hpcdat.doctor.findings import Finding, count, megabytes
from hpcdat.doctor.library_logs import LibraryLogs
from hpcdat.doctor.library_output import Transport
from hpcdat.doctor.links import Pair, measure_pairs
from hpcdat.doctor.network_settings import check_settings
from hpcdat.doctor.storage import Storage, measure_storage
from hpcdat.doctor.transports import check_transports, connect, gather_transports
from hpcdat.errors import InputError
from hpcdat.storage.atomic_files import write_text

PAIRS_SHOWN = 20
"""Links in the printed table, slowest first."""
CARDS_SHOWN = 40
"""Network cards in the printed table."""


@dataclass(frozen=True)
class Report:
    """Facts, links and findings.

    Attributes:
        title: numbers of workers and nodes, and the launcher.
        nodes: in the order of ranks.
        clocks: seconds that each node's clock is ahead of the first one's, and the error bound.
        run_dir: None without a job.
        fabrics: networks of the nodes.
        pairs: in the order they were measured.
        traffic: what crossed the networks of each node meanwhile.
        transports: that the libraries took meanwhile.
        storage: how fast each node reads images; empty without a job that reads files.
        findings: in the order of the checks.
    """

    title: str
    nodes: list[Node]
    clocks: list[tuple[float, float]]
    run_dir: RunDir | None
    fabrics: list[Fabric]
    pairs: list[Pair]
    traffic: list[Traffic]
    transports: list[Transport]
    storage: list[Storage]
    findings: list[Finding]

    @property
    def failed(self) -> bool:
        """Whether a check failed; warnings do not count."""
        return any(finding.level == "failure" for finding in self.findings)

    def describe(self) -> str:
        """A table of the findings and one of the links, as text."""
        rows = [[f.level, f.check, f.found, f.where, f.advice] for f in self.findings]
        widths = [None, None, 46, 20, 36]
        headers = ["", "Check", "Found", "Where", "What to do"]
        table = tabulate(rows, headers, tablefmt="simple", disable_numparse=True, maxcolwidths=widths)
        parts = [self.title, table]
        if self.pairs:
            parts.append(_pairs_table(self.pairs))
            if rows := describe_traffic(self.traffic):
                parts.append(_traffic_table(rows))
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
                "networks": [asdict(fabric) for fabric in self.fabrics],
            },
            "findings": [asdict(finding) for finding in self.findings],
            "links": [asdict(pair) for pair in self.pairs],
            "traffic": [asdict(node) for node in self.traffic],
            "transports": [asdict(transport) for transport in self.transports],
            "storage": [asdict(node) for node in self.storage],
        }
        try:
            write_text(path, json.dumps(value, indent=2) + "\n")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def _shared_memory(job: Job | None) -> int:
    """Bytes that a worker's images take in /dev/shm; 0 if they are not there."""
    if job is None or job.data.loader != "torchvision":
        return 0
    batch = max(job.batch_size, job.evaluation.batch_size)
    image = job.data.image_size**2 * job.data.channels
    return shared_bytes(batch * image, job.data.threads)


def _pairs_table(pairs: Sequence[Pair]) -> str:
    ordered = sorted(pairs, key=lambda pair: pair.bandwidth)
    rows = [
        [pair.one, pair.other, f"{1000 * pair.latency:.2f}", megabytes(pair.bandwidth)]
        for pair in ordered[:PAIRS_SHOWN]
    ]
    headers = ["Link", "", "ms", "MB/s"]
    align = ("left", "left", "right", "right")
    table = tabulate(rows, headers, tablefmt="simple", disable_numparse=True, colalign=align)
    if len(pairs) > PAIRS_SHOWN:
        table += f"\nand {len(pairs) - PAIRS_SHOWN} faster links, not shown"
    return table + (
        "\n\nms: half the round-trip time of one byte (median), including the negotiation between all workers"
        "\n(Horovod). MB/s: mean of both directions, measured one direction and one pair at a time."
    )


def _traffic_table(rows: list[list[str]]) -> str:
    headers = ["Node", "Card", "Kind", "MB sent"]
    align = ("left", "left", "left", "right")
    table = tabulate(rows[:CARDS_SHOWN], headers, tablefmt="simple", disable_numparse=True, colalign=align)
    if len(rows) > CARDS_SHOWN:
        table += f"\nand {len(rows) - CARDS_SHOWN} other cards, not shown"
    return table + "\n\nMB sent: by each card while the links were measured, with what others sent over it."


def examine(job: Job | None, workers: Communicator, stop: StopRequest, logs: LibraryLogs) -> Report:
    """Inspect all nodes and measure their links; all workers call this together.

    Args:
        job: resolved, or None to skip the checks that need one.
        workers: started like those of the run.
        stop: stop request.
        logs: what the libraries of this worker write.

    Returns:
        The report, the same on all workers.

    Raises:
        WorkerError: a worker could not inspect its node, or was lost.
        Stopped: a stop was requested.
    """
    nodes, firsts = inspect_nodes(job, workers), first_ranks(workers)
    offsets = clock_offsets(clock_stamps(workers))
    clocks = [offsets[rank] for rank in firsts]
    run_dir = probe_run_dir(job.run_dir, workers) if job else None
    device = device_of(job, workers)
    taken = [gpu for node in nodes for gpu in node.takes]
    # The engine needs tensors on the same kind of device on all workers; NCCL needs a GPU per worker.
    if None in taken or len(set(taken)) < workers.size:
        device = torch.device("cpu")
    fabrics, counters = gather_fabrics(workers), Counters()
    if workers.size > 1:
        connect(workers, device)
    pairs = measure_pairs(workers, [node.host for node in nodes], firsts, device, stop)
    traffic, transports = gather_traffic(counters, workers), gather_transports(logs, workers)
    storage = measure_storage(job, workers, stop) if job else []
    findings = [
        *check_engine(nodes, workers.engine, workers.transport),
        *check_gpus(nodes, job.device if job else "auto", nccl=workers.nccl),
        *check_dali(nodes, job.data.loader if job else None),
        *check_versions(nodes),
        *check_clocks([node.host for node in nodes], clocks),
        *(check_images(nodes, job.data) if job else []),
        *check_storage(storage),
        *(check_run_dir(run_dir, nodes[0].host) if run_dir else []),
        *check_resources(nodes, _shared_memory(job)),
        *check_energy(nodes),
        *check_pairs(pairs, len(nodes)),
        *check_cards(fabrics),
        *check_interfaces(fabrics),
        *check_locked_memory(fabrics),
        *check_gpu_distances(fabrics),
        *check_settings(fabrics),
        *check_transports(transports, fabrics, device),
        *check_errors(traffic),
    ]
    title = f"{count(workers.size, 'worker')} on {count(len(nodes), 'node')}"
    if workers.launcher != "none":
        title += f", started by {workers.launcher}"
    return Report(title, nodes, clocks, run_dir, fabrics, pairs, traffic, transports, storage, findings)
