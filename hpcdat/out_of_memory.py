"""Out-of-memory errors, with advice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hpcdat.config.job import Job
from hpcdat.errors import WorkerError

MESSAGES = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""Parts of errors that torch raises as a plain RuntimeError: the CPU allocator's and CUDA libraries'."""


@contextmanager
def enough_memory(job: Job, batch_size: str) -> Iterator[None]:
    """Turn an out-of-memory error into one that says what to change.

    Args:
        job: resolved.
        batch_size: name of the setting that determines the memory needed.

    Raises:
        WorkerError: out of memory; replaces torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in MESSAGES)):
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
