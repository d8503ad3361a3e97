"""All workers hold the same model: made equal at the start, averaged where they may differ, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hpcdat.distributed.communicator import Communicator
from hpcdat.errors import WorkerError
from hpcdat.models.fingerprint import named_state, tensor_fingerprint
from hpcdat.models.split_batch_norm import BatchNorm, Branch, branch_of


def make_equal(workers: Communicator, model: nn.Module) -> None:
    """Give every worker the parameters and buffers of worker 0."""
    workers.broadcast([t.detach() for t in named_state(model).values()], "initial parameters and buffers")


class BatchNormStatistics:
    """The running statistics of a model's batch norm, in which the workers may differ.

    In training each worker keeps statistics of its own images. Averaged, every worker evaluates
    the same function; gathered, a run can go on where it was stopped. A worker that stands for several
    virtual ones has a set for each, of which one is in the model.

    Args:
        model: holds the layers.
        workers: who has it.
        trained_by: of every batch the rank of the worker that learns statistics by it, by branch of split
            batch norm; a model without has ``clean`` alone.
    """

    def __init__(
        self, model: nn.Module, workers: Communicator, trained_by: Mapping[Branch, Sequence[int]]
    ) -> None:
        self.workers = workers
        layers = [
            (module, trained_by[branch_of(name)])
            for name, module in model.named_modules()
            if isinstance(module, BatchNorm) and module.running_mean is not None
        ]
        statistics = (t for module, _ in layers for t in (module.running_mean, module.running_var))
        self.statistics = [t for t in statistics if t is not None]
        self.counts = [t for t in (module.num_batches_tracked for module, _ in layers) if t is not None]
        self._trainers = [max(len(ranks), 1) for _, ranks in layers for _ in range(2)]
        self._trained_here = [workers.rank in ranks for _, ranks in layers for _ in range(2)]
        mine = max(1, *(list(ranks).count(workers.rank) for ranks in trained_by.values()))
        self._place, self._sets = 0, [self._copy() for _ in range(mine)]

    def enter(self, place: int) -> None:
        """Have the model hold the statistics of this worker's virtual worker number ``place``."""
        if place != self._place:
            self._sets[self._place] = self._copy()
            self._load(self._sets[place])
            self._place = place

    @torch.no_grad()
    def average(self) -> None:
        """Replace the statistics by their mean over the workers that learn them, the counts by the largest.

        A worker may have had no image in the last, short batch of an epoch, so counts can differ.
        """
        if not self.statistics:
            return
        sets = self.local()
        n = len(self.statistics)
        for statistic, here, *own in zip(
            self.statistics, self._trained_here, *(kept[:n] for kept in sets), strict=True
        ):
            statistic.copy_(sum(own[1:], own[0]) if here else torch.zeros_like(statistic))
        self.workers.all_reduce(self.statistics, "batch-norm statistics")
        torch._foreach_div_(self.statistics, self._trainers)
        largest = torch.stack([torch.stack(kept[n:]) for kept in sets]).amax(0)
        largest = self.workers.all_reduce_max(largest, "batch-norm counts")
        torch._foreach_copy_(self.counts, list(largest.unbind()))
        self._sets = [self._copy() for _ in sets]

    def local(self) -> list[list[Tensor]]:
        """A copy of this worker's own, set by set."""
        self._sets[self._place] = self._copy()
        return [list(kept) for kept in self._sets]

    def restore(self, local: list[list[Tensor]]) -> None:
        """Take back a copy made by :meth:`local`."""
        self._sets = [[t.clone() for t in kept] for kept in local]
        self._load(self._sets[self._place])

    def gather(self) -> tuple[Tensor, Tensor]:
        """Every worker's, on all of them: statistics (M, n) float32 and counts (M, m) int64."""
        if not self.statistics:
            return torch.empty(self.workers.size, 0), torch.empty(self.workers.size, 0, dtype=torch.int64)
        sets, n, rows = self.local(), len(self.statistics), []
        for own in (
            torch.cat([t for kept in sets for t in kept[:n]]),
            torch.stack([t for kept in sets for t in kept[n:]]),
        ):
            table = torch.zeros(self.workers.size, len(own), dtype=own.dtype)
            table[self.workers.rank] = own.cpu()
            self.workers.all_reduce([table], f"rows of {own.dtype}")
            rows.append(table)
        return rows[0], rows[1]

    def scatter(self, gathered: tuple[Tensor, Tensor]) -> None:
        """Take back this worker's rows of what :meth:`gather` gave."""
        statistics, counts = (table[self.workers.rank].chunk(len(self._sets)) for table in gathered)
        lengths = [len(t) for t in self.statistics]
        self.restore(
            [
                [*numbers.split(lengths), *count.unbind()]
                for numbers, count in zip(statistics, counts, strict=True)
            ]
            if self.statistics
            else self._sets
        )

    def _copy(self) -> list[Tensor]:
        return [t.clone() for t in (*self.statistics, *self.counts)]

    @torch.no_grad()
    def _load(self, kept: list[Tensor]) -> None:
        if kept:
            torch._foreach_copy_([*self.statistics, *self.counts], kept)


def check_equal(workers: Communicator, model: nn.Module, *, except_batch_norm: bool = False) -> None:
    """Compare a hash of every parameter and buffer over the workers.

    Args:
        workers: who compare.
        model: each worker's.
        except_batch_norm: leave out running statistics, which differ in the middle of an epoch.

    Raises:
        WorkerError: on all workers, with the names of the tensors that differ.
    """
    state = named_state(model)
    if except_batch_norm:
        state = dict(model.named_parameters())
    hashes = torch.tensor([tensor_fingerprint(tensor) for tensor in state.values()], dtype=torch.int64)
    # The maximum of (h, ~h) over the workers is (h, ~h) only if all have the same h.
    largest = workers.all_reduce_max(torch.cat([hashes, ~hashes]), "hashes of parameters and buffers")
    same = largest[: len(hashes)] == ~largest[len(hashes) :]
    differing = [name for name, equal in zip(state, same.tolist(), strict=True) if not equal]
    if differing:
        shown = ", ".join(differing[:5]) + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
        raise WorkerError(
            f"the workers no longer hold the same model: {shown} differ. The run stops, since its "
            "results would mean nothing; unequal library versions or faulty memory can be the cause.",
            everywhere=True,
        )
