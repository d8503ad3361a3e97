"""Batch norm in evaluation mode is an affine map, which folds into the convolution or linear layer in front.

Of W x + b, batch norm with the running statistics m and v makes W' x + b', where, for each output channel,
W' = s W and b' = beta + s (b - m), with s = gamma / sqrt(v + eps). In real arithmetic that is the same
function. Without such a layer in front, as in pre-activation networks, batch norm stays, and its derivative
becomes what it is: a factor s for each channel.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, linear

from hpcdat.models.split_batch_norm import BatchNorm
from hpcdat.models.synchronised_batch_norm import STANDARD, WITH_ACTIVATION, SynchronisedBatchNorm

Weighted = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers that batch norm folds into; classes derived from them may compute something else."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of a module runs more than its forward pass; a weight norm is a hook, too."""
    return any(getattr(module, hooks) for hooks in HOOKS)


def is_weighted(module: nn.Module) -> TypeGuard[Weighted]:
    """Whether batch norm can be folded into a module: it is W x + b and nothing else."""
    return type(module) in WEIGHTED and not has_hooks(module)


def is_affine(module: nn.Module) -> TypeGuard[BatchNorm]:
    """Whether a module is batch norm that normalises with running statistics.

    What comes behind that is a child of the module: timm's activation.
    """
    kind = type(module)
    known = kind in (*STANDARD, SynchronisedBatchNorm) or kind.__name__ == WITH_ACTIVATION
    return known and not has_hooks(module) and getattr(module, "running_mean", None) is not None


def scale_of(norm: BatchNorm) -> Tensor:
    """The factor of each channel, s = gamma / sqrt(v + eps), (C,)."""
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    return scale if norm.weight is None else norm.weight * scale


class FoldedLayer(nn.Module):
    """A convolution or linear layer and the batch norm behind it, as one layer.

    Args:
        layer: whose weights are folded.
        norm: the batch norm.
        relu: whether ReLU follows, which is then applied here in place.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: Weighted, norm: BatchNorm, relu: bool) -> None:
        super().__init__()
        # In a tuple, so that they are no submodules: their parameters are not this layer's.
        self._of, self.relu = (layer, norm), relu
        self.register_buffer("weight", torch.empty_like(layer.weight, requires_grad=False), persistent=False)
        self.register_buffer("bias", self.weight.new_empty(len(self.weight)), persistent=False)

    @torch.no_grad()
    def refresh(self) -> None:
        """Fold the current weights and statistics."""
        layer, norm = self._of
        scale = scale_of(norm)
        torch.mul(layer.weight, scale.view(-1, *[1] * (layer.weight.dim() - 1)), out=self.weight)
        assert norm.running_mean is not None
        mean = norm.running_mean if layer.bias is None else norm.running_mean - layer.bias
        shift = -mean * scale
        self.bias.copy_(shift if norm.bias is None else norm.bias + shift)

    def forward(self, x: Tensor) -> Tensor:
        """What layer, norm and ReLU make of x."""
        layer, _ = self._of
        if isinstance(layer, nn.Linear):
            y = linear(x, self.weight, self.bias)
        else:
            # Knows padding_mode, too.
            y = layer._conv_forward(x, self.weight, self.bias)
        return y.relu_() if self.relu else y


class AffineNorm(nn.Module):
    """Batch norm that stays, and ReLU behind it, with a derivative that is a factor for each channel.

    Args:
        norm: the batch norm.
        relu: whether ReLU follows.
    """

    scale: Tensor

    def __init__(self, norm: BatchNorm, relu: bool) -> None:
        super().__init__()
        self._of, self.relu = (norm,), relu
        self.register_buffer("scale", scale_of(norm).detach(), persistent=False)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the current weights and statistics."""
        self.scale = scale_of(self._of[0])

    def forward(self, x: Tensor) -> Tensor:
        """What norm and ReLU make of features (N, C, ...)."""
        normalise: Any = _Affine.apply
        y: Tensor = normalise(x, self._of[0], self.scale, self.relu)
        return y


class _Affine(torch.autograd.Function):
    """Batch norm with running statistics, with ReLU or without it; derivatives only of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: BatchNorm, scale: Tensor, relu: bool) -> Tensor:
        y = batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        if relu:
            y = y.relu_()
            ctx.save_for_backward(scale, y)
        else:
            ctx.save_for_backward(scale)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        scale, *y = ctx.saved_tensors
        through = torch.ops.aten.threshold_backward(dy, y[0], 0) if y else dy.clone()
        if through.dtype == scale.dtype:
            dx = through.mul_(scale.view(1, -1, *[1] * (dy.dim() - 2)))
        else:
            # The same product, of bfloat16 and float32, for which a CPU has no fast multiplication.
            zero, one = torch.zeros_like(scale), torch.ones_like(scale)
            dx = batch_norm(through, zero, one, scale, zero, eps=0)
        return dx, None, None, None
