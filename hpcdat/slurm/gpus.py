"""GPUs per node as sbatch takes them: a number, or a type and a number."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from hpcdat.errors import shorten


@dataclass(frozen=True)
class Gpus:
    """The GPUs of a node that a job requests.

    Attributes:
        count: their number; 0 for none.
        option: the option of sbatch that requests them.
        value: its value: ``4``, ``a100:4``, or generic resources such as ``gpu:a100:4,nvme:1``.
    """

    count: int
    option: Literal["gpus-per-node", "gres"]
    value: str


def parse_gpus(text: str) -> Gpus:
    """Read ``4`` or ``a100:4``, as ``--gpus-per-node`` has it.

    Raises:
        ValueError: it is neither.
    """
    match = re.fullmatch(r"(?:[A-Za-z0-9_.-]+:)?(?P<count>[0-9]+)", text)
    if match is None:
        raise ValueError(f"{shorten(repr(text))}: expected a number of GPUs, or TYPE:NUMBER as in a100:4")
    return Gpus(int(match["count"]), "gpus-per-node", text)


def parse_gres(text: str) -> Gpus | None:
    """Read the GPUs in ``gpu:a100:4,nvme:1``, as ``--gres`` has it; None if there are none.

    Raises:
        ValueError: they cannot be counted.
    """
    count, found = 0, False
    for resource in text.split(","):
        name, _, rest = resource.partition(":")
        if name.removeprefix("gres/") != "gpu":
            continue
        # gpu, gpu:4, gpu:a100, gpu:a100:4
        match = re.fullmatch(r"(?:(?P<type>[A-Za-z0-9_.-]+?)(?::(?P<count>[0-9]+))?)?", rest)
        if match is None:
            raise ValueError(f"{shorten(repr(text))}: expected GPUs as in gpu:4 or gpu:a100:4")
        only = match["type"] if (match["type"] or "").isdecimal() else None
        count, found = count + int(match["count"] or only or 1), True
    return Gpus(count, "gres", text) if found else None
