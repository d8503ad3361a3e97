"""The links between nodes, measured or assumed, for a forecast."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field

from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.environment import device_name
from hpcdat.emulation.cluster import emulated_links
from hpcdat.errors import InputError
from hpcdat.exchange.pipeline import IN_FLIGHT
from hpcdat.exchange.traffic import Collective
from hpcdat.performance.autotune import COLLECTIVE_KINDS
from hpcdat.performance.cost_model import Link, Network
from hpcdat.performance.microbenchmarks import measure_network
from hpcdat.storage.atomic_files import write_text

MESSAGE_SECONDS = 2e-4
"""Assumed time of an empty message over a link that was not measured, seconds."""


class Calibration(BaseModel):
    """The links of a forecast; saved in a file, it can be used for any job and number of nodes.

    Attributes:
        network: the links.
        measured_on: description of where and when they were measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: Network
    measured_on: str = Field(min_length=1)

    def write(self, path: Path) -> None:
        """Save it as JSON.

        Raises:
            InputError: it cannot be written.
        """
        try:
            write_text(path, self.model_dump_json(indent=2) + "\n")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from None

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Read a file written by :meth:`write`.

        Raises:
            InputError: it cannot be read.
        """
        try:
            read = cls.model_validate_json(path.read_text())
            if missing := set(COLLECTIVE_KINDS) - set(read.network.links):
                raise ValueError(f"links of {', '.join(sorted(missing))} are missing")
            return read
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is no calibration: {error}") from None


def measure_links(workers: Communicator, device: torch.device) -> Calibration:
    """Measure the links between two or more workers; all call this together."""
    network = measure_network(workers, COLLECTIVE_KINDS, device)
    links = emulated_links()
    where = (
        f"emulated {links}" if links else "one machine, memory for links" if workers.nodes == 1 else "links"
    )
    among = f"{network.nodes} x {network.per_node} workers over {workers.transport}"
    if workers.engine == "torch":
        among += " (torch)"
    return Calibration(
        network=network, measured_on=f"measured {date.today()}: {where}, {among}, {device_name(device)}"
    )


def assume_links(rate: float) -> Calibration:
    """Links with an assumed rate.

    Args:
        rate: bytes per second in each direction.
    """
    links = {}
    for kind in COLLECTIVE_KINDS:
        latency = Collective(kind, 0).rounds(2) * MESSAGE_SECONDS / IN_FLIGHT
        links[kind] = Link(points=[(0.0, latency), (rate, latency + 1.0)])
    bits = f"{8e-9 * rate:g} Gbit/s" if 8 * rate >= 1e9 else f"{8e-6 * rate:g} Mbit/s"
    return Calibration(
        network=Network(nodes=2, links=links),
        measured_on=f"not measured; assuming {bits} and {1e3 * MESSAGE_SECONDS:g} ms a message",
    )
