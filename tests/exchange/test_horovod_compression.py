"""The quantizer as a compressor for Horovod, without workers; see tests/distributed/test_exchange.py."""

from types import SimpleNamespace

import torch

from hpcdat.exchange.horovod_compression import QuantizedSum


def compressor_of(rank):
    """That of one of two workers, whose norms are those of this one."""
    compressor = QuantizedSum(bits=2)
    compressor._hvd = SimpleNamespace(
        rank=lambda: rank, size=lambda: 2, Max=None, allreduce=lambda tensor, op, name: tensor
    )
    return compressor


def test_workers_and_calls_round_the_same_gradient_with_other_random_numbers():
    gradient = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    first, second = compressor_of(0), compressor_of(1)
    words = [compressor.compress(gradient)[0] for compressor in (first, second, first)]
    assert not any(torch.equal(words[one], words[other]) for one, other in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(words[0], compressor_of(0).compress(gradient)[0])
