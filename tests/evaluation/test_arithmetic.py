"""How a process that measures rounds its sums."""

import pytest
import torch

from hpcdat.evaluation.arithmetic import round_alike


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads, advice", [(1, ""), (3, "3 times as many workers (-np) use all cores")])
def test_on_a_cpu_it_has_one_thread_and_says_what_lies_idle(threads, advice):
    torch.set_num_threads(threads)
    assert round_alike(torch.device("cpu")).endswith(advice)
    assert torch.get_num_threads() == 1
    assert round_alike(torch.device("cpu")) == ""
