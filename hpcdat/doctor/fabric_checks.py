"""Checks of the networks of the nodes: ports, errors, locked memory, packets, and the way to GPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from hpcdat.doctor.fabric import Fabric, Traffic
from hpcdat.doctor.findings import Finding, hosts_by
from hpcdat.errors import first_few
from hpcdat.hardware.fabric import DISTANCES, Port

CARDS = "network cards"
"""Name of the check of cards and ports."""


def check_cards(fabrics: Sequence[Fabric]) -> list[Finding]:
    """Report the cards of the nodes; check that their ports are up, and as fast as others of their kind."""
    findings = []
    for found, hosts in hosts_by(fabrics, _describe_cards).items():
        findings.append(Finding("ok", CARDS, found, "" if len(hosts) == len(fabrics) else first_few(hosts)))
    used = {port.name for fabric in fabrics for port in fabric.active}
    fastest: dict[str, float] = {}
    for port in (port for fabric in fabrics for port in fabric.active):
        fastest[port.kind] = max(fastest.get(port.kind, 0), port.rate or 0)
    for fabric in fabrics:
        for port in fabric.ports:
            # Of a card of several ports, those that no node uses may lack a cable.
            partners = [other for other in fabric.active if other.card == port.card != ""]
            if not port.active and port.state and (port.name in used or not partners):
                findings.append(_down(port, fabric.host))
        for kind, rate in fastest.items():
            slow = [port for port in fabric.active if port.kind == kind and port.rate and port.rate < rate]
            if slow:
                found = first_few([f"{port.name} has {port.rate:g} Gbit/s" for port in slow])
                found += f", other {kind} ports {rate:g} Gbit/s"
                advice = "check its cable and the switch's port, unless it is meant to be slower"
                findings.append(Finding("warning", CARDS, found, fabric.host, advice))
    return findings


def _down(port: Port, host: str) -> Finding:
    found = f"{port.name} ({port.kind}) is not active: {port.state}"
    found += f", {port.physical}" if port.physical else ""
    advice = "check its cable, and whether it is enabled"
    if port.physical == "LinkUp" and port.kind in ("InfiniBand", "Omni-Path"):
        advice = "its cable is connected: check the subnet manager"
    return Finding("warning", CARDS, found, host, advice)


def _describe_cards(fabric: Fabric) -> str:
    """The cards of a node: ``8 x InfiniBand, 200 Gbit/s``."""
    groups = Counter((port.kind, port.rate) for port in fabric.active)
    parts = [
        f"{number} x {kind}" + (f", {rate:g} Gbit/s" if rate else "")
        for (kind, rate), number in groups.items()
    ]
    return "; ".join(parts) or "no RDMA card is active: sockets over Ethernet"


def check_errors(traffics: Sequence[Traffic]) -> list[Finding]:
    """Check that no counter of errors rose while the links were measured."""
    findings = []
    for traffic in traffics:
        if traffic.errors:
            found = "rose while the links were measured: "
            found += first_few([f"{name} by {risen}" for name, risen in traffic.errors.items()])
            advice = "check cable and switch; with RoCE, also its flow control"
            findings.append(Finding("warning", "network errors", found, traffic.host, advice))
    return findings


def check_locked_memory(fabrics: Sequence[Fabric]) -> list[Finding]:
    """Check that RDMA, where there is, may lock any amount of memory."""
    limited = [fabric for fabric in fabrics if fabric.active and fabric.locked_memory is not None]
    return [
        Finding(
            "warning",
            "locked memory",
            f"at most {limit / 1024:,.0f} KiB, but RDMA locks all its buffers",
            first_few(hosts),
            "set the limit memlock to unlimited; under Slurm PropagateResourceLimitsExcept=MEMLOCK, in a "
            "container --ulimit memlock=-1",
        )
        for limit, hosts in hosts_by(limited, lambda fabric: fabric.locked_memory).items()
    ]


def check_interfaces(fabrics: Sequence[Fabric]) -> list[Finding]:
    """Check that an interface is up, and has the same MTU and the same speed, on all nodes that have it."""
    findings = []
    for fabric in fabrics:
        for name in (one.name for one in fabric.interfaces if one.physical and not one.up):
            others = [f.host for f in fabrics if any(one.name == name and one.up for one in f.interfaces)]
            if others:
                found = f"{name} is down, but up on {first_few(others)}"
                findings.append(Finding("warning", "interfaces", found, fabric.host, "check its cable"))
    for name in dict.fromkeys(one.name for fabric in fabrics for one in fabric.interfaces if one.up):
        for check, unit, values in (
            ("MTU", "", _values(fabrics, name, "mtu")),
            ("speed", " Mbit/s", _values(fabrics, name, "speed")),
        ):
            if len(values) > 1:
                groups = "; ".join(f"{value}{unit} on {first_few(hosts)}" for value, hosts in values.items())
                where = first_few(min(values.values(), key=len))
                advice = f"give {name} the same {check} on all nodes and on the switch"
                findings.append(Finding("warning", check, f"{name}: {groups}", where, advice))
    return findings


def _values(fabrics: Iterable[Fabric], name: str, attribute: str) -> dict[int, list[str]]:
    """The hosts by an attribute of an interface that is up."""
    values: dict[int, list[str]] = {}
    for fabric in fabrics:
        for interface in fabric.interfaces:
            value = getattr(interface, attribute)
            if interface.name == name and interface.up and value:
                values.setdefault(value, []).append(fabric.host)
    return values


def check_gpu_distances(fabrics: Sequence[Fabric]) -> list[Finding]:
    """Report the nearest cards of each GPU, and whether cards can read the memory of GPUs."""
    findings = []
    with_both = [fabric for fabric in fabrics if any(fabric.distances.values())]
    for found, hosts in hosts_by(with_both, _describe_nearest).items():
        where = "" if len(hosts) == len(fabrics) else first_few(hosts)
        findings.append(Finding("ok", "near GPUs", found, where))
    direct = [
        fabric
        for fabric in with_both
        if not fabric.shares_gpu_memory and any(port.kind in ("InfiniBand", "RoCE") for port in fabric.active)
    ]
    if direct:
        found = (
            "no GPUDirect RDMA: neither the module nvidia_peermem nor NVIDIA's open kernel driver is loaded"
        )
        advice = "modprobe nvidia_peermem (by root); until then data pass through the memory of the node"
        where = first_few([fabric.host for fabric in direct])
        findings.append(Finding("warning", "GPUDirect RDMA", found, where, advice))
    return findings


def _describe_nearest(fabric: Fabric) -> str:
    """The nearest cards of each GPU: ``GPU 0: mlx5_0 (same PCIe switch)``."""
    parts = []
    for gpu, distances in fabric.distances.items():
        nearest = min(distances.values(), key=DISTANCES.index)
        cards = [card for card, distance in distances.items() if distance == nearest]
        parts.append(f"{gpu}: {first_few(cards)} ({nearest})")
    return "; ".join(parts)


def describe_traffic(traffics: Sequence[Traffic]) -> list[list[str]]:
    """Rows of a table: node, card, kind, MB sent; none if there are only Ethernet cards.

    What no counter counts is ``not counted``.
    """
    if all(sent.kind == "Ethernet" for traffic in traffics for sent in traffic.sent):
        return []
    return [
        [
            traffic.host,
            sent.card,
            sent.kind,
            "not counted" if sent.count is None else f"{sent.count / 1e6:.1f}",
        ]
        for traffic in traffics
        for sent in traffic.sent
    ]
