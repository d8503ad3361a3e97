"""Correlated random numbers of M workers: each is uniform, and the errors of a sum cancel."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdat.distributed.loopback import loopback
from hpcdat.exchange.codecs import Quantized, can_compile
from hpcdat.exchange.counter_rng import correlated_key, place_of, split_key, uniform
from hpcdat.exchange.protocols import Draw
from hpcdat.exchange.quantizer import Quantizer
from hpcdat.seeds import derive
from tests.exchange import oracle
from tests.exchange.test_quantizer import is_biased

CPU = torch.device("cpu")
KEYS = st.integers(0, 2**64 - 1)


def keys_of(workers, number=0):
    """The workers' keys in one step."""
    return [Draw(3, 0, number, 0, CPU).correlated_key(rank) for rank in loopback(workers)]


def numbers_of(workers, count, number=0):
    """(M, count), float64."""
    return torch.stack([uniform(count, key) for key in keys_of(workers, number)]).double()


def ups(fractions, number=0, key_of=keys_of):
    """How many of M workers round up, for fractions (M, n): (n,)."""
    return torch.stack(
        [uniform(len(f), key) < f for f, key in zip(fractions, key_of(len(fractions), number), strict=True)]
    ).sum(0)


@pytest.mark.parametrize("workers", [1, 2, 3, 6, 36])
def test_every_worker_has_uniform_numbers_and_every_stratum_one_of_them(workers):
    numbers = numbers_of(workers, 2**16)
    for own in numbers:
        counts = torch.histc(own.float(), 256, 0, 1)
        # Chi-squared with 255 degrees of freedom: mean 255, standard deviation 22.6.
        assert abs(((counts - 256) ** 2 / 256).sum() - 255) < 5 * 22.6
    strata = torch.arange(workers)[:, None] / workers
    ordered = numbers.sort(0).values
    # Float32 may round the largest number of a stratum up to the next one.
    assert (ordered >= strata).all() and (ordered <= strata + 1 / workers + 2**-24).all()


@given(st.integers(1, 300), st.integers(1, 40), st.data(), KEYS, KEYS, KEYS)
def test_numpy_finds_the_same_numbers(count, workers, data, own, shift, permutation):
    rank = data.draw(st.integers(0, workers - 1))
    place = place_of(rank, workers, permutation)
    assert place == oracle.place_of(rank, workers, permutation)
    numbers = uniform(count, correlated_key(own, shift, place, workers, CPU))
    assert numbers.numpy().tobytes() == oracle.correlated(count, own, shift, place, workers).tobytes()


@given(st.integers(1, 200), KEYS)
def test_places_are_a_permutation(workers, key):
    assert sorted(place_of(rank, workers, key) for rank in range(workers)) == list(range(workers))


def test_every_permutation_is_as_likely():
    places = [tuple(place_of(rank, 4, derive(0, "test", n)) for rank in range(4)) for n in range(2400)]
    counts = np.unique(places, axis=0, return_counts=True)[1]
    # Chi-squared with 23 degrees of freedom: mean 23, standard deviation 6.8.
    assert len(counts) == 24 and ((counts - 100) ** 2 / 100).sum() < 23 + 5 * 6.8


@given(st.integers(1, 200), st.sampled_from([1, 2, 4, 8, 16]), KEYS, KEYS)
def test_a_single_worker_rounds_as_with_independent_numbers(count, bits, own, shift):
    x = torch.randn(1, count, generator=torch.Generator().manual_seed(count))
    codec = Quantized(Quantizer(bits, block=16))
    alone = codec.encode(x, correlated_key(own, shift, 0, 1, CPU))
    assert torch.equal(alone, codec.encode(x, split_key(own, CPU)))


@pytest.mark.parametrize(("bits", "norm"), [(1, "max"), (4, "max"), (8, "l2")])
def test_each_worker_is_unbiased(bits, norm, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, generator=generator) * torch.logspace(-3, 0, 256)
    rank = loopback(6)[2]
    monkeypatch.setattr(
        "tests.exchange.test_quantizer.key", lambda number: Draw(3, 0, number, 0, CPU).correlated_key(rank)
    )
    assert not is_biased(Quantizer(bits, norm, block=64), x, 1000)


