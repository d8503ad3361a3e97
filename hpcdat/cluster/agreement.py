"""All workers hold the same model: made equal at the start, averaged where they may differ, checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hpcdat.cluster.workers import Workers
from hpcdat.errors import WorkerError
from hpcdat.models.split_batch_norm import BatchNorm, Branch, branch_of


def make_equal(workers: Workers, model: nn.Module) -> None:
    """Give every worker the parameters and buffers of worker 0."""
    workers.broadcast([t.detach() for t in named_state(model).values()], "initial parameters and buffers")


class BatchNormStatistics:
    """The running statistics of a model's batch norm, in which the workers may differ.

    In training each worker keeps statistics of its own images. Averaged, every worker evaluates
    the same function; gathered, a run can go on where it was stopped.

    Args:
        model: holds the layers.
        workers: who has it.
        trained_by: ranks of the workers that learn the statistics of a branch of split batch norm, by
            branch; a model without has ``clean`` alone.
    """

    def __init__(
        self, model: nn.Module, workers: Workers, trained_by: Mapping[Branch, Sequence[int]]
    ) -> None:
        self.workers = workers
        layers = [
            (module, trained_by[branch_of(name)])
            for name, module in model.named_modules()
            if isinstance(module, BatchNorm) and module.running_mean is not None
        ]
        self.statistics = [t for module, _ in layers for t in (module.running_mean, module.running_var)]
        self.counts = [module.num_batches_tracked for module, _ in layers]
        self._trainers = [len(ranks) for _, ranks in layers for _ in range(2)]
        self._foreign = [
            t
            for module, ranks in layers
            if workers.rank not in ranks
            for t in (module.running_mean, module.running_var)
        ]

    @torch.no_grad()
    def average(self) -> None:
        """Replace the statistics by their mean over the workers that learn them, the counts by the largest.

        A worker may have had no image in the last, short batch of an epoch, so counts can differ.
        """
        if self.statistics:
            for statistic in self._foreign:
                statistic.zero_()
            self.workers.sum(self.statistics, "batch-norm statistics")
            torch._foreach_div_(self.statistics, self._trainers)
            largest = self.workers.max(torch.stack(self.counts), "batch-norm counts")
            torch._foreach_copy_(self.counts, list(largest.unbind()))

    def local(self) -> list[Tensor]:
        """A copy of this worker's own."""
        return [t.clone() for t in (*self.statistics, *self.counts)]

    @torch.no_grad()
    def restore(self, local: list[Tensor]) -> None:
        """Take back a copy made by :meth:`local`."""
        if local:
            torch._foreach_copy_([*self.statistics, *self.counts], local)

    def gather(self) -> tuple[Tensor, Tensor]:
        """Every worker's, on all of them: statistics (M, n) float32 and counts (M, layers) int64."""
        if not self.statistics:
            return torch.empty(self.workers.size, 0), torch.empty(self.workers.size, 0, dtype=torch.int64)
        rows = []
        for own in (torch.cat(self.statistics), torch.stack(self.counts)):
            table = torch.zeros(self.workers.size, len(own), dtype=own.dtype)
            table[self.workers.rank] = own.cpu()
            self.workers.sum([table], f"rows of {own.dtype}")
            rows.append(table)
        return rows[0], rows[1]

    @torch.no_grad()
    def scatter(self, gathered: tuple[Tensor, Tensor]) -> None:
        """Take back this worker's rows of what :meth:`gather` gave."""
        statistics, counts = (table[self.workers.rank] for table in gathered)
        lengths = [len(t) for t in self.statistics]
        for own, saved in zip(self.statistics, statistics.split(lengths), strict=True):
            own.copy_(saved)
        for own, saved in zip(self.counts, counts, strict=True):
            own.copy_(saved)


def check_equal(workers: Workers, model: nn.Module, *, except_batch_norm: bool = False) -> None:
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
    hashes = torch.tensor([_fingerprint(tensor) for tensor in state.values()], dtype=torch.int64)
    # The maximum of (h, ~h) over the workers is (h, ~h) only if all have the same h.
    largest = workers.max(torch.cat([hashes, ~hashes]), "hashes of parameters and buffers")
    same = largest[: len(hashes)] == ~largest[len(hashes) :]
    differing = [name for name, equal in zip(state, same.tolist(), strict=True) if not equal]
    if differing:
        shown = ", ".join(differing[:5]) + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
        raise WorkerError(
            f"the workers no longer hold the same model: {shown} differ. The run stops, since its "
            "results would mean nothing; unequal library versions or faulty memory can be the cause.",
            everywhere=True,
        )


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, in the order of the model."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def fingerprint(model: nn.Module) -> str:
    """A hash of all parameters and buffers, by which to tell one model from another."""
    text = "".join(f"{name}:{_fingerprint(tensor)};" for name, tensor in named_state(model).items())
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _fingerprint(tensor: Tensor) -> int:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)
