"""Whether benchmarks can be repeated: intervals of medians, and what other processes compute."""

import os
from importlib import import_module

import numpy as np
import pytest

from tests.conftest import CHECKOUT


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")
    return import_module("quiet")


def test_the_interval_of_a_median_is_that_of_the_binomial_distribution(quiet):
    """Tables of the sign test: of 20 samples the 6th and the 15th, of six the first and the last."""
    assert quiet.interval_of_median(list(range(1, 21))[::-1]) == (6, 15)
    assert quiet.interval_of_median([6, 1, 3, 2, 5, 4]) == (1, 6)
    assert quiet.interval_of_median([1, 2, 3, 4, 5]) is None
    samples = [0.9] * 6 + [1.0] * 8 + [1.1] * 6
    assert quiet.half_width(samples) == pytest.approx(0.1) and not quiet.is_steady(samples)
    assert quiet.is_steady([0.95] * 6 + [1.0] * 8 + [1.05] * 6)
    assert not quiet.is_steady([1.0] * 5)


def test_what_others_compute_is_what_the_workers_of_a_machine_do_not(quiet):
    def report(machine, host, own, computed):
        return {
            "machine": machine,
            "host": host,
            "cores": 4,
            "seconds": 10.0,
            "own": own,
            "computed": computed,
        }

    # Two emulated nodes on one machine.
    one = [report("a", "node1", 8.0, 21.0), report("a", "node2", 9.0, 21.0)]
    other = report("b", "node3", 5.0, 5.0)
    assert quiet.used_by_others([*one, other]) == {"node1": 0.1, "node3": 0.0}
    steady, unsteady = [1.0] * 20, [1.0, 2.0] * 10
    assert quiet.describe([*one, other], [steady]).startswith(
        "not quiet: other processes used 10% of the processor time of node1 (at most 5%"
    )
    assert quiet.describe([other], [steady, unsteady]).startswith("not steady: ")
    assert "of 2 rows 1 are steady" in quiet.describe([other], [steady, unsteady])
    assert quiet.describe([other], [steady]).startswith("quiet: ")
    assert "too few repetitions" in quiet.describe([other], [[1.0, 1.0]])


def test_what_was_used_in_several_operations_is_added(quiet):
    one = {"machine": "a", "host": "node1", "cores": 4, "seconds": 1.0, "own": 2.0, "computed": 3.0}
    assert quiet.added([one, one | {"own": 0.5}]) == one | {"seconds": 2.0, "own": 2.5, "computed": 6.0}


def test_processor_time_is_that_of_processes_and_other_machines_without_interrupts(quiet):
    ticks = os.sysconf("SC_CLK_TCK")
    stat = f"cpu  {ticks} {2 * ticks} {4 * ticks} 77 77 77 77 {8 * ticks} 0 0\ncpu0 1 1 1 1 1 1 1 1\n"
    assert quiet.seconds_computed(stat) == 15


def test_few_rows_are_called_steady_and_differ_when_they_are_measured_again(quiet):
    """Times with a long tail, as of a disturbed machine: what the criterion promises, by simulation."""
    numbers = np.random.default_rng(0)
    shares = {}
    for spread in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 1.0):
        pairs = [[1 + numbers.exponential(spread, 20) for _ in range(2)] for _ in range(1000)]
        steady = [quiet.is_steady(list(one)) for one, _ in pairs]
        differ = [abs(np.median(two) / np.median(one) - 1) > quiet.AGREEMENT for one, two in pairs]
        shares[spread] = (np.mean(steady), np.mean(np.logical_and(steady, differ)), np.mean(differ))
    assert all(wrong <= 1 - quiet.CONFIDENCE for _, wrong, _ in shares.values()), shares
    # It is neither always nor never fulfilled.
    assert shares[0.05][0] == 1 and shares[1.0][0] == 0 and shares[1.0][2] > 0.3
