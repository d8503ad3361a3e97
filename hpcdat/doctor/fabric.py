"""Facts about the networks of the nodes, and what crossed them while the links were measured."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdat.distributed.communicator import Communicator
from hpcdat.doctor.facts import first_ranks
from hpcdat.hardware.fabric import (
    Interface,
    Port,
    read_distances,
    read_errors,
    read_interfaces,
    read_ports,
)
from hpcdat.hardware.network_cards import Card, Kind, network_cards, sent_between

SETTINGS = re.compile(
    r"(?!NCCL_DEBUG|NCCL_HOSTID|UCX_LOG_)(NCCL_|UCX_|OMPI_MCA_(pml|btl|mtl)(_|$))"
    r"|(GLOO_SOCKET_IFNAME|HOROVOD_GLOO_IFACE)$"
)
"""Environment variables that choose networks; not those that name a node, or that doctor itself sets."""
PEER_MEMORY = ("module/nvidia_peermem", "module/nv_peer_mem", "kernel/mm/memory_peers/nv_mem")
"""What is in sysfs if cards can read the memory of NVIDIA GPUs."""
OPEN_DRIVER = "Open Kernel Module"
"""How /proc/driver/nvidia/version names the driver that shares GPU memory by DMA-BUF."""


@dataclass(frozen=True, kw_only=True)
class Fabric:
    """The networks of a node.

    Attributes:
        host: the node.
        ports: of its RDMA and Slingshot cards.
        interfaces: of its network.
        distances: how near each card is to each GPU, see :func:`read_distances`.
        locked_memory: bytes of memory that a process may lock, and RDMA must; None for unlimited.
        shares_gpu_memory: whether RDMA cards can read the memory of GPUs.
        settings: environment variables that choose networks.
    """

    host: str
    ports: list[Port]
    interfaces: list[Interface]
    distances: dict[str, dict[str, str]]
    locked_memory: int | None
    shares_gpu_memory: bool
    settings: dict[str, str]

    @property
    def active(self) -> list[Port]:
        """The ports that can be used."""
        return [port for port in self.ports if port.active]


@dataclass(frozen=True)
class Sent:
    """What a card sent while the links were measured.

    Attributes:
        card, kind: as in :class:`Card`.
        count: bytes; None if not counted.
    """

    card: str
    kind: Kind
    count: int | None


@dataclass(frozen=True)
class Traffic:
    """What crossed the networks of a node while the links were measured.

    Attributes:
        host: the node.
        sent: by each card.
        errors: counters of errors that have risen, and by how much.
    """

    host: str
    sent: list[Sent]
    errors: dict[str, int]


class Counters:
    """The counters of this node's cards at one moment.

    Args:
        sys: where sysfs is mounted.
    """

    def __init__(self, sys: Path = Path("/sys")) -> None:
        self._sys = sys
        self._cards: list[Card] = network_cards(sys)
        self._errors = read_errors(sys)

    def traffic(self, host: str) -> Traffic:
        """What has been sent, and which errors have been counted, since then."""
        cards = network_cards(self._sys)
        sent = sent_between(self._cards, cards)
        risen = {
            name: count - self._errors[name]
            for name, count in read_errors(self._sys).items()
            if count > self._errors.get(name, count)
        }
        return Traffic(host, [Sent(card.name, card.kind, sent[card.name]) for card in cards], risen)


def inspect_fabric(
    host: str,
    *,
    sys: Path = Path("/sys"),
    driver: Path = Path("/proc/driver/nvidia/version"),
    environ: Mapping[str, str] = os.environ,
) -> Fabric:
    """Inspect the networks of this node.

    Args:
        host: its name.
        sys: where sysfs is mounted.
        driver: where NVIDIA's driver states its version.
        environ: environment variables.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        opened = OPEN_DRIVER in driver.read_text()
    except OSError:
        opened = False
    return Fabric(
        host=host,
        ports=read_ports(sys),
        interfaces=read_interfaces(sys),
        distances=read_distances(sys),
        locked_memory=None if limit == resource.RLIM_INFINITY else limit,
        shares_gpu_memory=opened or any((sys / name).exists() for name in PEER_MEMORY),
        settings={name: value for name, value in sorted(environ.items()) if SETTINGS.match(name)},
    )


def gather_fabrics(workers: Communicator) -> list[Fabric]:
    """The networks of every node, in the order of nodes, on all workers; all workers call this together."""
    firsts = first_ranks(workers)

    def inspect() -> dict[str, Any] | None:
        return _as_json(inspect_fabric(workers.host)) if workers.rank in firsts else None

    every = workers.all_gather_object(
        workers.on_all_ranks("inspect its networks", inspect), "networks of the nodes"
    )
    return [
        Fabric(
            **every[rank]
            | {
                "ports": [Port(*port) for port in every[rank]["ports"]],
                "interfaces": [Interface(*interface) for interface in every[rank]["interfaces"]],
            }
        )
        for rank in firsts
    ]


def gather_traffic(before: Counters, workers: Communicator) -> list[Traffic]:
    """What crossed the networks of every node since its first worker read the counters; all call this."""
    firsts = first_ranks(workers)
    here = _as_json(before.traffic(workers.host)) if workers.rank in firsts else None
    every = workers.all_gather_object(here, "what the cards have sent")
    return [Traffic(**every[rank] | {"sent": [Sent(*one) for one in every[rank]["sent"]]}) for rank in firsts]


def _as_json(value: Fabric | Traffic) -> dict[str, Any]:
    """The fields of a value, with lists of dataclasses as lists of their values."""
    return {
        name: [list(vars(one).values()) for one in field] if isinstance(field, list) else field
        for name, field in vars(value).items()
    }
