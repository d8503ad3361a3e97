"""Advice in out-of-memory errors."""

import pytest
import torch

from hpcdat.config.job_file import read_job
from hpcdat.errors import WorkerError
from hpcdat.out_of_memory import enough_memory
from tests.conftest import DEMO


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_names_the_settings_that_would_help(error):
    job = read_job(DEMO, ["batch_size=4096", "data.image_size=64", "evaluation.batch_size=500"])
    message = r"out of memory: .*\n.*batch_size smaller than 4096.*bfloat16.*64"
    with pytest.raises(WorkerError, match=message), enough_memory(job, "batch_size"):
        raise error
    message = r"evaluation\.batch_size smaller than 500"
    with pytest.raises(WorkerError, match=message), enough_memory(job, "evaluation.batch_size"):
        raise error


def test_other_errors_are_left_alone():
    with pytest.raises(RuntimeError, match="shapes"), enough_memory(read_job(DEMO), "batch_size"):
        raise RuntimeError("shapes do not match")
