"""The Hadamard rotation of blocks: orthogonal, can be undone, and helps blocks with outliers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import hadamard

from hpcdat.exchange.codecs import Quantized
from hpcdat.exchange.counter_rng import split_key
from hpcdat.exchange.quantizer import Quantizer
from hpcdat.exchange.rotation import rotate, rotate_back
from tests.exchange import oracle

CPU = torch.device("cpu")


def key(number):
    return split_key(number, CPU)


@pytest.mark.parametrize("block", [1, 2, 8, 64, 512])
def test_it_is_the_hadamard_matrix_times_signs(block):
    matrix = rotate(torch.eye(block), block).double().numpy().T
    signs = np.sign(matrix[0])
    assert np.allclose(matrix, hadamard(block) * signs / block**0.5, rtol=1e-6)
    assert block < 64 or 0.3 < (signs > 0).mean() < 0.7


@given(st.integers(1, 300), st.sampled_from([8, 16, 64]), st.integers(1, 3))
def test_it_can_be_undone_and_leaves_an_incomplete_block_alone(count, block, rows):
    x = torch.randn(rows, count, generator=torch.Generator().manual_seed(count))
    rotated, whole = rotate(x, block), count // block * block
    assert rotated.shape == x.shape and torch.equal(rotated[:, whole:], x[:, whole:])
    assert torch.allclose(rotate_back(rotated, block), x, atol=1e-5)
    assert torch.allclose(rotated.norm(dim=1), x.norm(dim=1), rtol=1e-5)
    assert torch.equal(rotated[-1], rotate(x[-1], block)), "rows do not matter"


@given(st.integers(1, 300), st.sampled_from([8, 64]))
def test_numpy_finds_the_same_bits(count, block):
    x = torch.randn(2, count, generator=torch.Generator().manual_seed(count))
    grid = oracle.Grid(8, block, rotation="hadamard")
    assert rotate(x, block).numpy().tobytes() == grid.rotated(x.numpy()).tobytes()
    assert rotate_back(x, block).numpy().tobytes() == grid.back(x.numpy()).tobytes()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_what_is_decoded_is_unbiased(bits):
    """||mean error||^2 is 1/N of the mean ||error||^2 of N draws, and N times as much of a bias alone."""
    count, draws = 1024, 300
    x = torch.randn(1, count, generator=torch.Generator().manual_seed(1))
    codec = Quantized(Quantizer(bits, block=64, rotation="hadamard"))
    errors = torch.stack([codec.decode(codec.encode(x, key(n)), count) - x for n in range(draws)]).double()
    ratio = draws * errors.mean(0).square().sum() / errors.square().sum((1, 2)).mean()
    assert abs(ratio - 1) < 5 * (2 / count) ** 0.5


def test_blocks_with_outliers_lose_less():
    """Student's t of 3 degrees of freedom, as heavy in its tails as gradients are."""
    x = torch.from_numpy(np.random.default_rng(0).standard_t(3, (1, 2**16)).astype(np.float32))
    errors = {}
    for rotation in ("none", "hadamard"):
        codec = Quantized(Quantizer(4, rotation=rotation))
        messages = codec.encode(x, key(1))
        assert messages.shape[1] == codec.message_bytes(2**16) == 2**15 + 4 * 128
        errors[rotation] = (codec.decode(messages, 2**16) - x).square().sum().item()
    assert errors["hadamard"] < 0.5 * errors["none"]


def test_zeros_stay_zeros_and_what_is_not_finite_harms_no_other_block():
    codec = Quantized(Quantizer(4, block=8, rotation="hadamard"))
    x = torch.zeros(1, 28)
    x[0, 10] = torch.nan
    x[0, 16:] = 1.0
    sent = codec.decode(codec.encode(x, key(0)), 28)[0]
    assert (sent[:8] == 0).all() and not sent[8:16].isfinite().any() and sent[16:].isfinite().all()
