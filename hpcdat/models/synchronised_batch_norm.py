"""Synchronised batch norm: statistics of the batches of all workers together, in training.

The outputs, gradients and running statistics are those of one worker that has the whole batch. A layer of C
channels sums 2 C + 1 numbers over the workers in the forward pass and 2 C in the backward pass, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from hpcdat.distributed.communicator import Communicator
from hpcdat.errors import InputError
from hpcdat.models.split_batch_norm import BatchNorm

STANDARD = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Layers that normalise and do nothing else."""
WITH_ACTIVATION = "BatchNormAct2d"
"""Timm's layer that normalises, then applies its modules ``drop`` and ``act``."""


class Synchronisation:
    """What the synchronised layers of a model have in common.

    Args:
        workers: they compute the same forward and backward passes in the same order.

    Attributes:
        absent: whether what this worker computes does not count; see :meth:`without_images`.
    """

    def __init__(self, workers: Communicator) -> None:
        self.workers, self.absent = workers, False

    @contextmanager
    def without_images(self) -> Iterator[None]:
        """Take part in the passes of the others with a placeholder for a batch that this worker lacks.

        The layers count nothing of forward passes inside the block, nor of their backward passes.
        """
        self.absent = True
        try:
            yield
        finally:
            self.absent = False

    def sum(self, vector: Tensor, name: str) -> Tensor:
        """The sum of a vector over the workers; float64."""
        vector = vector.detach().double()
        self.workers.all_reduce([vector], name)
        return vector


def placeholder(x: Tensor) -> Tensor:
    """One grey image of the shape and dtype of those in an empty batch (0, C, H, W)."""
    return x.new_full((1, *x.shape[1:]), 0.5)


