"""The links between nodes, measured or assumed, and how uneven workers are, for a forecast."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hpcdat.config.yaml_text import dotted, load
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.environment import device_name
from hpcdat.emulation.cluster import bytes_per_second, emulated_links
from hpcdat.errors import InputError
from hpcdat.exchange.pipeline import IN_FLIGHT
from hpcdat.exchange.traffic import Collective
from hpcdat.performance.autotune import COLLECTIVE_KINDS
from hpcdat.performance.cost_model import Link, Network
from hpcdat.performance.microbenchmarks import measure_network
from hpcdat.storage.atomic_files import write_output

MESSAGE_SECONDS = 2e-4
"""Assumed time of an empty message over a link that was not measured, seconds."""


class AssumedLinks(BaseModel):
    """Links that were not measured.

    Attributes:
        rate: nominal rate of a node's card, or of its cards together, in each direction, such as ``25gbit``.
        efficiency: fraction of the rate that collectives reach.
        message_seconds: of an empty message.
        tree: whether all-reduces go through a tree, see :class:`~hpcdat.performance.cost_model.Network`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: str
    efficiency: Annotated[float, Field(gt=0, le=1)] = 1.0
    message_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = MESSAGE_SECONDS
    tree: bool = False

    @field_validator("rate")
    @classmethod
    def _is_rate(cls, rate: str) -> str:
        try:
            bytes_per_second(rate)
        except InputError as error:
            raise ValueError(str(error)) from None
        return rate

    def network(self) -> Network:
        """The links for the cost model."""
        reached = self.efficiency * bytes_per_second(self.rate)
        links = {}
        for kind in COLLECTIVE_KINDS:
            latency = Collective(kind, 0).rounds(2, tree=self.tree) * self.message_seconds / IN_FLIGHT
            links[kind] = Link(points=[(0.0, latency), (reached, latency + 1.0)])
        return Network(nodes=2, links=links, tree=self.tree)


class Calibration(BaseModel):
    """What a forecast takes from a cluster; saved in a file, it can be used for any job and number of nodes.

    Attributes:
        network: the links; a file may hold :class:`AssumedLinks` in their place.
        measured_on: description of where and when they were measured.
        jitter: standard deviation of a worker's computation time in a step over its mean, as far as workers
            are not slow together: every step waits for the slowest one. 0: all take the same time.
        published: figures of this cluster to compare forecasts with; a forecast does not use them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: Network
    measured_on: str = Field(min_length=1)
    jitter: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    published: dict[str, Any] = Field({}, exclude=True)

    def write(self, path: Path) -> None:
        """Save it as JSON.

        Raises:
            InputError: it cannot be written.
        """
        write_output(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Read a file written by :meth:`write`, or by hand in YAML.

        Raises:
            InputError: it cannot be read.
        """
        try:
            values, _ = load(path.read_text())
            links = values.get("network") if isinstance(values, dict) else None
            if isinstance(links, dict) and "rate" in links:
                values["network"] = AssumedLinks.model_validate(links).network()
            read = cls.model_validate(values)
            if missing := set(COLLECTIVE_KINDS) - set(read.network.links):
                raise ValueError(f"links of {', '.join(sorted(missing))} are missing")
            return read
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key, wrong = dotted(first["loc"]), first["msg"].removeprefix("Value error, ")
            raise InputError(f"{path} is not a calibration file: {key and f'{key}: '}{wrong}") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is not a calibration file: {error}") from None


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


def assume_links(rate: str) -> Calibration:
    """Links with an assumed rate, such as ``1gbit``, which collectives reach.

    Raises:
        InputError: it is not a rate.
    """
    network = AssumedLinks(rate=rate).network()
    per_second = 8 * bytes_per_second(rate)
    bits = f"{1e-9 * per_second:g} Gbit/s" if per_second >= 1e9 else f"{1e-6 * per_second:g} Mbit/s"
    return Calibration(
        network=network,
        measured_on=f"not measured; assuming {bits} and {1e3 * MESSAGE_SECONDS:g} ms a message",
    )
