"""A model that runs compiled code on full batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hpcdat.errors import InputError, first_line

COMPILERS = ("torch._dynamo", "torch._inductor")
"""Packages that define the errors of torch.compile; importing them takes seconds."""


class Compiled(nn.Module):
    """A wrapper that runs code compiled for one batch size, and the model itself on any other batch.

    The compiler generates code for every use of the model: without gradients of the weights in the attack,
    with them in training, and for each mode of batch norm and branch. That takes about a minute on a GPU, so
    the short last batch of an epoch, evaluations and guards are not compiled. When the size of the images
    changes, all of it is generated anew.

    Args:
        model: from images to logits; the wrapper shares its parameters and buffers.
        batch_size: images in a full batch.
        backend: of torch.compile.
    """

    def __init__(self, model: nn.Module, batch_size: int, backend: str = "inductor") -> None:
        super().__init__()
        self.model, self.batch_size = model, batch_size
        self._full = torch.compile(model.forward, backend=backend, dynamic=False, fullgraph=True)
        self._shape: torch.Size | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The model's logits (N, classes), up to rounding, of images (N, C, H, W).

        Raises:
            InputError: the compiler cannot compile the model.
        """
        if len(x) != self.batch_size:
            plain: Tensor = self.model(x)
            return plain
        if self._shape not in (None, x.shape):
            # The compiler keeps a limited number of variants; those of the other size are not used now.
            torch.compiler.reset()
        self._shape = x.shape
        try:
            logits: Tensor = self._full(x)
        except Exception as error:
            if not type(error).__module__.startswith(COMPILERS):
                raise
            raise InputError(
                f"model.compiled: torch.compile cannot compile this network: {first_line(error)}: set "
                "model.compiled: false"
            ) from None
        return logits


@contextmanager
def fastest_convolutions(enabled: bool) -> Iterator[None]:
    """Let cuDNN benchmark its algorithms on every new shape inside the block; the setting is restored.

    Args:
        enabled: if False, the setting is not changed.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or enabled
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