@given(st.integers(1, 40), st.floats(0.01, 0.99), st.integers(0, 1000))
def test_of_equal_fractions_the_sum_is_one_of_the_two_nearest_numbers(workers, fraction, number):
    """M f rounded down or up, so that the error is below 1 step, for any M."""
    expected = workers * np.float32(fraction).item()
    counts = ups(torch.full((workers, 50), fraction), number)
    assert ((counts - expected).abs() < 1 + 1e-4).all()


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.75])
def test_the_variance_of_two_equal_fractions(fraction):
    """Closed form: r (1 - r), r the fraction of 2 f; independent rounding has 2 f (1 - f)."""
    count, r = 2**18, 2 * fraction % 1
    counts = ups(torch.full((2, count), fraction)).double()
    square = (counts - 2 * fraction) ** 2
    bound = 5 * square.std() / count**0.5 + 1e-6
    assert abs(square.mean() - r * (1 - r)) <= bound
    assert square.mean() < 2 * fraction * (1 - fraction) - bound


@pytest.mark.parametrize("workers", [2, 6, 36])
def test_the_variance_of_independent_uniform_fractions(workers):
    """M/12 + 1/(12 M) in place of M/6."""
    count = 2**17
    fractions = torch.rand(workers, count, generator=torch.Generator().manual_seed(0))
    square = (ups(fractions) - fractions.double().sum(0)) ** 2
    expected = workers / 12 + 1 / (12 * workers)
    assert abs(square.mean() - expected) < 5 * square.std() / count**0.5


UNEQUAL = {
    "two workers with gradients": [0.5, 0.5, *[0.0] * 34],
    "half of the workers with gradients": [0.5] * 3 + [0.0] * 3,
    "low and high": [0.1, 0.9, 0.1, 0.9, 0.1],
    "all different": [0.05, 0.2, 0.35, 0.5, 0.65, 0.8],
}


def mean_square(fractions, key_of=keys_of, steps=150, count=500):
    """Mean and standard error of the squared error of a sum, over permutations."""
    matrix = torch.tensor(fractions)[:, None].expand(-1, count)
    expected = matrix.double().sum(0)
    means = torch.tensor(
        [(ups(matrix, n, key_of) - expected).square().mean() for n in range(steps)], dtype=torch.float64
    )
    return means.mean(), means.std() / steps**0.5


@pytest.mark.parametrize("fractions", UNEQUAL.values(), ids=UNEQUAL)
def test_no_fractions_have_a_larger_variance_than_with_independent_rounding(fractions):
    mean, error = mean_square(fractions)
    assert mean <= sum(f * (1 - f) for f in fractions) + 5 * error


def test_without_the_permutation_neighbours_would_err_together():
    """The negative control: with shifts alone the numbers of neighbours are nearly equal."""

    def without(workers, number):
        return [
            correlated_key(derive(rank, "own", number), number, rank, workers, CPU) for rank in range(workers)
        ]

    mean, _ = mean_square(UNEQUAL["two workers with gradients"], without, steps=20)
    assert mean > 1.5 * 2 * 0.25


def test_workers_share_what_they_must_and_steps_nothing():
    keys = keys_of(6)
    assert len({tuple(key[:2].tolist()) for key in keys}) == 6
    assert len({tuple(key[2:4].tolist()) for key in keys}) == 1
    assert sorted(int(key[4]) for key in keys) == list(range(6))
    draws = [Draw(0, 0, 0, 0, CPU), Draw(1, 0, 0, 0, CPU), Draw(0, 1, 0, 0, CPU), Draw(0, 0, 1, 0, CPU)]
    draws.append(Draw(0, 0, 0, 1, CPU))
    rank = loopback(6)[0]
    assert len({tuple(draw.correlated_key(rank)[2:4].tolist()) for draw in draws}) == 5
    assert torch.equal(draws[0].correlated_key(rank), draws[0].correlated_key(rank))


@pytest.mark.skipif(not can_compile(), reason="torch.compile finds no C++ compiler here")
@pytest.mark.full
def test_compiled_codecs_give_the_same_bytes_with_either_key():
    """A server's messages of a two-sided exchange are rounded independently by the same codec."""
    quantizer = Quantizer(4, rounding="correlated", rotation="hadamard")
    eager, compiled = (Quantized(quantizer, compiled=c) for c in (False, True))
    for count in (3000, 5120):
        x = torch.randn(2, count, generator=torch.Generator().manual_seed(count))
        for key in (keys_of(6)[1], split_key(5, CPU), keys_of(36, 2)[7]):
            messages = eager.encode(x, key)
            assert torch.equal(compiled.encode(x, key), messages)
            assert torch.equal(compiled.decode(messages, count), eager.decode(messages, count))
            assert torch.equal(compiled.decode_sum(messages, count), eager.decode_sum(messages, count))
