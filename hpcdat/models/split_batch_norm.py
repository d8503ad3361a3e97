"""Split batch norm: clean and adversarial images each with statistics and weights of their own.

Sources: Xie et al. 2020 (AdvProp); ConAdv paper, Sec. 3.2 and Algorithm 1: main BN and adversarial BN.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn

Branch = Literal["clean", "adversarial"]
BatchNorm = nn.modules.batchnorm._BatchNorm


class SplitBatchNorm(nn.Module):
    """Two batch norms in the place of one; the branch says which one an image passes.

    Args:
        main: the layer for clean images, and for everything that does not say otherwise; the one for
            adversarial images begins as its copy.

    Attributes:
        main, auxiliary: the two layers.
        branch: ``clean`` (main) or ``adversarial`` (auxiliary); set by :func:`routed`.
    """

    def __init__(self, main: BatchNorm) -> None:
        super().__init__()
        self.main, self.auxiliary = main, copy.deepcopy(main)
        self.branch: Branch = "clean"

    def forward(self, x: Tensor) -> Tensor:
        """Normalise features by the branch's statistics; in training they are the branch's alone to learn."""
        normalised: Tensor = (self.main if self.branch == "clean" else self.auxiliary)(x)
        return normalised


def split_batch_norm(model: nn.Module) -> None:
    """Put a :class:`SplitBatchNorm` in the place of every batch norm of a model."""
    for name, child in model.named_children():
        if isinstance(child, BatchNorm):
            setattr(model, name, SplitBatchNorm(child))
        elif not isinstance(child, SplitBatchNorm):
            split_batch_norm(child)


@contextmanager
def routed(model: nn.Module, branch: Branch) -> Iterator[None]:
    """Send what passes the model through one branch; a model without split batch norm has but one."""
    layers = [module for module in model.modules() if isinstance(module, SplitBatchNorm)]
    before = [layer.branch for layer in layers]
    for layer in layers:
        layer.branch = branch
    try:
        yield
    finally:
        for layer, earlier in zip(layers, before, strict=True):
            layer.branch = earlier


def branch_of(name: str) -> Branch:
    """The branch that a layer trains with, by its name in the model."""
    return "adversarial" if name.endswith(".auxiliary") else "clean"
