"""The role of each worker in a step: ConAdv, Sec. 3.3, and the teams of Smooth-AT.

Workers that share batches form a cell. Each update worker computes the cost of a batch, or one its clean and
another its adversarial half. An attack worker, if any, makes the examples for the whole cell. It has no
gradient, but takes part in the exchange and in the update, so its weights need not be sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hpcdat.config.job import Job
from hpcdat.errors import InputError
from hpcdat.models.split_batch_norm import Branch

Split = Literal["workers", "nodes", "own"]
"""Values of ``data.split``."""

MOST_UPDATE_WORKERS = 3
"""Batches an attack worker can keep up with: forward pass and input gradient of one against forward pass and
both gradients of two halves, 2 against 6 units of work."""


@dataclass(frozen=True)
class Role:
    """The work of one worker in every step; batches are numbered over all workers.

    Attributes:
        clean, adversarial: batches whose clean or adversarial loss it computes, one after the other; more
            than one if the worker stands for several virtual ones.
        attacked: batches whose adversarial examples it makes.
    """

    clean: tuple[int, ...]
    adversarial: tuple[int, ...]
    attacked: tuple[int, ...]

    @property
    def trains(self) -> tuple[int, ...]:
        """The batches whose gradient it computes."""
        return self.clean or self.adversarial

    @property
    def reads(self) -> tuple[int, ...]:
        """The batches whose images it needs."""
        return tuple(sorted({*self.attacked, *self.clean}))


def assign_roles(job: Job, size: int) -> list[Role]:
    """The role of every worker, in the order of ranks; a cell or team has consecutive ranks.

    Args:
        job: its ``concurrent``, ``virtual_workers`` and ``smoothing.workers`` decide. Workers of a team,
            which share the noisy copies of their batches, have the same role.
        size: number of workers M, >= 1.

    Raises:
        InputError: the number of workers is no multiple of the size of a cell or team.
    """
    sharing = job.smoothing.workers
    if size % sharing:
        raise InputError(
            f"smoothing.workers: {size} workers cannot be divided into teams of {sharing}", everywhere=True
        )
    return [role for role in _roles_of_cells(job, size // sharing) for _ in range(sharing)]


def _roles_of_cells(job: Job, size: int) -> list[Role]:
    settings, k = job.concurrent, job.virtual_workers
    if k > 1:
        numbers_of = [tuple(range(rank * k, (rank + 1) * k)) for rank in range(size)]
        return [Role(numbers, numbers, numbers) for numbers in numbers_of]
    halves = 2 if settings.halves == "apart" else 1
    attackers = int(settings.place == "workers")
    asked = settings.update_workers
    choices = [asked] if asked else range(MOST_UPDATE_WORKERS if attackers else 1, 0, -1)
    batches = next((k for k in choices if size % (k * halves + attackers) == 0), None)
    if batches is None:
        cell = (asked or 1) * halves + attackers
        raise InputError(
            f"concurrent: {size} workers cannot be divided into cells of {cell} (place {settings.place}, "
            f"halves {settings.halves}): take a multiple of {cell}",
            everywhere=True,
        )
    roles: list[Role] = []
    for first in range(0, size // (batches * halves + attackers) * batches, batches):
        numbers = range(first, first + batches)
        for number in numbers:
            own: tuple[int, ...] = () if attackers else (number,)
            if halves == 1:
                roles.append(Role((number,), (number,), own))
            else:
                roles += [Role((number,), (), ()), Role((), (number,), own)]
        if attackers:
            roles.append(Role((), (), tuple(numbers)))
    return roles


def trained_by(roles: Sequence[Role]) -> dict[Branch, list[int]]:
    """Ranks of the workers that update a branch's batch-norm statistics, once for each of their batches."""
    return {
        "clean": [rank for rank, role in enumerate(roles) for _ in role.clean],
        "adversarial": [rank for rank, role in enumerate(roles) for _ in role.adversarial],
    }


def first_workers(roles: Sequence[Role]) -> list[int]:
    """Lowest rank of the workers that have the clean half, for every batch."""
    first: dict[int, int] = {}
    for rank, role in enumerate(roles):
        for number in role.clean:
            first.setdefault(number, rank)
    return list(first.values())


def groups_of_batches(split: Split, roles: Sequence[Role], node_of: Sequence[int]) -> list[int]:
    """The group that each batch belongs to, for ``training_shares``.

    Args:
        split: ``workers``: a single group; ``nodes``: one a node, that of the batch's first worker, without
            nodes that only attack; ``own``: one a batch.
        roles: of all workers.
        node_of: node of every worker.
    """
    homes = [node_of[rank] for rank in first_workers(roles)]
    if split == "own":
        return list(range(len(homes)))
    nodes = list(dict.fromkeys(homes)) if split == "nodes" else []
    return [nodes.index(home) if nodes else 0 for home in homes]
