"""The fake GPU notices what makes the host wait for a GPU, and tensors of the CPU."""

import numpy as np
import pytest
import torch

from tests.fake_cuda.backward import gradients_of
from tests.fake_cuda.gpu import CUDA

WAITING = {
    "item": lambda x: x.sum().item(),
    "tolist": lambda x: x.tolist(),
    "number": lambda x: bool((x > 0).all()),
    "number ": lambda x: int(x.sum()),
    "mask": lambda x: x[x > 0],
    "mask ": lambda x: x.__setitem__(x > 0, torch.ones(4, device=CUDA)),
    "copy to the host": lambda x: x.cpu(),
    "copy to the host ": lambda x: torch.zeros(4).copy_(x),
    "copy to the device": lambda x: torch.tensor([1.0], device=CUDA),
    "copy to the device ": lambda x: x.new_tensor([1.0]),
    "copy to the device  ": lambda x: torch.from_numpy(np.zeros(4)).to(CUDA),
    "copy to the device   ": lambda x: x[0].copy_(torch.zeros(())),
    "copy to the device    ": lambda x: torch._foreach_copy_([x], [torch.zeros(4)]),
    "equal": lambda x: torch.equal(x, x),
    "synchronize": lambda x: torch.cuda.synchronize(),
}
"""What waits, by the operation under which it is recorded; spaces make the names differ."""


@pytest.mark.parametrize("name", WAITING)
def test_waits_are_recorded(gpu, name):
    x = torch.rand(4, device=CUDA)
    assert not gpu.waits
    WAITING[name](x)
    assert gpu.waits == {f"the test: {name.strip()}": 1}


@pytest.mark.parametrize(
    "name, operation",
    [
        ("nonzero", lambda x: x.nonzero()),
        ("bincount", lambda x: torch.bincount(x.long())),
        ("masked_select", lambda x: x.masked_select(x > 0)),
        ("repeat_interleave", lambda x: x.repeat_interleave(x.long())),
    ],
)
def test_results_whose_size_is_unknown_are_recorded_and_refused(gpu, name, operation):
    with pytest.raises(NotImplementedError, match=name):
        operation(torch.rand(4, device=CUDA))
    assert gpu.waits == {f"the test: {name}": 1}


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x + torch.rand(4),
        lambda x: torch.cat([x, torch.rand(4)]),
        lambda x: torch.nn.functional.linear(x, torch.rand(2, 4)),
    ],
)
def test_a_tensor_of_the_cpu_must_not_meet_one_of_the_gpu(gpu, operation):
    with pytest.raises(Exception, match=r"devices|device type"):
        operation(torch.rand(4, device=CUDA))


def test_a_generator_of_the_cpu_draws_no_numbers_for_the_gpu(gpu):
    with pytest.raises(AssertionError, match="generator"):
        torch.rand(4, device=CUDA, generator=torch.Generator())
    torch.rand(4, device=CUDA, generator=torch.Generator(CUDA))


def test_what_does_not_wait_is_not_recorded(gpu):
    x = torch.rand(4, device=CUDA)
    torch.tensor([1.0]).to(CUDA, non_blocking=True)
    x[0].fill_(1)
    torch.where(x > 0, x, 1.0)
    x[torch.arange(2, device=CUDA)].sum().add_(1)
    assert not gpu.waits


def test_the_backward_pass_gives_autograds_gradients():
    # On the CPU, with numbers: the fake GPU has none.
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.ReLU(), torch.nn.Flatten()
    )
    x, weight = torch.rand(4, 1, 5, 5, requires_grad=True), torch.rand(27, requires_grad=True)
    y = layers(x)
    loss = (torch.cat([y, y * weight], 1).logsumexp(1) + weight.sum() * y.mean()).sum()
    leaves = [x, weight, *layers.parameters()]
    expected = torch.autograd.grad(loss, leaves, retain_graph=True)
    found = gradients_of(loss, leaves)
    torch.testing.assert_close([found[leaf] for leaf in leaves], list(expected))
