"""What a series of evaluations decides."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdat.commands.train import train
from hpcdat.config.job_file import read_job
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.evaluation.accuracy import Accuracy
from hpcdat.storage.run_folder import RunFolder
from hpcdat.training import validation
from hpcdat.training.early_stopping import History
from tests.conftest import DEMO, Never


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


def test_best_weights_on_images_held_out_are_the_result_after_all_epochs(tmp_path, monkeypatch):
    """Rice et al. 2020: without patience training goes on; evaluations come after an epoch's seconds."""
    robust = iter([10, 30, 20, 5])
    monkeypatch.setattr(validation, "measure_accuracy", lambda *_: Accuracy(50, 50, next(robust)))
    short = ["epochs=3", "attack.steps=1", "data.train_images=100", "schedule.decay_epochs=[]"]
    chosen = ["evaluation.every=1", "early_stopping.best_weights=true", "early_stopping.held_out=50"]
    job = read_job(DEMO, [f"run_dir={tmp_path / 'run'}", *short, *chosen])
    result, folder = train(job, SingleProcess(), Never()), RunFolder(tmp_path / "run")
    assert result.ra == 0.1 and result.epoch == 2
    assert folder.checkpoint_of_result(job).epoch == 2 and folder.newest_checkpoint().epoch == 3
    lines = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
    lines = [line for line in lines if line["event"] in ("epoch", "evaluation")]
    order = [(line["event"], line["epoch"], line.get("held_out")) for line in lines]
    assert order == [
        *(("epoch", 1, None), ("evaluation", 1, True)),
        *(("epoch", 2, None), ("evaluation", 2, True)),
        *(("epoch", 3, None), ("evaluation", 3, True), ("evaluation", 2, False)),
    ]
    assert {line["images"] for line in lines if line["event"] == "epoch"} == {50}


def test_the_best_weights_are_the_result_where_the_guard_ends_training_at_later_ones(tmp_path, monkeypatch):
    """Evaluated after epoch 2 only; training collapses in epoch 4, and the guard restores epoch 3."""
    guarded = iter([100, 100, 100, 0])

    def measure(pgd, *_):
        return Accuracy(256, 250, next(guarded)) if "training" in pgd.name else Accuracy(50, 50, 30)

    monkeypatch.setattr(validation, "measure_accuracy", measure)
    short = [
        "method=dat-fgsm",
        "attack.steps=1",
        "epochs=5",
        "data.train_images=100",
        "schedule.decay_epochs=[]",
    ]
    chosen = ["evaluation.every=2", "early_stopping.best_weights=true", "early_stopping.held_out=50"]
    job = read_job(DEMO, [f"run_dir={tmp_path / 'run'}", *short, *chosen])
    result, folder = train(job, SingleProcess(), Never()), RunFolder(tmp_path / "run")
    assert [line["epoch"] for line in folder.metrics("overfitting")] == [4]
    assert result.epoch == folder.checkpoint_of_result(job).epoch == 2
