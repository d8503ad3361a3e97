"""Slurm's compressed lists of a step's nodes and tasks."""

from __future__ import annotations

import re

from hpcdat.errors import InputError, shorten


def first_host(nodelist: str) -> str:
    """The first host of a Slurm node list: ``node[03-05,9],gpu1`` gives ``node03``."""
    parts = re.match(r"([^\[,]*)(?:\[(\d+)[^\]]*\])?([^,\[]*)", nodelist)
    assert parts is not None  # every part may be empty
    prefix, number, suffix = parts.groups()
    return prefix + (number or "") + suffix


def last_host(nodelist: str) -> str:
    """The last host of a Slurm node list: ``gpu1,node[03-05,9]`` gives ``node9``."""
    parts = re.search(r"([^\[\],]*)(?:\[(?:[^\]]*[-,])?(\d+)\])?([^\[\],]*)$", nodelist)
    assert parts is not None  # every part may be empty
    prefix, number, suffix = parts.groups()
    return prefix + (number or "") + suffix


def tasks_per_node(short: str) -> list[int]:
    """Parse Slurm's compressed list of task counts: ``2(x3),1`` gives ``[2, 2, 2, 1]``."""
    counts = []
    for part in short.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise InputError(f"SLURM_STEP_TASKS_PER_NODE: {shorten(short)}: expected counts such as 2(x3),1")
        count, times = match.groups()
        counts += [int(count)] * int(times or 1)
    return counts