class SynchronisedBatchNorm(BatchNorm):
    """Batch norm over the batches of all workers; in evaluation mode, torch's.

    Args:
        layer: the layer to replace, whose parameters and buffers are taken over.
        name: of its collectives.
        synchronisation: common to all layers.
    """

    def __init__(self, layer: BatchNorm, name: str, synchronisation: Synchronisation) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum, False, False)
        self.affine, self.track_running_stats = layer.affine, layer.track_running_stats
        self.weight, self.bias = layer.weight, layer.bias
        self.running_mean, self.running_var = layer.running_mean, layer.running_var
        self.num_batches_tracked = layer.num_batches_tracked
        self.training = layer.training
        self.name, self._synchronisation = name, synchronisation
        self._after = [n for n in ("drop", "act") if type(layer).__name__ == WITH_ACTIVATION]
        for module in self._after:
            self.add_module(module, layer.get_submodule(module))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise features (N, C, ...); N may differ between the workers.

        Raises:
            ValueError: in training, all workers together have one value for each channel.
        """
        y = self._normalised(x) if self.training else super().forward(x)
        for module in self._after:
            y = self.get_submodule(module)(y)
        return y

    def _normalised(self, x: Tensor) -> Tensor:
        y: Tensor
        # Not all versions of torch give this a type.
        normalise: Any = _Normalise.apply
        y, mean, variance, count = normalise(
            x, self.weight, self.bias, self.eps, self.name, self._synchronisation
        )
        if x.numel() <= x.shape[1] and count.item() == 1:
            # Torch's words; they are recognised.
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {x.shape}"
            )
        if self.track_running_stats and self.running_mean is not None:
            self._update(mean, variance * count / (count - 1).clamp(min=1))
        return y

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics by those of a batch; the variance is the unbiased one."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        for running, own in ((self.running_mean, mean), (self.running_var, variance)):
            running.copy_((1 - momentum) * running + momentum * own.to(running.dtype))

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected features (N, C, ...), not {input.dim()} dimensions")


class _Normalise(torch.autograd.Function):
    """Batch norm (Ioffe and Szegedy 2015, Algorithm 1) over the values of all workers.

    Of the local sums, mean and variance of all N values are, by the law of total variance, in float64::

        mean = sum_k n_k m_k / N,    var = sum_k n_k (v_k + m_k^2) / N - mean^2

    The gradient, with r = (var + eps)^(-1/2) and z = (x - mean) r, sums over all workers::

        dx = weight r (dy - (sum dy + z sum dy z) / N)

    The gradients of weight and bias are this worker's part, which the exchange of gradients adds up.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        name: str,
        synchronisation: Synchronisation,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values = _at_least_float32(x)
        channels, dims = x.shape[1], [0, *range(2, x.dim())]
        count = 0 if synchronisation.absent else x.numel() // channels
        sums = torch.zeros(2 * channels + 1, dtype=torch.float64, device=x.device)
        if count:
            variance, mean = (t.double() for t in torch.var_mean(values, dims, correction=0))
            torch.cat([count * mean, count * (variance + mean.square())], out=sums[:-1])
            sums[-1].fill_(count)
        sums = synchronisation.sum(sums, f"{name}, forward")
        total = sums[-1].clone()
        mean, square = (sums[:-1] / total.clamp(min=1)).chunk(2)
        # Where no worker has an image, the step is skipped; until then numbers must stay finite.
        variance = torch.where(total > 0, (square - mean.square()).clamp(min=0), 1.0)
        statistics = [t.to(values.dtype) for t in (mean, variance, (variance + eps).rsqrt())]
        ctx.save_for_backward(x, weight, statistics[0], statistics[2], total)
        ctx.name, ctx.synchronisation, ctx.absent = name, synchronisation, synchronisation.absent
        ctx.mark_non_differentiable(mean, variance, total)
        y = batch_norm(x, statistics[0], statistics[1], weight, bias, training=False, eps=eps)
        return y, mean, variance, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, total = ctx.saved_tensors
        dims, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
        mean, scale = mean.view(shape), scale.view(shape)
        dy, z = _at_least_float32(dy), (_at_least_float32(x) - mean) * scale
        of_bias, of_weight = dy.sum(dims), (dy * z).sum(dims)
        dx = None
        if ctx.needs_input_grad[0]:
            counted = 0 if ctx.absent else 1
            sums = ctx.synchronisation.sum(counted * torch.cat([of_bias, of_weight]), f"{ctx.name}, backward")
            of_mean, of_scale = (
                part.view(shape) for part in (sums / total.clamp(min=1)).to(dy.dtype).chunk(2)
            )
            # No statistics depend on a placeholder.
            dx = counted * scale * (dy - of_mean - z * of_scale)
            dx = (dx if weight is None else dx * weight.view(shape)).to(x.dtype)
        given = [
            None if weight is None or not needed else gradient.to(weight.dtype)
            for gradient, needed in zip((of_weight, of_bias), ctx.needs_input_grad[1:3], strict=True)
        ]
        return dx, *given, None, None, None


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def synchronise_batch_norm(model: nn.Module, workers: Communicator) -> Synchronisation | None:
    """Replace every batch norm of a model by a :class:`SynchronisedBatchNorm`, in place.

    Names and order of parameters and buffers do not change. Split batch norm is synchronised in each branch.

    Args:
        model: the same on all workers.
        workers: that train it together; with a single one the model is left as it is.

    Returns:
        What the layers have in common; None with a single worker.

    Raises:
        InputError: the model has no batch norm, or one that does more than normalising.
    """
    named = {name: m for name, m in model.named_modules() if isinstance(m, BatchNorm)}
    if not named:
        raise InputError(
            "model.batch_norm: synchronised: the network has no batch norm: leave the setting out",
            everywhere=True,
        )
    if workers.size == 1:
        return None
    synchronisation = Synchronisation(workers)
    for number, (name, layer) in enumerate(named.items()):
        if type(layer) not in STANDARD and type(layer).__name__ != WITH_ACTIVATION:
            raise InputError(
                f"model.batch_norm: synchronised: layer {name} is a {type(layer).__name__}, which does more "
                "than batch norm: take local",
                everywhere=True,
            )
        above, _, child = name.rpartition(".")
        synchronised = SynchronisedBatchNorm(layer, f"batch norm {number}", synchronisation)
        setattr(model.get_submodule(above), child, synchronised)
    return synchronisation
