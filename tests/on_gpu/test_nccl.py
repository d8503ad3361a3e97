"""The torch engine's collectives over NCCL, by a single rank: one GPU holds no second one."""

from contextlib import closing

import pytest
import torch
import torch.distributed as dist

from hpcdat.config.sections import Exchange
from hpcdat.distributed import torch_communicator
from hpcdat.distributed.launcher import Launched
from hpcdat.distributed.torch_communicator import TorchCommunicator
from hpcdat.exchange.gradient_exchange import GradientExchange

pytestmark = pytest.mark.gpu
COUNT = 5000
EXCHANGES = [
    {"protocol": "ring", "bits": 8, "lane_bits": 16},
    {"protocol": "allgather", "bits": 8},
    {"protocol": "parameter_server", "bits": 8, "two_sided": True},
    {"protocol": "sharded_server", "bits": 4, "two_sided": True, "error_feedback": True},
    {"protocol": "allgather", "bits": "float16"},
]


@pytest.fixture
def alone(device, monkeypatch):
    monkeypatch.setattr(torch_communicator, "connect_store", lambda *given: dist.HashStore())
    workers = TorchCommunicator(Launched("torchrun"), 60)
    yield workers
    workers.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int16, torch.uint8], ids=str)
def test_every_collective_returns_what_was_sent(device, alone, dtype):
    row = torch.arange(COUNT, device=device).to(dtype)
    sent = row.clone()
    if dtype != torch.int16:  # No sum is of this type.
        assert alone.iall_reduce([row], "sum").wait()[0].equal(sent)
    assert alone.iall_gather(row, "gather").wait().equal(sent[None])
    assert alone.iall_to_all(row[None], "to all").wait().equal(sent[None])
    assert alone.iall_to_all_v(row[None], [1], "counted").wait().equal(sent[None])
    assert alone.ibroadcast(row, "broadcast").wait().equal(sent)
    assert alone.igather(row, "to rank 0").wait().equal(sent[None])
    assert alone.channel("own").iall_gather(row, "in a channel").wait().equal(sent[None])
    assert (alone._group._nccl is not None) == (device.type == "cuda")


@pytest.mark.parametrize("settings", EXCHANGES, ids=str)
def test_an_exchange_gives_the_sums_of_the_cpu(device, alone, settings):
    gradients = torch.randn(2, 100, 50, generator=torch.Generator().manual_seed(0))
    sums = []
    for where in (device, torch.device("cpu")):
        parameters = [torch.nn.Parameter(torch.zeros(100, 50, device=where)) for _ in gradients]
        named = [(str(number), p) for number, p in enumerate(parameters)]
        with closing(GradientExchange(alone, named, Exchange(**settings), seed=1)) as exchange:
            exchange.begin(0, 0)
            torch.stack(
                [(p * g.to(where)).sum() for p, g in zip(parameters, gradients, strict=True)]
            ).sum().backward()
            scalars = torch.tensor([2.0, 3.0], device=where)
            exchange.finish(scalars)
        sums.append(torch.stack([p.grad.cpu() for p in parameters]))
        assert scalars.tolist() == [2, 3]
    assert sums[0].equal(sums[1])
    assert (sums[1] - gradients).norm() < 0.2 * gradients.norm()
