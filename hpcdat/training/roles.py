"""The role of each worker in a step: ConAdv, Sec. 3.3, and the teams of Smooth-AT.

Workers that share batches form a cell. Each update worker computes the cost of a batch, or one its clean and
another its adversarial half. An attack worker, if any, makes the examples for the whole cell. It has no
gradient, but takes part in the exchange and in the update, so its weights need not be sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, overload

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

    @property
    def trained(self) -> dict[Branch, int]:
        """Number of batches with which it updates a branch's batch-norm statistics in a step."""
        return {"clean": len(self.clean), "adversarial": len(self.adversarial)}

    @property
    def work(self) -> tuple[int, int, int]:
        """How much it does: workers with the same work take the same time."""
        return len(self.clean), len(self.adversarial), len(self.attacked)

    def shifted(self, by: int) -> Role:
        """The same role with the batches of another cell, whose numbers are larger by so many."""
        numbers = (self.clean, self.adversarial, self.attacked)
        return Role(*(tuple(number + by for number in part) for part in numbers))


@dataclass(frozen=True)
class Roles(Sequence[Role]):
    """The roles of all workers in the order of ranks, each of which is computed when it is asked for.

    Attributes:
        size: number of workers M.
        cell: the roles of the first cell; other cells have the same with batches of their own.
        sharing: consecutive workers that have the same role.
    """

    size: int
    cell: tuple[Role, ...]
    sharing: int

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, rank: int) -> Role: ...
    @overload
    def __getitem__(self, rank: slice) -> list[Role]: ...
    def __getitem__(self, rank: int | slice) -> Role | list[Role]:
        if isinstance(rank, slice):
            return [self[one] for one in range(*rank.indices(self.size))]
        if not 0 <= rank < self.size:
            raise IndexError(rank)
        cell, place = divmod(rank // self.sharing, len(self.cell))
        return self.cell[place].shifted(cell * self._batches_of_cell)

    @property
    def batches(self) -> int:
        """Number of batches in a step, of all workers."""
        return self.size // (self.sharing * len(self.cell)) * self._batches_of_cell

    def first_with_clean(self, number: int) -> int:
        """Lowest rank of the workers that have the clean half of a batch."""
        return self._first(number, lambda role: role.clean)

    def first_with_adversarial(self, number: int) -> int:
        """Lowest rank of the workers that have the adversarial half of a batch."""
        return self._first(number, lambda role: role.adversarial)

    def first_with_attack(self, number: int) -> int:
        """Lowest rank of the workers that make the adversarial examples of a batch."""
        return self._first(number, lambda role: role.attacked)

    def _first(self, number: int, half: Callable[[Role], tuple[int, ...]]) -> int:
        cell, own = divmod(number, self._batches_of_cell)
        place = next(place for place, role in enumerate(self.cell) if own in half(role))
        return (cell * len(self.cell) + place) * self.sharing

    @property
    def _batches_of_cell(self) -> int:
        return sum(len(role.clean) for role in self.cell)


def assign_roles(job: Job, size: int) -> Roles:
    """The role of every worker; a cell or team has consecutive ranks.

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
    return Roles(size, _first_cell(job, size // sharing), sharing)


def _first_cell(job: Job, size: int) -> tuple[Role, ...]:
    settings, k = job.concurrent, job.virtual_workers
    if k > 1:
        numbers = tuple(range(k))
        return (Role(numbers, numbers, numbers),)
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
    for number in range(batches):
        own: tuple[int, ...] = () if attackers else (number,)
        if halves == 1:
            roles.append(Role((number,), (number,), own))
        else:
            roles += [Role((number,), (), ()), Role((), (number,), own)]
    if attackers:
        roles.append(Role((), (), tuple(range(batches))))
    return tuple(roles)


def groups_of_batches(split: Split, roles: Roles, node_of: Sequence[int]) -> list[int]:
    """The group that each batch's images are taken from, for ``training_shares``.

    Args:
        split: ``workers``: a single group; ``nodes``: one a node, that of the batch's first worker, without
            nodes that only attack; ``own``: one a batch.
        roles: of all workers.
        node_of: node of every worker.
    """
    match split:
        case "workers":
            return [0] * roles.batches
        case "own":
            return list(range(roles.batches))
        case "nodes":
            homes = [node_of[roles.first_with_clean(number)] for number in range(roles.batches)]
            numbers = {home: number for number, home in enumerate(dict.fromkeys(homes))}
            return [numbers[home] for home in homes]
