"""What a series of evaluations decides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdat.evaluation.accuracy import Accuracy
from hpcdat.training.early_stopping import History


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12))
def test_the_best_evaluation_is_kept_and_those_after_it_counted(series):
    history = History()
    for epoch, robust in enumerate(series, start=1):
        history.add(epoch, Accuracy(50, 50, robust))
    best = series.index(max(series)) + 1
    assert (history.best_epoch, history.since) == (best, len(series) - best)
    assert history.best == Accuracy(50, 50, max(series))


@pytest.mark.parametrize("collapse, found", [(0, True), (20, True), (49, True), (51, False), (80, False)])
def test_a_breakdown_below_half_is_overfitting(collapse, found):
    history = History()
    assert not any(history.add_guarded(Accuracy(256, 250, robust)) for robust in (0, 40, 90, 100, 85))
    assert history.add_guarded(Accuracy(256, 250, collapse)) == found
    assert history.guarded == 100


@pytest.mark.parametrize("before, now", [(8, 3), (10, 4), (1, 0)])
def test_chance_is_not_overfitting(before, now):
    history = History()
    history.add_guarded(Accuracy(256, 200, before))
    assert not history.add_guarded(Accuracy(256, 200, now))
