"""All workers hold the same model: made equal at the start, averaged where they may differ, checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from hpcdat.distributed.communicator import Communicator
from hpcdat.errors import WorkerError, first_few
from hpcdat.models.fingerprint import named_state, tensor_fingerprint
from hpcdat.models.normalization import Normalization
from hpcdat.models.split_batch_norm import BatchNorm, Branch, branch_of

BYTES_PER_BLOCK = 2**16
"""Most that a worker sends at a time when worker 0 collects the rows of all, and receives M times as much."""


def make_equal(workers: Communicator, model: nn.Module) -> None:
    """Give every worker the parameters and buffers of worker 0, which must be contiguous."""
    # As bytes: buffers may have dtypes that the transport does not send.
    tensors = [t.detach().view(-1).view(torch.uint8) for t in named_state(model).values() if t.numel()]
    workers.broadcast(tensors, "initial parameters and buffers")


class BatchNormStatistics:
    """The running statistics of a model's batch norm, and other buffers, in which the workers may differ.

    In training each worker keeps statistics of its own images. Other buffers are those of the model's state
    that are not batch norm's, such as counters or running means of the user's own. After :meth:`average` all
    workers evaluate the same function; with :meth:`row` and :meth:`restore_row` a run resumes in the
    middle of an epoch. A worker that stands for several virtual ones has a set of statistics for each; one of
    them is in the model.

    Args:
        model: holds the layers.
        workers: all workers that train it.
        trained: for each branch of split batch norm, the number of batches in a step with which this worker
            updates its statistics; a model without split batch norm has ``clean`` only.
    """

    def __init__(self, model: nn.Module, workers: Communicator, trained: Mapping[Branch, int]) -> None:
        self.workers = workers
        layers = [
            (module, branch_of(name))
            for name, module in model.named_modules()
            if isinstance(module, BatchNorm) and module.running_mean is not None
        ]
        self.means = [t for t in (module.running_mean for module, _ in layers) if t is not None]
        self.variances = [t for t in (module.running_var for module, _ in layers) if t is not None]
        self.counts = [t for t in (module.num_batches_tracked for module, _ in layers) if t is not None]
        if layers:
            # Of the set in the model: images normalised since the last average.
            self.counts.append(torch.zeros((), dtype=torch.int64, device=self.means[0].device))
        self._trained_here = [float(trained[branch] > 0) for _, branch in layers]
        self._others = _other_buffers(model)
        if self._others and not layers:
            device = next(model.parameters()).device
            self.counts.append(torch.zeros((), dtype=torch.int64, device=device))
        self._before = self._copy_of_others()
        self._place, self._sets = 0, [self._copy() for _ in range(max(1, *trained.values()))]

    @property
    def has_others(self) -> bool:
        """Whether the model has buffers other than those of batch norm."""
        return bool(self._others)

    def reset(self) -> None:
        """Give all virtual workers the statistics in the model, which must be equal on all workers."""
        if self.counts:
            self.counts[-1].zero_()
        self._before = self._copy_of_others()
        self._sets = [self._copy() for _ in self._sets]

    def enter(self, place: int) -> None:
        """Have the model hold the statistics of this worker's virtual worker number ``place``."""
        if place != self._place:
            self._sets[self._place] = self._copy()
            self._load(self._sets[place])
            self._place = place

    def count(self, images: int) -> None:
        """Add to the images that were normalised with the set in the model: its weight in :meth:`average`."""
        if self.counts:
            self.counts[-1].add_(images)

    @torch.no_grad()
    def average(self) -> None:
        """Replace the statistics of all workers by those of all their images together.

        With m_k and v_k the running mean and variance of (virtual) worker k, and n_k the images that it has
        normalised in training since the last average::

            mean = sum_k n_k m_k / sum_k n_k
            var  = sum_k n_k (v_k + (m_k - mean)^2) / sum_k n_k

        by the law of total variance, in float64. Torch keeps unbiased variances v_k, so the result is that of
        one population but for terms of the order 1 / n_k. Only workers that train a branch count for it. A
        running statistic has no number of images, since it forgets old ones; n_k is the worker's part in the
        training since the last average, when all workers had the same statistics. Where it is 0 for all of
        them, they still have, and nothing changes. Counts of batches become the largest of any worker.

        Other buffers become their mean, weighted by n_k, or, of whole numbers, the largest of any worker.
        """
        if not self.counts:
            return
        sets = self.local()
        self._average_others(sets)
        if self.means:
            self._average_statistics(sets)
        first = len(self.means) + len(self.variances) + len(self._others)
        largest = torch.stack([torch.stack(values[first:]) for values in sets]).amax(0)
        largest = self.workers.all_reduce_max(largest, "batch-norm counts")
        torch._foreach_copy_(self.counts, list(largest.unbind()))
        self.reset()

    def _average_statistics(self, sets: list[list[Tensor]]) -> None:
        n = len(self.means)
        own_means, own_variances = (
            torch.stack([torch.cat(values[start : start + n]) for values in sets]).double()
            for start in (0, n)
        )
        sizes = [len(mean) for mean in self.means]
        of_channels = [
            part for part, size in zip(self._trained_here, sizes, strict=True) for _ in range(size)
        ]
        trained = torch.tensor(of_channels).to(own_means, non_blocking=True)
        weights = torch.stack([values[-1] for values in sets]).double()[:, None] * trained
        total, mean = weights.sum(0), (weights * own_means).sum(0)
        self.workers.all_reduce([total, mean], "batch-norm means")
        mean = torch.where(total > 0, mean / total, own_means[0])
        variance = (weights * (own_variances + (own_means - mean).square())).sum(0)
        self.workers.all_reduce([variance], "batch-norm variances")
        variance = torch.where(total > 0, variance / total, own_variances[0])
        torch._foreach_copy_(self.means, list(mean.split(sizes)))
        torch._foreach_copy_(self.variances, list(variance.split(sizes)))

    def _average_others(self, sets: list[list[Tensor]]) -> None:
        start = len(self.means) + len(self.variances)
        for place, (module, name) in enumerate(self._others):
            before, every = self._before[place], torch.stack([values[start + place] for values in sets])
            what = f"buffer {place}"
            if before.is_floating_point():
                # Sums of changes: a buffer that does not change stays as it is to the last bit.
                weights = torch.stack([values[-1] for values in sets]).double()
                total, change = weights.sum(), torch.tensordot(weights, every.double() - before.double(), 1)
                self.workers.all_reduce([total, change], what)
                merged = before + torch.where(total > 0, change / total, 0).to(before.dtype)
            else:
                merged = self.workers.all_reduce_max(every.long().amax(0), what).to(before.dtype)
            module._buffers[name] = merged

    def local(self) -> list[list[Tensor]]:
        """A copy of this worker's own, set by set: means, variances, counts of batches, count of images."""
        self._sets[self._place] = self._copy()
        return [list(values) for values in self._sets]

    def restore(self, local: list[list[Tensor]]) -> None:
        """Take back a copy made by :meth:`local`."""
        self._sets = [[t.clone() for t in values] for values in local]
        self._load(self._sets[self._place])

    def row(self) -> Tensor:
        """This worker's statistics as they are now: (R,) uint8."""
        tensors = [t.cpu().reshape(-1).view(torch.uint8) for values in self.local() for t in values]
        return torch.cat(tensors) if tensors else torch.empty(0, dtype=torch.uint8)

    def restore_row(self, row: Tensor) -> None:
        """Take back this worker's :meth:`row`.

        Raises:
            ValueError: it has another length.
        """
        own = self.row()
        if len(row) != len(own):
            raise ValueError(f"{len(row)} bytes of batch-norm statistics, expected {len(own)}")
        sets, place = self.local(), 0
        for tensor in (t for values in sets for t in values):
            size = tensor.numel() * tensor.element_size()
            # A copy, since a view needs an offset that is a multiple of the element's size.
            tensor.copy_(row[place : place + size].clone().view(tensor.dtype).view_as(tensor))
            place += size
        self.restore(sets)

    def _copy(self) -> list[Tensor]:
        return [t.clone() for t in (*self.means, *self.variances, *self._current_others(), *self.counts)]

    @torch.no_grad()
    def _load(self, values: list[Tensor]) -> None:
        if values:
            own = [*self.means, *self.variances, *self._current_others(), *self.counts]
            torch._foreach_copy_(own, values)

    def _current_others(self) -> list[Tensor]:
        # By name: a network may put a new tensor in the place of a buffer.
        return [getattr(module, name) for module, name in self._others]

    def _copy_of_others(self) -> list[Tensor]:
        return [t.clone() for t in self._current_others()]


