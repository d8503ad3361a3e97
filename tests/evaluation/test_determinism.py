"""Settings of deterministic numerics, and their restoration."""

import pytest
import torch

from hpcdat.evaluation.determinism import deterministic


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 3])
def test_on_a_cpu_one_thread_computes_and_idle_cores_are_mentioned(threads):
    torch.set_num_threads(threads)
    lines = []
    with pytest.raises(KeyboardInterrupt), deterministic(torch.device("cpu"), lines.append):
        assert torch.get_num_threads() == 1
        raise KeyboardInterrupt
    assert torch.get_num_threads() == threads
    assert len(lines) == (threads > 1) and all("start 3 times as many workers" in line for line in lines)


def test_on_a_gpu_convolutions_are_exact_and_settings_are_restored():
    """The settings are those of this process, with or without a GPU."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul

    def settings():
        return cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32

    before = settings()
    with deterministic(torch.device("cuda"), print):
        assert settings() == (False, True, False, False)
    assert settings() == before != (False, True, False, False)
