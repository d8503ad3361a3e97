"""Bytes that the network cards of this node have sent, from the kernel's counters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["Ethernet", "InfiniBand", "RoCE"]

WORD = 4
"""Bytes in the unit of an RDMA port's ``port_xmit_data``, whatever its number of lanes."""
LOOPBACK, IP_OVER_INFINIBAND = 772, 32
"""Types of network interfaces (``ARPHRD_*``), as in ``/sys/class/net/*/type``."""
FULL = 2**32 - 1
"""Where the counters of old RDMA cards, of 32 bits, stay."""


@dataclass(frozen=True)
class Card:
    """A port of a network card, and what it has sent so far.

    Attributes:
        name: ``eth0``, or ``mlx5_0/1`` for a port of an RDMA card.
        kind: of its link. An RDMA port on Ethernet (RoCE) counts RDMA alone; what else the card sends is
            counted by its Ethernet interface.
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
    port counts its bytes, and, next to real cards, virtual interfaces such as those of containers.

    Args:
        sys: where sysfs is mounted.
    """
    ports = [card for device in _folders(sys / "class" / "infiniband") for card in _ports(device)]
    interfaces = [
        i
        for i in _folders(sys / "class" / "net")
        if _is_card(i, rdma=any(p.count is not None for p in ports))
    ]
    real = [interface for interface in interfaces if (interface / "device").exists()]
    counted = [
        Card(interface.name, "Ethernet", _number(interface / "statistics" / "tx_bytes"))
        for interface in real or interfaces
    ]
    return [*counted, *ports]


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
    kind = _number(interface / "type")
    if kind == LOOPBACK or (kind == IP_OVER_INFINIBAND and rdma):
        return False
    return not any(interface.glob("lower_*"))


def _ports(device: Path) -> list[Card]:
    """The ports of an RDMA card."""
    cards = []
    for port in _folders(device / "ports"):
        count = _number(port / "counters_ext" / "port_xmit_data_64")
        if count is None:
            count = _number(port / "counters" / "port_xmit_data")
            count = None if count == FULL else count
        kind: Kind = "RoCE" if _text(port / "link_layer") == "Ethernet" else "InfiniBand"
        cards.append(Card(f"{device.name}/{port.name}", kind, count, WORD))
    return cards


def _folders(parent: Path) -> list[Path]:
    return sorted(parent.iterdir()) if parent.is_dir() else []


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        # Interfaces that are down answer some files with an error.
        return ""


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdecimal() else None
