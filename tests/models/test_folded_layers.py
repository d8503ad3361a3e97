"""Layers that stand for batch norm in a folded network; see also tests/attacks/test_folding.py."""

import pytest
import torch
from torch import nn

from hpcdat.models.folded_layers import AffineNorm


@pytest.mark.parametrize("relu", [False, True])
def test_gradients_in_bfloat16_are_rounded_once(generator, relu):
    norm = nn.BatchNorm2d(8).eval()
    for values in (norm.weight, norm.running_var):
        nn.init.uniform_(values, 0.3, 2, generator=generator)
    x = torch.randn(3, 8, 5, 5, generator=generator).bfloat16().requires_grad_()
    y = AffineNorm(norm, relu)(x)
    dy = torch.randn(y.shape, generator=generator).bfloat16()
    (dx,) = torch.autograd.grad(y, x, dy)
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).view(8, 1, 1)
    passed = (y > 0) if relu else torch.ones_like(y)
    torch.testing.assert_close(dx, (dy.float() * passed * scale).bfloat16(), rtol=2**-8, atol=0)
