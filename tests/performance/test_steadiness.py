"""Which rows another run should agree with: intervals of medians, and the verdict on simulated runs."""

import numpy as np
import pytest

from hpcdat.performance.benchmark_file import Row
from hpcdat.performance.steadiness import AGREEMENT, CONFIDENCE, half_width, interval_of_median, is_steady


def row(seconds, per_round=1):
    return Row(parameters={}, seconds=list(seconds), per_round=per_round)


def test_the_interval_of_a_median_is_that_of_the_binomial_distribution():
    """Tables of the sign test: of 20 samples the 6th and the 15th, of six the first and the last."""
    assert interval_of_median(list(range(1, 21))[::-1]) == (6, 15)
    assert interval_of_median([6, 1, 3, 2, 5, 4]) == (1, 6)
    assert interval_of_median([1, 2, 3, 4, 5]) is None
    samples = row([0.9] * 6 + [1.0] * 8 + [1.1] * 6)
    assert half_width(samples) == pytest.approx(0.1) and not is_steady(samples)
    assert is_steady(row([0.95] * 6 + [1.0] * 8 + [1.05] * 6))
    assert is_steady(row([1.0] * 5)) is None and is_steady(row([0.0] * 6)) is False


def test_the_samples_of_a_row_are_the_medians_of_its_rounds():
    found = row([1.0, 3.0, 2.0, 9.0, 8.0, 7.0, 5.0], per_round=3)
    assert found.medians_of_rounds == [2.0, 8.0, 5.0]
    # 20 repetitions of a state that stays for five each are four samples, too few to tell.
    assert is_steady(row([1.0] * 10 + [1.01] * 10)) and is_steady(row([1.0] * 10 + [1.01] * 10, 5)) is None


def test_a_row_whose_rounds_differ_is_not_steady():
    """Most repetitions of a round wait for one cycle of Horovod, or most for two."""
    half = [1e-3] * 4 + [2e-3] * 4
    assert not is_steady(row(half * 5, per_round=4))
    few = [2e-3] * 4 + [1e-3] * 36
    assert is_steady(row(few, per_round=4)), "what one of ten rounds has in common does not move the median"


def test_a_row_that_drifts_is_not_steady():
    assert not is_steady(row(np.linspace(1.0, 1.5, 20))) and is_steady(row(np.linspace(1.0, 1.05, 20)))


def shares(draw, runs=1000):
    """Of simulated pairs of runs: the share called steady, of those that are and yet differ, that differ."""
    pairs = [[row(draw()) for _ in range(2)] for _ in range(runs)]
    steady = [is_steady(one) for one, _ in pairs]
    differ = [abs(two.median / one.median - 1) > AGREEMENT for one, two in pairs]
    return np.mean(steady), np.mean(np.logical_and(steady, differ)), np.mean(differ)


def test_few_rows_are_called_steady_and_differ_when_they_are_measured_again():
    """Times with a long tail, as of a disturbed machine: what the criterion promises, by simulation."""
    numbers = np.random.default_rng(0)
    found = {
        spread: shares(lambda spread=spread: 1 + numbers.exponential(spread, 20))
        for spread in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 1.0)
    }
    assert all(wrong <= 1 - CONFIDENCE for _, wrong, _ in found.values()), found
    # It is neither always nor never fulfilled.
    assert found[0.05][0] == 1 and found[1.0][0] == 0 and found[1.0][2] > 0.3


def test_the_same_holds_for_rounds_in_one_of_two_states():
    """Each round is in one of two states, the slower twice as slow, with a probability of its own."""
    numbers = np.random.default_rng(0)
    found = {
        slow: shares(lambda slow=slow: 1 + (numbers.random(20) < slow) + numbers.normal(0, 0.01, 20))
        for slow in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.95)
    }
    assert all(wrong <= 1 - CONFIDENCE for _, wrong, _ in found.values()), found
    assert found[0.05][0] > 0.9 and found[0.5][0] < 0.1 and found[0.5][2] > 0.3
