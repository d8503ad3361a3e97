"""Bytes that the network cards of this node have sent, from the counters of the kernel and of NVML."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpcdat.hardware.nvml import nvlink_bytes
from hpcdat.hardware.sysfs import driver_of, folders, number_in, text_of

Kind = Literal["Ethernet", "InfiniBand", "RoCE", "Omni-Path", "EFA", "Slingshot", "NVLink"]

WORD, FLIT = 4, 8
"""Bytes in the unit of an RDMA port's ``port_xmit_data``, whatever its number of lanes: of InfiniBand and
RoCE (the kernel's ``Documentation/ABI/stable/sysfs-class-infiniband``), and of Omni-Path, whose driver passes
on its number of flits (``drivers/infiniband/hw/hfi1/mad.c``)."""
OMNI_PATH, EFA = "hfi1", "efa"
"""Drivers of the cards for Omni-Path, and of AWS."""
LOOPBACK, IP_OVER_INFINIBAND = 772, 32
"""Types of network interfaces (``ARPHRD_*``), as in ``/sys/class/net/*/type``."""
FULL = 2**32 - 1
"""Where the counters of old RDMA cards, of 32 bits, stay."""


@dataclass(frozen=True)
class Card:
    """A port of a network card, and what it has sent so far.

    Attributes:
        name: ``eth0``; ``mlx5_0/1`` for a port of an RDMA card; ``cxi0`` for a Slingshot card;
            ``GPU 0 NVLink`` for all NVLinks of a GPU, with NVML's number.
        kind: of its link. An RDMA port on Ethernet (RoCE) counts RDMA alone, and so does EFA; what else the
            card sends is counted by its Ethernet interface. A Slingshot card counts both.
        count: the counter of what it has sent; None if nothing counts it.
        unit: bytes for each count.
    """

    name: str
    kind: Kind
    count: int | None
    unit: int = 1


def network_cards(sys: Path = Path("/sys")) -> list[Card]:
    """The cards of this node, by name; without the loopback, and without what is counted twice otherwise.

    Not in the list are interfaces on top of others (bonds, bridges, VLANs), IP over InfiniBand where the RDMA
    port counts its bytes, Ethernet over a Slingshot card that counts them, and, next to real cards, virtual
    interfaces such as those of containers.

    Args:
        sys: where sysfs is mounted.
    """
    ports = [card for device in folders(sys / "class" / "infiniband") for card in _ports(device)]
    slingshot = {device: _slingshot_card(device) for device in folders(sys / "class" / "cxi")}
    counting = {_device(folder) for folder, card in slingshot.items() if card.count is not None}
    interfaces = [
        i
        for i in folders(sys / "class" / "net")
        if _is_card(i, rdma=any(p.count is not None for p in ports)) and _device(i) not in counting
    ]
    real = [interface for interface in interfaces if (interface / "device").exists()]
    # Beside cards that count everything, virtual interfaces are no cards.
    counted = [
        Card(interface.name, "Ethernet", number_in(interface / "statistics" / "tx_bytes"))
        for interface in real or ([] if counting else interfaces)
    ]
    nvlinks = [Card(f"GPU {number} NVLink", "NVLink", count) for number, count in nvlink_bytes().items()]
    return [*counted, *ports, *slingshot.values(), *nvlinks]


def sent_between(before: list[Card], after: list[Card]) -> dict[str, int | None]:
    """Bytes that each card has sent between two readings; None where they were not counted.

    A counter that was in the upper half of 32 or 64 bits may have wrapped once. One that has become smaller
    otherwise has been reset in between.
    """
    earlier = {card.name: card for card in before}
    return {card.name: _difference(earlier.get(card.name), card) for card in after}


def _difference(before: Card | None, after: Card) -> int | None:
    if before is None or before.count is None or after.count is None:
        return None
    counts = after.count - before.count
    if counts < 0:
        range_ = 2**32 if before.count < 2**32 else 2**64
        if before.count < range_ // 2:
            return None
        counts += range_
    return after.unit * counts


def _is_card(interface: Path, *, rdma: bool) -> bool:
    kind = number_in(interface / "type")
    if kind == LOOPBACK or (kind == IP_OVER_INFINIBAND and rdma):
        return False
    return not any(interface.glob("lower_*"))


def _device(folder: Path) -> Path:
    return (folder / "device").resolve()


def _ports(device: Path) -> list[Card]:
    """The ports of an RDMA card."""
    driver = driver_of(device)
    cards = []
    for port in folders(device / "ports"):
        name, kind = f"{device.name}/{port.name}", kind_of(driver, port)
        count = number_in(port / "counters_ext" / "port_xmit_data_64")
        if count is None:
            count = number_in(port / "counters" / "port_xmit_data")
            count = None if count == FULL else count
        if count is None:
            # EFA and Broadcom's cards have no counters of InfiniBand, but bytes.
            cards.append(Card(name, kind, number_in(port / "hw_counters" / "tx_bytes")))
        else:
            cards.append(Card(name, kind, count, FLIT if kind == "Omni-Path" else WORD))
    return cards


def kind_of(driver: str, port: Path) -> Kind:
    """The kind of an RDMA port's link.

    Args:
        driver: of its card.
        port: its folder in sysfs.
    """
    if driver == OMNI_PATH:
        return "Omni-Path"
    if driver == EFA:
        return "EFA"
    return "RoCE" if text_of(port / "link_layer") == "Ethernet" else "InfiniBand"


def _slingshot_card(device: Path) -> Card:
    """A Slingshot card, whose telemetry states a count and the time: ``1234@1764428400.000000000``."""
    octets, _, _ = text_of(device / "device" / "telemetry" / "hni_sts_tx_ok_octets").partition("@")
    return Card(device.name, "Slingshot", int(octets) if octets.isdecimal() else None)
