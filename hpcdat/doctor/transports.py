"""Which transports the libraries of all workers have really taken."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hpcdat.distributed.communicator import Communicator
from hpcdat.doctor.fabric import Fabric
from hpcdat.doctor.findings import Finding
from hpcdat.doctor.library_logs import LibraryLogs
from hpcdat.doctor.library_output import Transport, merge
from hpcdat.errors import first_few

CHECK = "transport"
"""Name of the check."""
SHOWN = 4
"""Transports of a library in a finding; all are in the JSON file."""
ADVICE = {
    "NCCL": "see why in the output with NCCL_DEBUG=INFO: often NCCL_IB_DISABLE or NCCL_IB_HCA, or a "
    "container without /dev/infiniband or libibverbs; EFA and Slingshot need the plugin aws-ofi-nccl",
    "UCX": "check UCX_TLS and UCX_NET_DEVICES; ucx_info -d lists what UCX can use",
    "Open MPI": "with OMPI_MCA_pml=ucx (for Omni-Path, EFA and Slingshot cm) Open MPI says why it cannot use "
    "them; use one that is built for the cards, such as the site's",
    "Gloo": "Gloo has sockets only: use Horovod over MPI with UCX, or GPUs with NCCL",
}


def gather_transports(logs: LibraryLogs, workers: Communicator) -> list[Transport]:
    """The transports of all workers, one entry for a library on a node; all workers call this together.

    Returns:
        The same on all workers. Worker 0 has Open MPI's table of all nodes.
    """
    here = [
        ["" if one.library == "Open MPI" else workers.host, one.library, one.inside, one.between]
        for one in logs.read()
    ]
    every = workers.all_gather_object(here, "transports")
    found = [Transport(*one) for of_worker in every for one in of_worker]
    if workers.transport == "Gloo":
        # Gloo has no other transport, and no debug output that names it.
        inside = ["tcp"] if workers.size > workers.nodes else []
        found.append(Transport("", "Gloo", inside, ["tcp"] if workers.nodes > 1 else []))
    return merge(found)


def connect(workers: Communicator, device: torch.device) -> None:
    """Sum a number over the workers, so that all that is used for it is connected; all call this together."""
    workers.all_reduce([torch.zeros(1, device=device)], "connect")


def check_transports(
    transports: Sequence[Transport], fabrics: Sequence[Fabric], device: torch.device
) -> list[Finding]:
    """Report the transports taken; warn of sockets, and of detours, where the nodes could do better.

    Args:
        transports: of all workers.
        fabrics: the networks of the nodes.
        device: of the tensors that were sent: on GPUs MPI and Gloo carry short messages only.
    """
    findings = []
    for library, ways in dict.fromkeys((one.library, _ways(one)) for one in transports):
        those = [one for one in transports if (one.library, _ways(one)) == (library, ways)]
        hosts = [one.host for one in those if one.host]
        there = [fabric for fabric in fabrics if not hosts or fabric.host in hosts]
        where = "" if len(there) == len(fabrics) else first_few(hosts)
        active = list(dict.fromkeys(port.name for fabric in there for port in fabric.active))
        direct = any(fabric.shares_gpu_memory and fabric.distances for fabric in there)
        found, carries = f"{library}: {ways}", library == "NCCL" or device.type == "cpu"
        if those[0].sockets and active and carries:
            found += f"; sockets, although {first_few(active)} can be used"
            findings.append(Finding("warning", CHECK, found, where, ADVICE[library]))
        elif library == "NCCL" and direct and _staged(those[0].between):
            found += "; without GPUDirect RDMA, which the nodes have"
            advice = "check NCCL_NET_GDR_LEVEL, and whether each GPU has a card near it"
            findings.append(Finding("warning", CHECK, found, where, advice))
        else:
            findings.append(Finding("ok", CHECK, found, where))
    return findings


def _ways(transport: Transport) -> str:
    """The ways as text: ``tcp between nodes, sm inside a node``."""
    places = ((transport.between, "between nodes"), (transport.inside, "inside a node"))
    return ", ".join(f"{first_few(ways, SHOWN)} {where}" for ways, where in places if ways)


def _staged(between: Sequence[str]) -> bool:
    """Whether NCCL sends over verbs, and always through the memory of the node."""
    verbs = [way for way in between if way.startswith("NET/IB")]
    return bool(verbs) and not any("GDRDMA" in way for way in verbs)
