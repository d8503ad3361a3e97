"""Memory that does not suffice, and what would help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hpcdat.config.job import Job
from hpcdat.errors import WorkerError

SIGNS = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""Of what torch has no error of its own for: the CPU's allocator, and libraries that allocate themselves."""


@contextmanager
def enough_memory(job: Job, batch_size: str) -> Iterator[None]:
    """Say what would help where memory does not suffice.

    Args:
        job: resolved.
        batch_size: the setting that the work at hand needs memory for.

    Raises:
        WorkerError: in place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)):
            raise
        section, _, key = batch_size.rpartition(".")
        value = getattr(getattr(job, section) if section else job, key)
        helpful = [f"a {batch_size} smaller than {value}"]
        if job.model.precision == "float32":
            helpful.append("model.precision: bfloat16")
        if job.data.image_size > 32:
            helpful.append(f"a data.image_size smaller than {job.data.image_size}")
        raise WorkerError(
            f"out of memory: {str(error).splitlines()[0]}\nWhat would help: {', or '.join(helpful)}"
        ) from None
