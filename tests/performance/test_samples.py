"""Samples of a step's time: when they agree, and what is said when they never do."""

from itertools import chain, cycle, repeat

import pytest

from hpcdat.errors import WorkerError
from hpcdat.performance.samples import (
    SAMPLES,
    Sample,
    Spread,
    longest_wait,
    seconds_waited,
    take_until_agreed,
)


class Machine:
    """Takes samples of given seconds, each of which lasts ``lasting`` seconds of its clock."""

    def __init__(self, steps, lasting=0.3, waiting=0.0):
        self.steps, self.lasting, self.waiting = iter(steps), lasting, waiting
        self.time, self.taken = 100.0, 0

    def take(self):
        self.time += self.lasting
        self.taken += 1
        return Sample(next(self.steps), 0.0, 0.0, self.waiting)

    def measure(self, own_cores=True):
        return take_until_agreed(self.take, lambda: None, own_cores=own_cores, clock=lambda: self.time)


def test_the_spread_is_median_and_interquartile_range():
    spread = Spread.of([Sample(step, 0, 0) for step in (0.4, 0.1, 0.3, 0.2, 0.9)])
    assert (spread.count, spread.median) == (5, 0.3)
    assert spread.interquartile == pytest.approx(0.2) and spread.relative == pytest.approx(2 / 3)
    assert spread.describe() == (
        "300 ms a step, the median of 5 samples with an interquartile range of 200 ms (67 %)"
    )
    assert "1.5 s a step" in Spread.of([Sample(1.5, 0, 0)] * 3).describe()


def test_equal_samples_end_the_measurement():
    machine = Machine(repeat(0.07))
    assert len(machine.measure()) == machine.taken == SAMPLES


def test_samples_from_before_the_machine_came_to_rest_do_not_count():
    machine = Machine(chain([0.9, 0.3, 0.6, 0.2, 0.8, 0.4], repeat(0.1)))
    assert Spread.of(machine.measure()).median == 0.1
    assert machine.taken < 6 + SAMPLES, "an outlier or two are left"


def test_samples_that_never_agree_are_an_error_with_their_spread():
    machine = Machine(cycle([0.1, 0.2, 0.3]))
    with pytest.raises(WorkerError, match=r"too noisy to time a step: 200 ms a .* range of 200 ms \(100 %"):
        machine.measure()
    assert machine.taken == 101, "for thirty seconds"


def test_a_program_that_takes_a_steady_part_of_the_cores_is_noticed():
    with pytest.raises(WorkerError, match=r"for 40 % of the time .* a thread waited for a core"):
        Machine(repeat(0.1), waiting=0.4).measure()
    assert Machine(repeat(0.1), waiting=0.4).measure(own_cores=False)


def test_few_samples_of_a_long_step_are_taken():
    machine = Machine(repeat(60.0), lasting=60.0)
    assert len(machine.measure()) == machine.taken == 3
    machine = Machine(cycle([30.0, 60.0, 90.0]), lasting=60.0)
    with pytest.raises(WorkerError, match="too noisy"):
        machine.measure()
    assert machine.taken == 6


def test_a_poll_between_samples_ends_the_measurement():
    def poll():
        raise KeyboardInterrupt

    machine = Machine(repeat(0.1))
    with pytest.raises(KeyboardInterrupt):
        take_until_agreed(machine.take, poll, own_cores=True)
    assert machine.taken == 1


def test_waiting_is_that_of_the_thread_that_waited_most(tmp_path):
    def write(**texts):
        for thread, text in texts.items():
            (tmp_path / thread).mkdir(exist_ok=True)
            (tmp_path / thread / "schedstat").write_text(text)

    write(one="9 2000000000 3\n", two="9 500000000 3\n", ended="", other="x y\n")
    before = seconds_waited(tmp_path)
    assert before == pytest.approx({"one": 2.0, "two": 0.5})
    write(one="9 2100000000 4\n", two="9 900000000 5\n", new="9 300000000 5\n")
    assert longest_wait(before, seconds_waited(tmp_path)) == pytest.approx(0.4)
    assert longest_wait(before, seconds_waited(tmp_path / "nowhere")) == 0.0
