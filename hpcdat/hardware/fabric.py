"""Ports and interfaces of this node's network cards, their error counters, and which GPU they are near."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hpcdat.hardware.network_cards import Kind, kind_of
from hpcdat.hardware.sysfs import driver_of, folders, number_in, pci_address, text_of

PORT_ERRORS = (
    "symbol_error",
    "link_error_recovery",
    "link_downed",
    "port_rcv_errors",
    "port_rcv_remote_physical_errors",
    "port_xmit_discards",
    "port_xmit_constraint_errors",
    "port_rcv_constraint_errors",
    "local_link_integrity_errors",
    "excessive_buffer_overrun_errors",
)
"""Counters of errors of an RDMA port (the kernel's ``Documentation/ABI/stable/sysfs-class-infiniband``)."""
HARDWARE_ERRORS = (
    "out_of_sequence",
    "packet_seq_err",
    "implied_nak_seq_err",
    "local_ack_timeout_err",
    "rnr_nak_retry_err",
    "rx_icrc_encapsulated",
    "rx_drops",
    "rdma_read_wr_err",
)
"""Counters of errors among a card's own: of mlx5 (``drivers/infiniband/hw/mlx5/counters.c``) and of EFA."""
INTERFACE_ERRORS = ("rx_errors", "tx_errors")
"""Counters of errors of a network interface."""
DISTANCES = ("same PCIe switch", "same host bridge", "same NUMA node", "other NUMA node", "unknown")
"""How near a card is to a GPU, nearest first."""
NVIDIA, DISPLAY = "0x10de", "0x03"
"""Vendor of GPUs, and how the class of a GPU begins, in sysfs."""


@dataclass(frozen=True)
class Port:
    """A port of an RDMA or Slingshot card.

    Attributes:
        name: as in :class:`hpcdat.hardware.network_cards.Card`.
        kind: of its link.
        state: ``ACTIVE`` if it can be used, otherwise such as ``DOWN`` or ``INIT``; empty if unknown.
        physical: such as ``LinkUp``, ``Polling`` or ``Disabled``; empty if unknown.
        rate: in 10^9 bits per second; None if unknown.
        card: PCI address of its card without the function, shared by the ports of a card; empty if unknown.
    """

    name: str
    kind: Kind
    state: str
    physical: str
    rate: float | None
    card: str

    @property
    def active(self) -> bool:
        """Whether it can be used."""
        return self.state == "ACTIVE"


@dataclass(frozen=True)
class Interface:
    """A network interface, of a card or virtual.

    Attributes:
        name: such as ``eth0``.
        up: whether its link is up; interfaces that do not know count as up.
        mtu: longest packet in bytes; None if unknown.
        speed: in 10^6 bits per second; None if unknown.
        physical: whether it is that of a card, rather than a bond, a bridge or a container's.
    """

    name: str
    up: bool
    mtu: int | None
    speed: int | None
    physical: bool


def read_ports(sys: Path = Path("/sys")) -> list[Port]:
    """The ports of this node's RDMA and Slingshot cards, by name."""
    found = []
    for device in folders(sys / "class" / "infiniband"):
        driver, card = driver_of(device), pci_address(device).rpartition(".")[0]
        for port in folders(device / "ports"):
            state, physical = (
                text_of(port / file).partition(":")[2].strip() for file in ("state", "phys_state")
            )
            name = f"{device.name}/{port.name}"
            rate = _rate(text_of(port / "rate"))
            found.append(Port(name, kind_of(driver, port), state, physical, rate, card))
    for device in folders(sys / "class" / "cxi"):
        found.append(_slingshot_port(device, sys))
    return found


def _slingshot_port(device: Path, sys: Path) -> Port:
    """A Slingshot card as a port, by the Ethernet interface of the same PCI device."""
    address = pci_address(device)
    state, rate = "", None
    for interface in folders(sys / "class" / "net"):
        if address and pci_address(interface) == address:
            speed = number_in(interface / "speed")
            state = "ACTIVE" if text_of(interface / "operstate") == "up" else "DOWN"
            rate = speed / 1e3 if speed else None
    return Port(device.name, "Slingshot", state, "", rate, address.rpartition(".")[0])


def read_interfaces(sys: Path = Path("/sys")) -> list[Interface]:
    """All network interfaces of this node, by name, with the loopback and virtual ones."""
    return [
        Interface(
            folder.name,
            text_of(folder / "operstate") in ("up", "unknown", ""),
            number_in(folder / "mtu"),
            number_in(folder / "speed"),
            (folder / "device").exists(),
        )
        for folder in folders(sys / "class" / "net")
        # There is also the file bonding_masters.
        if folder.is_dir()
    ]


def read_errors(sys: Path = Path("/sys")) -> dict[str, int]:
    """The counters of errors of all ports and interfaces, by name: ``mlx5_0/1 symbol_error``."""
    found: dict[str, int] = {}
    for device in folders(sys / "class" / "infiniband"):
        for port in folders(device / "ports"):
            for folder, names in (("counters", PORT_ERRORS), ("hw_counters", HARDWARE_ERRORS)):
                _read_counters(found, f"{device.name}/{port.name}", port / folder, names)
    for interface in folders(sys / "class" / "net"):
        _read_counters(found, interface.name, interface / "statistics", INTERFACE_ERRORS)
    return found


def _read_counters(found: dict[str, int], owner: str, folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        count = number_in(folder / name)
        if count is not None:
            found[f"{owner} {name}"] = count


def read_distances(sys: Path = Path("/sys")) -> dict[str, dict[str, str]]:
    """How near each RDMA or Slingshot card is to each NVIDIA GPU.

    Returns:
        For each GPU, by its number in the order of PCI addresses (that of NVML), and each card one of
        :data:`DISTANCES`.
    """
    gpus = [
        device.resolve()
        for device in folders(sys / "bus" / "pci" / "devices")
        if text_of(device / "vendor") == NVIDIA and text_of(device / "class").startswith(DISPLAY)
    ]
    cards = [
        device
        for kind in ("infiniband", "cxi")
        for device in folders(sys / "class" / kind)
        if pci_address(device)
    ]
    return {
        f"GPU {number}": {card.name: _distance(gpu, (card / "device").resolve()) for card in cards}
        for number, gpu in enumerate(gpus)
    }


def _distance(one: Path, other: Path) -> str:
    """How near two PCI devices are; a device's folder is in that of the bridge above it."""
    switch, bridge, node, other_node, unknown = DISTANCES
    above = [_bridges(one), _bridges(other)]
    if set(above[0][1:]) & set(above[1][1:]):
        return switch
    if above[0] and above[0][:1] == above[1][:1]:
        return bridge
    nodes = [number_in(device / "numa_node") for device in (one, other)]
    if None in nodes:
        return unknown
    return node if nodes[0] == nodes[1] else other_node


def _bridges(device: Path) -> list[str]:
    """The host bridge of a PCI device, and the bridges between: ``pci0000:16``, ``0000:16:01.0``."""
    parts = device.parts
    start = next((i for i, part in enumerate(parts) if re.fullmatch(r"pci[0-9a-f]+:[0-9a-f]+", part)), None)
    return [] if start is None else list(parts[start:-1])


def _rate(text: str) -> float | None:
    """Of ``200 Gb/sec (4X HDR)`` the number."""
    found = re.match(r"(\d+(?:\.\d+)?) Gb/sec", text)
    return float(found[1]) if found else None
