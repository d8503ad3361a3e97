"""Full precision of float32 on GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_tf32() -> Iterator[None]:
    """Inside the block, convolutions and matrix products of float32 on GPUs are not computed in TF32.

    TF32 rounds their inputs to 11 significant bits. torch has only global settings for it; they are restored
    afterwards, also after an exception.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32, matmul.allow_tf32 = False, False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
