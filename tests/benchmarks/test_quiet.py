"""Whether machines are quiet: what other processes compute."""

import os
import subprocess
import sys
from importlib import import_module

import pytest

from hpcdat.performance.benchmark_file import Row
from tests.conftest import CHECKOUT


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")
    return import_module("quiet")


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
    steady, unsteady, short = (
        Row(parameters={}, seconds=seconds) for seconds in ([1.0] * 20, [1.0, 2.0] * 10, [1.0, 1.0])
    )
    assert quiet.describe([*one, other], [steady]).startswith(
        "not quiet: other processes used 10% of the processor time of node1 (at most 5%"
    )
    assert quiet.describe([other], [steady, unsteady]).startswith("not steady: ")
    assert "of 2 rows 1 are steady" in quiet.describe([other], [steady, unsteady])
    assert quiet.describe([other], [steady]).startswith("quiet: ")
    assert "too few repetitions" in quiet.describe([other], [short])


def test_processor_time_is_that_of_processes_and_other_machines_without_interrupts(quiet):
    ticks = os.sysconf("SC_CLK_TCK")
    stat = f"cpu  {ticks} {2 * ticks} {4 * ticks} 77 77 77 77 {8 * ticks} 0 0\ncpu0 1 1 1 1 1 1 1 1\n"
    assert quiet.seconds_computed(stat) == 15


def test_processes_that_have_ended_count_as_the_one_that_started_them(quiet):
    alone, family = quiet.Processors(), quiet.Processors(children=True)
    busy = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", busy], check=True)
    assert alone.report()["own"] < 0.4 < family.report()["own"]
