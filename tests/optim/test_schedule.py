"""The learning rate of every epoch."""

from hpcdat.job import Schedule
from hpcdat.optim.schedule import learning_rate


def test_imagenet_schedule_of_the_paper_with_its_extra_warm_up():
    """5 warm-up epochs at (k/5) eta in front of 30, decay after 20, 25 and 28 of those."""
    schedule = Schedule(warmup_epochs=5, decay_epochs=[25, 30, 33])
    rates = [learning_rate(epoch, 0.4, schedule) for epoch in range(35)]
    expected = [0.08, 0.16, 0.24, 0.32, 0.4] + [0.4] * 20 + [0.04] * 5 + [0.004] * 3 + [0.0004] * 2
    assert [round(rate, 12) for rate in rates] == expected


def test_no_warm_up_and_no_decay_is_constant():
    assert {learning_rate(epoch, 0.1, Schedule()) for epoch in range(7)} == {0.1}
