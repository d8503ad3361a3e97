"""What NCCL, UCX and Open MPI say about the transports that they take, read from their debug output."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_NCCL_CHANNEL = re.compile(r"NCCL INFO .*->.* via (?P<way>.+?)(?: comm 0x.*)?$")
"""``Channel 00/0 : 0[0] -> 8[0] [send] via NET/IB/0/GDRDMA``; older versions write Ring."""
_NCCL_NETWORK = re.compile(r"NCCL INFO Using network (?P<network>.+)$")
_NCCL_CARDS = re.compile(r"NCCL INFO NET/(?P<network>IB|Socket) ?: Using (?P<cards>.+?)(?:; OOB.*)?$")
_NCCL_CARD = re.compile(r"\[\d+\](?P<name>[^\s:]+):")
_NCCL_PROVIDER = re.compile(r"NCCL INFO NET/OFI Selected [Pp]rovider is (?P<provider>[\w;-]+)")
_UCX_LANES = re.compile(r"UCX +INFO +(?P<reach>.*?)cfg(?:\[\d+\]:|#\d+) *tag\((?P<lanes>[^)]*)\)")
"""``ep_cfg[2]: tag(rc_mlx5/mlx5_0:1)``; from UCX 1.14 ``ucp_context_0 inter-node cfg#2 tag(...)``."""
_MPI_SUMMARY = re.compile(r"^  (?P<reach>on|off)-host: +(?:all|most) connections are (?P<way>.+)$")
_MPI_TABLE = re.compile(r"$|Host \d+ \[|Connection summary|  (on|off)-host: |Exceptions:|  host \d+:")
"""Lines of the table that Open MPI writes."""

LOCAL_LANES = ("sysv", "posix", "cma", "xpmem", "knem", "cuda_", "rocm_", "ze_", "gdr_copy")
"""How the lanes of UCX inside a node begin."""


@dataclass(frozen=True)
class Transport:
    """The transports that a library has taken.

    Attributes:
        host: the node whose workers said so; empty for all nodes.
        library: ``NCCL``, ``UCX``, ``Open MPI`` or ``Gloo``.
        inside: between workers of a node, in the library's own words; empty if it does not say.
        between: between nodes, likewise. If nothing was sent between nodes, what NCCL would use.
    """

    host: str
    library: str
    inside: list[str]
    between: list[str]

    @property
    def sockets(self) -> bool:
        """Whether it uses sockets between nodes."""
        return any(map(_is_socket, self.between))


def _is_socket(way: str) -> bool:
    return bool(re.match(r"(?i)NET/Socket|tcp\b|sockets\b|libfabric \((tcp|sockets|net)\b", way))


def read_nccl(text: str) -> Transport | None:
    """The transports in NCCL's output with ``NCCL_DEBUG=INFO``; None if it does not name any."""
    ways: list[str] = []
    networks: list[str] = []
    cards: dict[str, list[str]] = {"IB": [], "Socket": []}
    providers: list[str] = []
    for line in text.splitlines():
        if found := _NCCL_CHANNEL.search(line):
            ways.append(_without_numbers(found["way"]))
        elif found := _NCCL_NETWORK.search(line):
            networks.append(found["network"].strip())
        elif found := _NCCL_PROVIDER.search(line):
            providers.append(found["provider"])
        elif found := _NCCL_CARDS.search(line):
            cards[found["network"]] += _NCCL_CARD.findall(found["cards"])
    between = [way for way in ways if way.startswith("NET/")] or [f"NET/{name}" for name in networks]
    between = [_with_cards(way, providers, cards) for way in between]
    inside = [way for way in ways if not way.startswith("NET/")]
    return Transport("", "NCCL", _distinct(inside), _distinct(between)) if ways or networks else None


def _without_numbers(way: str) -> str:
    """``NET/IB/0/GDRDMA``, or ``NET/IB/0(3)/GDRDMA`` over another GPU, without the number of the card."""
    way = "SHM" if way == "direct shared memory" else way
    return "/".join(part for part in way.strip().split("/") if not re.fullmatch(r"\d+(\(\d+\))?", part))


def _with_cards(way: str, providers: list[str], cards: dict[str, list[str]]) -> str:
    """A way with what it uses: the provider of libfabric, or cards."""
    if "Libfabric" in way or way.startswith("NET/OFI"):
        direct = " with GPUDirect RDMA" if "GDRDMA" in way else ""
        return f"libfabric ({', '.join(_distinct(providers)) or 'provider unknown'}){direct}"
    used = _distinct(cards.get(way.split("/")[1], []))
    return f"{way} ({', '.join(used)})" if used else way


def read_ucx(text: str) -> Transport | None:
    """The transports in UCX's output with ``UCX_LOG_LEVEL=info``; None if it does not name any."""
    inside: list[str] = []
    between: list[str] = []
    for found in _UCX_LANES.finditer(text):
        reach, lanes = found["reach"], found["lanes"].split()
        # Older versions do not say to which worker the lanes lead; those over memory stay inside the node.
        local = any(lane.startswith(LOCAL_LANES) for lane in lanes)
        if "self " in reach or _to_itself(lanes):
            continue
        if "inter-node" in reach or ("intra-node" not in reach and not local):
            between += lanes
        else:
            inside += lanes
    return Transport("", "UCX", _distinct(inside), _distinct(between)) if inside or between else None


def read_open_mpi(text: str) -> Transport | None:
    """The transports in the table that ``OMPI_MCA_hook_comm_method_display`` has Open MPI write, if any."""
    ways: dict[str, list[str]] = {"on": [], "off": []}
    for line in text.splitlines():
        if found := _MPI_SUMMARY.match(line):
            ways[found["reach"]] += _mpi_lanes(found["way"])
        elif line.startswith("  host "):
            # Of the other connections it does not say between which workers they are.
            others = [lane for way in re.findall(r"\[\d+x ([^\]]+)\]", line) for lane in _mpi_lanes(way)]
            ways["off"] += [lane for lane in others if lane not in ways["on"]]
    inside, between = _distinct(ways["on"]), _distinct(ways["off"])
    return Transport("", "Open MPI", inside, between) if inside or between else None


def _mpi_lanes(way: str) -> list[str]:
    """``tcp``; of ``ucx=rc_mlx5;mlx5_0:1,tcp;ib0``, as Open MPI 5 may write with UCX, UCX's lanes."""
    way = way.removesuffix(" or self")
    if way.startswith("ucx="):
        lanes = [lane.replace(";", "/") for lane in way.removeprefix("ucx=").split(",")]
        return [] if _to_itself(lanes) else lanes
    return [way] if way not in ("self", "n/a") else []


def _to_itself(lanes: Iterable[str]) -> bool:
    """Whether UCX's lanes lead from a worker to itself."""
    return any(lane.startswith("self/") for lane in lanes)


def without_open_mpi(text: str) -> str:
    """What else is in the text that holds Open MPI's table."""
    return "".join(line for line in text.splitlines(keepends=True) if not _MPI_TABLE.match(line))


def merge(transports: Iterable[Transport]) -> list[Transport]:
    """The transports of several workers, one entry for a library on a node."""
    merged: dict[tuple[str, str], Transport] = {}
    for one in transports:
        place = one.host, one.library
        other = merged.get(place, Transport(*place, [], []))
        merged[place] = Transport(
            *place, _distinct([*other.inside, *one.inside]), _distinct([*other.between, *one.between])
        )
    return list(merged.values())


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