def row_blocks(workers: Communicator, row: Tensor, columns: int = BYTES_PER_BLOCK) -> Iterator[Tensor]:
    """Collect a row of bytes of every worker on worker 0, block by block.

    A block has some columns of all rows, so worker 0 holds only M x ``columns`` bytes at a time, and the
    others receive nothing. The number of blocks does not depend on M. All workers iterate to the end.

    Args:
        workers: all workers.
        row: this worker's, (R,) uint8.
        columns: of a block.

    Yields:
        (M, columns) uint8 on worker 0, (0, columns) on the others; none if R is 0.
    """
    parts = row.split(columns) if len(row) else ()
    return (workers.igather(part, f"rows of the workers {i}").wait() for i, part in enumerate(parts))


def _other_buffers(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """The buffers of a model's state that are not batch norm's, by module and name; no complex numbers."""
    return [
        (module, name)
        for module in model.modules()
        if not isinstance(module, BatchNorm | Normalization)
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set and not buffer.is_complex()
    ]


def check_equal(
    workers: Communicator,
    model: nn.Module,
    averaged: Mapping[str, Tensor] | None = None,
    *,
    except_batch_norm: bool = False,
) -> None:
    """Compare a hash of every parameter and buffer over the workers.

    Args:
        workers: who compare.
        model: each worker's.
        averaged: averages of its weights, by name.
        except_batch_norm: leave out running statistics, which differ in the middle of an epoch.

    Raises:
        WorkerError: on all workers, with the names of the tensors that differ.
    """
    state = named_state(model)
    if except_batch_norm:
        state = dict(model.named_parameters())
    state |= {f"averaged {name}": tensor for name, tensor in (averaged or {}).items()}
    hashes = torch.tensor([tensor_fingerprint(tensor) for tensor in state.values()], dtype=torch.int64)
    # The maximum of (h, ~h) over the workers is (h, ~h) only if all have the same h.
    largest = workers.all_reduce_max(torch.cat([hashes, ~hashes]), "hashes of parameters and buffers")
    same = largest[: len(hashes)] == ~largest[len(hashes) :]
    differing = [name for name, equal in zip(state, same.tolist(), strict=True) if not equal]
    if differing:
        raise WorkerError(
            f"the workers no longer hold the same model: {first_few(differing)} differ. The run stops, "
            "because its results would be invalid; check for different library versions or faulty memory.",
            everywhere=True,
        )
