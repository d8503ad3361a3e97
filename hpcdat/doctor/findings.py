"""What doctor finds, and how it words it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

Level = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: ``failure`` if a run would fail, or must not start.
        check: name of the check.
        found: what was found.
        where: hosts; empty for all.
        advice: what to do; empty if all is well.
    """

    level: Level
    check: str
    found: str
    where: str = ""
    advice: str = ""


class OfHost(Protocol):
    """Facts about a node."""

    @property
    def host(self) -> str:
        """The node."""
        ...


Facts = TypeVar("Facts", bound=OfHost)


def hosts_by(nodes: Iterable[Facts], key: Callable[[Facts], Hashable]) -> dict[Any, list[str]]:
    """Group the hosts by a property of their nodes."""
    groups: dict[Any, list[str]] = {}
    for node in nodes:
        groups.setdefault(key(node), []).append(node.host)
    return groups


def count(number: int, noun: str, plural: str = "s") -> str:
    """A number and its noun: ``1 worker``, ``2 workers``."""
    return f"{number} {noun}{'' if number == 1 else plural}"


def megabytes(rate: float) -> str:
    """A rate in bytes per second as text, in MB/s."""
    return f"{rate / 1e6:.3g}" if rate < 1e9 else f"{rate / 1e6:.0f}"
