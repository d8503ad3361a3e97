"""Split batch norm: separate statistics and weights for clean and adversarial images.

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
    """Two batch norms in place of one; the current branch selects which one is used.

    Args:
        main: the layer for clean images; the layer for adversarial images is initialised as its copy.

    Attributes:
        main, auxiliary: the two layers.
        branch: ``clean`` (main) or ``adversarial`` (auxiliary); set by :func:`routed`.
    """

    def __init__(self, main: BatchNorm) -> None:
        super().__init__()
        self.main, self.auxiliary = main, copy.deepcopy(main)
        self.branch: Branch = "clean"

    def forward(self, x: Tensor) -> Tensor:
        """Normalise features with the branch's layer; training updates the statistics of this branch only."""
        normalised: Tensor = (self.main if self.branch == "clean" else self.auxiliary)(x)
        return normalised


def split_batch_norm(model: nn.Module) -> int:
    """Replace every batch norm of a model by a :class:`SplitBatchNorm`, in place; idempotent.

    Returns:
        The number of split batch norms. One that the model uses in several places is split once.
    """
    layers = {m for m in model.modules() if isinstance(m, SplitBatchNorm)}
    of: dict[nn.Module, SplitBatchNorm] = {}
    inside = {m for layer in layers for m in (layer.main, layer.auxiliary)}
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if isinstance(child, BatchNorm) and child not in inside:
                if child not in of:
                    of[child] = SplitBatchNorm(child)
                setattr(module, name, of[child])
    return len(layers) + len(of)


def merge_batch_norm(model: nn.Module) -> None:
    """Replace every :class:`SplitBatchNorm` of a model by its layer for clean images, in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, SplitBatchNorm):
                setattr(module, name, child.main)


@contextmanager
def routed(model: nn.Module, branch: Branch) -> Iterator[None]:
    """Select the branch of split batch norm inside the block; no effect on a model without it."""
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
    """The branch in which a layer is trained, by its name in the model."""
    return "adversarial" if name.endswith(".auxiliary") else "clean"
