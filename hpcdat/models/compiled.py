"""A network whose full batches pass code that torch.compile made for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Compiled(nn.Module):
    """A model with compiled code for batches of one size; any other passes it as it is.

    The compiler makes code for every way the model is used: in the attack without gradients of the weights,
    in training with them, by mode of batch norm and branch. That takes about a minute on a GPU, so the short
    last batch of an epoch, evaluations and guards are left to the model itself.

    Args:
        model: from images to logits; its weights and its state stay where they are.
        batch_size: images of a full batch.
        backend: of torch.compile.
    """

    def __init__(self, model: nn.Module, batch_size: int, backend: str = "inductor") -> None:
        super().__init__()
        self.model, self.batch_size = model, batch_size
        self._full = torch.compile(model.forward, backend=backend, dynamic=False, fullgraph=True)

    def forward(self, x: Tensor) -> Tensor:
        """The model's logits (N, classes) of images (N, C, H, W), but for rounding."""
        logits: Tensor = self._full(x) if len(x) == self.batch_size else self.model(x)
        return logits


@contextmanager
def fastest_convolutions(wanted: bool) -> Iterator[None]:
    """Have cuDNN try its algorithms on every new shape, which pays where shapes come again and again.

    Args:
        wanted: whether it shall; if not, it goes on as it does.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or wanted
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
