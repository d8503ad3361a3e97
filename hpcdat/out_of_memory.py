"""Out-of-memory errors, with advice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.errors import WorkerError, first_line

OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""Texts by which to recognise out-of-memory errors that torch raises as a plain RuntimeError: those of the
CPU allocator and of CUDA's libraries."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch raises an error because memory runs out, of a GPU or of the machine."""
    recognised = any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)
    return isinstance(error, torch.OutOfMemoryError) or recognised


@contextmanager
def enough_memory(job: EvaluationJob, batch_size: str) -> Iterator[None]:
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
        if not is_out_of_memory(error):
            raise
        section, _, key = batch_size.rpartition(".")
        value = getattr(getattr(job, section) if section else job, key)
        helpful = [f"a {batch_size} smaller than {value}"]
        if job.model.precision == "float32":
            helpful.append("model.precision: bfloat16")
        if job.data.image_size > 32:
            helpful.append(f"a data.image_size smaller than {job.data.image_size}")
        raise WorkerError(
            f"out of memory: {first_line(error)}\nWhat would help: {', or '.join(helpful)}"
        ) from None
