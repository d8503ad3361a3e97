"""The quantizer (A5), (A6): unbiased, within its variance bounds, and the same as in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from hpcdat.exchange.codecs import Cast, Quantized, can_compile
from hpcdat.exchange.counter_rng import split_key, uniform
from hpcdat.exchange.protocols import lanes_for
from hpcdat.exchange.quantizer import Quantizer, from_codes
from tests.exchange import oracle

CPU = torch.device("cpu")
BITS = [1, 2, 3, 4, 5, 6, 7, 8, 16]


def key(number):
    return split_key(number * 0x9E3779B97F4A7C15 % 2**64, CPU)


@pytest.fixture(scope="module")
def gradient():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(256, generator=generator) * torch.logspace(-3, 0, 256)


def is_biased(quantizer, x, count):
    """Whether the mean of ``count`` draws deviates from x, at a family-wise error rate of 1 in 10,000.

    A coordinate between two levels is rounded up with the probability of its position there, so the number of
    times is binomial: an exact test for each coordinate, with Bonferroni's correction.
    """
    norms = quantizer.norms(x)
    codes = torch.stack([quantizer.encode(x, norms, key(n)) for n in range(count)]).to(torch.int64)
    size = quantizer.block or len(x)
    place = x.double() / norms.double().repeat_interleave(size)[: len(x)] * quantizer.s + quantizer.s
    below = place.floor()
    ups = (codes - below.to(torch.int64)).sum(0).numpy()
    chance = (place - below).numpy()
    unlikely = 2 * np.minimum(binom.cdf(ups, count, chance), binom.sf(ups - 1, count, chance))
    return bool((unlikely < 1e-4 / len(x)).any())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("norm", ["max", "l2"])
def test_it_is_unbiased(gradient, bits, norm):
    assert not is_biased(Quantizer(bits, norm, block=64), gradient, 3000)


def test_rounding_to_nearest_would_be_found_biased(gradient, monkeypatch):
    """The negative control: the test above can fail."""
    monkeypatch.setattr("hpcdat.exchange.quantizer.uniform", lambda n, key: torch.full((n,), 0.5))
    assert is_biased(Quantizer(4, block=64), gradient, 400)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("norm", ["max", "l2"])
def test_the_variance_is_within_its_bounds(gradient, bits, norm):
    """(step / 2)^2 for each coordinate; min(d / s^2, sqrt(d) / s) ||g||^2 in all with the l2 norm."""
    quantizer = Quantizer(bits, norm, block=None)
    norms = quantizer.norms(gradient)
    sent = [quantizer.decode(quantizer.encode(gradient, norms, key(n)), norms) for n in range(2000)]
    square = ((torch.stack(sent) - gradient).double() ** 2).mean(0)
    step = quantizer.norms(gradient).item() / quantizer.s
    assert (square <= 1.25 * step**2 / 4).all(), "five standard errors above a quarter of a squared step"
    if norm == "l2":
        d, s = len(gradient), quantizer.s
        assert square.sum() <= min(d / s**2, d**0.5 / s) * gradient.double().square().sum()
    assert square.mean() > 0.01 * step**2, "otherwise nothing was rounded"


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    "norm, block", [("max", 64), ("max", 100), ("max", None), ("l2", 64), ("l2", 512), ("l2", 100)]
)
def test_numpy_finds_the_same_bits(bits, norm, block):
    x = torch.randn(3, 333, generator=torch.Generator().manual_seed(bits)) * torch.logspace(-30, 30, 333)
    quantizer, grid = Quantizer(bits, norm, block), oracle.Grid(bits, block, norm=norm)
    seed = 0xFEDCBA9876543210
    sent = quantizer.encode(x, quantizer.norms(x), split_key(seed, CPU))
    assert sent.max() <= quantizer.largest and sent.min() >= 0
    decoded = quantizer.decode(sent, quantizer.norms(x))
    assert decoded.numpy().tobytes() == grid.message(x.numpy(), seed).tobytes()


@pytest.mark.parametrize("bits", BITS)
def test_zero_constant_denormal_and_huge_blocks(bits):
    quantizer = Quantizer(bits, block=8)
    tiny = torch.full((8,), 1e-42)
    x = torch.cat([torch.zeros(8), torch.full((8,), 0.3), -tiny, torch.full((8,), 1e38), torch.randn(3)])
    norms = quantizer.norms(x)
    sent = quantizer.decode(quantizer.encode(x, norms, key(1)), norms)
    assert (sent[:8] == 0).all()
    assert torch.allclose(sent[8:16], x[8:16], rtol=1e-6), "the largest magnitude is on the grid"
    # A denormal step has few digits of its own.
    assert torch.allclose(sent[16:24], x[16:24], rtol=0.25)
    assert torch.allclose(sent[24:32], x[24:32], rtol=1e-6)
    assert sent.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("norm", ["max", "l2"])
def test_what_is_not_finite_stays_so_and_harms_no_other_block(bad, bits, norm):
    codec = Quantized(Quantizer(bits, norm, block=8))
    x = torch.ones(1, 24)
    x[0, 10] = bad
    sent = codec.decode(codec.encode(x, key(0)), 24)[0]
    assert not sent[10].isfinite()
    assert sent[:8].isfinite().all() and sent[16:].isfinite().all()


@pytest.mark.parametrize("bits", BITS)
def test_nan_harms_no_other_block_in_lanes(bits):
    """Words of lanes hold coordinates of several blocks."""
    codec = Quantized(Quantizer(bits, block=8))
    x = torch.ones(24)
    x[10] = torch.nan
    norms, lanes = codec.norms(x), lanes_for(codec.quantizer, 3)
    norms = torch.where(norms.isfinite(), norms, torch.inf)
    sent = codec.from_lanes(3 * codec.to_lanes(x, norms, key(0), lanes), norms, lanes, 24, 3)
    assert torch.allclose(sent[:8], torch.tensor(3.0)) and torch.allclose(sent[16:], torch.tensor(3.0))
    assert not sent[8:16].isfinite().any()


@given(st.integers(1, 200), st.sampled_from([*BITS, "float16", "bfloat16", "float32"]), st.integers(1, 4))
def test_messages_have_the_length_of_message_bytes_and_rows_do_not_matter(count, bits, rows):
    codec = Quantized(Quantizer(bits, block=16)) if isinstance(bits, int) else Cast(getattr(torch, bits))
    x = torch.randn(rows, count, generator=torch.Generator().manual_seed(count))
    messages = codec.encode(x, key(2))
    assert messages.shape == (rows, codec.message_bytes(count)) and messages.dtype == torch.uint8
    numbers = codec.decode(messages, count)
    total = numbers[0].clone()
    for row in numbers[1:]:
        total = total + row
    assert torch.equal(codec.decode_sum(messages, count), total)
    for row in range(rows):
        assert torch.equal(codec.decode(messages[row : row + 1], count)[0], numbers[row])


@pytest.mark.parametrize("rows", [1, 3])
def test_a_block_larger_than_a_message_is_not_filled_up(rows, monkeypatch):
    """As many random numbers are drawn as there are coordinates, and one block has the codes of no blocks."""
    drawn = []

    def counted(count, key):
        drawn.append(count)
        return uniform(count, key)

    monkeypatch.setattr("hpcdat.exchange.quantizer.uniform", counted)
    x = torch.randn(rows, 300, generator=torch.Generator().manual_seed(0))
    codec = Quantized(Quantizer(8, block=10_000_000))
    message = codec.encode(x, key(6))
    assert drawn == [rows * 300] and message.shape == (rows, 4 + 300)
    whole = Quantized(Quantizer(8, block=None))
    assert torch.equal(message[:1], whole.encode(x[:1], key(6)))
    assert torch.allclose(codec.decode(message, 300), x, atol=x.abs().max().item() / 127)


def test_error_at_8_bits_of_gaussian_data():
    x = torch.randn(2**20, generator=torch.Generator().manual_seed(0))
    quantizer = Quantizer(8)
    sent = quantizer.decode(quantizer.encode(x, quantizer.norms(x), key(3)), quantizer.norms(x))
    assert (sent - x).norm() / x.norm() < 0.011


def test_error_at_8_bits_of_gaussian_data_with_one_l2_norm_for_all():
    """A number is far below the first level: error^2 = sqrt(2 d / pi) / s - 1 in place of 0.011^2."""
    d = 2**20
    x = torch.randn(d, generator=torch.Generator().manual_seed(0))
    quantizer = Quantizer(8, "l2", block=None)
    sent = quantizer.decode(quantizer.encode(x, quantizer.norms(x), key(3)), quantizer.norms(x))
    expected = ((2 * d / np.pi) ** 0.5 / 127 - 1) ** 0.5
    assert (sent - x).norm() / x.norm() == pytest.approx(expected, rel=0.02) and expected > 2


def test_the_sum_of_codes_is_the_code_of_the_sum_also_at_the_ends_of_the_grid():
    norms, s = torch.tensor([2.0]), 127.0
    codes = torch.tensor([[0, 254, 127, 254, 0], [0, 254, 127, 0, 0], [0, 254, 127, 254, 254]])
    together = from_codes(codes.sum(0), norms, s, workers=3)
    assert torch.allclose(together, sum(from_codes(row, norms, s, 1) for row in codes), rtol=1e-6)


def test_random_numbers_are_uniform_and_streams_are_unlike():
    a, b = uniform(2**20, key(0)).double(), uniform(2**20, key(1)).double()
    assert a.min() >= 0 and a.max() < 1
    counts = torch.histc(a.float(), 1024, 0, 1)
    # Chi-squared with 1023 degrees of freedom: mean 1023, standard deviation 45.
    assert abs(((counts - 1024) ** 2 / 1024).sum() - 1023) < 5 * 45
    for x, y in ((a, b), (a[1:], a[:-1]), (a[512:], a[:-512])):
        correlation = ((x - 0.5) * (y - 0.5)).mean() * 12
        assert abs(correlation) < 5 / 2**10
    assert np.array_equal(uniform(1000, split_key(77, CPU)).numpy(), oracle.uniform(1000, 77))


@pytest.mark.skipif(not can_compile(), reason="torch.compile finds no C++ compiler here")
@pytest.mark.full
def test_compiled_codecs_give_the_same_bytes():
    eager, compiled = (Quantized(Quantizer(4), compiled=c) for c in (False, True))
    for count in (3000, 5000):
        x = torch.randn(2, count, generator=torch.Generator().manual_seed(count))
        messages = eager.encode(x, key(4))
        assert torch.equal(compiled.encode(x, key(4)), messages)
        assert torch.equal(compiled.decode(messages, count), eager.decode(messages, count))
        assert torch.equal(compiled.decode_sum(messages, count), eager.decode_sum(messages, count))


@pytest.mark.skipif(not can_compile(), reason="needs a C++ compiler")
@pytest.mark.full
def test_compiled_lanes_for_several_numbers_of_workers_exist_in_one_process():
    """A forecast for several numbers of workers makes a plan for each."""
    x = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    quantizer = Quantizer(8)
    compiled, eager = (Quantized(quantizer, compiled=c) for c in (True, False))
    norms = eager.norms(x)
    for workers in (3, 6, 20):
        lanes = lanes_for(quantizer, workers)
        words = compiled.to_lanes(x, norms, key(3), lanes)
        assert torch.equal(words, eager.to_lanes(x, norms, key(3), lanes))
        assert torch.equal(
            compiled.from_lanes(words, norms, lanes, 3000, workers),
            eager.from_lanes(words, norms, lanes, 3000, workers),
        )
