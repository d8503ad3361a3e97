"""A measurement that is broken off and gone on with."""

import json

import pytest
import torch
from torch import nn

from hpcdat.cluster.workers import Workers
from hpcdat.errors import InputError, Stopped, WorkerError
from hpcdat.evaluation import sharding
from hpcdat.evaluation.measurements import PgdAccuracy, Sweep
from hpcdat.evaluation.outcomes import Outcomes
from hpcdat.evaluation.sharding import Subject, measure
from hpcdat.progress import Progress
from tests.conftest import Never

SMALL = ("evaluation.batch_size=8", "evaluation.eps=0.2", "evaluation.steps=3")


class Counting(PgdAccuracy):
    """Notes which batches are measured, and fails when it has had enough."""

    def __init__(self, subject, enough=None):
        super().__init__(subject.job.evaluation, "linf")
        self.enough, self.numbers = enough, []

    def outcomes(self, model, x, y, seed, number):
        if len(self.numbers) == self.enough:
            raise KeyboardInterrupt
        self.numbers.append(number)
        return super().outcomes(model, x, y, seed, number)


def measured(measurement, subject, images, stop=None):
    return measure(measurement, subject, images, Workers(), Progress(shown=False), stop or Never())


def test_only_what_is_missing_is_done_and_the_end_is_the_same(load, tmp_path):
    subject, images = load(*SMALL)
    whole = measured(Counting(subject), subject, images).to_json()
    elsewhere = Subject(subject.model, subject.job, tmp_path / "elsewhere")
    with pytest.raises(KeyboardInterrupt):
        measured(Counting(subject, enough=2), elsewhere, images)
    second = Counting(subject)
    assert measured(second, elsewhere, images).to_json() == whole
    assert second.numbers == [2, 3, 4]
    third = Counting(subject)
    assert measured(third, elsewhere, images).to_json() == whole and third.numbers == []


def test_outcomes_of_something_else_are_not_taken(load):
    subject, images = load(*SMALL)
    measured(Counting(subject), subject, images)
    for settings in (
        ["evaluation.eps=0.1"],
        ["seed=1"],
        ["evaluation.batch_size=9"],
        ["data.augmentation=crop-flip"],
    ):
        other, images = load(*SMALL, *settings)
        again = Counting(other)
        measured(again, other, images)
        assert again.numbers == list(range(-(-40 // other.job.evaluation.batch_size))), settings
    fewer, images = load(*SMALL, images=20)
    again = Counting(fewer)
    measured(again, fewer, images)
    assert again.numbers == [0, 1, 2]
    with torch.no_grad():
        subject.model[1].classifier.weight[0, 0] += 1e-6
    _, images = load(*SMALL)
    again = Counting(subject)
    measured(again, subject, images)
    assert again.numbers == [0, 1, 2, 3, 4]


def test_a_batch_that_lacks_an_image_is_measured_again_where_none_may_be_left_out(load):
    subject, images = load(*SMALL)
    whole = measured(Counting(subject), subject, images)
    (file,) = subject.folder.glob("accuracy-*/batch-00002.json")
    kept = json.loads(file.read_text())
    kept["columns"] = {name: flags[1:] for name, flags in kept["columns"].items()}
    file.write_text(json.dumps(kept))
    lenient, _ = load(*SMALL, "data.corrupt=skip")
    again = Counting(lenient)
    assert measured(again, lenient, images).images == 39 and again.numbers == []
    again = Counting(subject)
    assert measured(again, subject, images).to_json() == whole.to_json() and again.numbers == [2]


def test_batches_do_not_lean_on_each_other(load):
    """A batch measured alone is as it is among the others: random numbers are its own."""
    subject, images = load(*SMALL)
    sweep = Sweep("eps", [0.0, 0.1, 0.3], subject.job.evaluation, "linf")
    whole = measured(sweep, subject, images)
    shelf, _ = subject.shelf(sweep, images, Workers())
    sizes = dict.fromkeys(range(5), 8)
    kept = shelf.read(sizes, sweep.columns)
    (shelf.folder / "batch-00003.json").unlink()
    assert measured(sweep, subject, images).to_json() == whole.to_json()
    assert shelf.read(sizes, sweep.columns)[3].to_json() == kept[3].to_json()


def test_a_stop_is_heeded_within_a_batch_and_keeps_the_others(load):
    subject, images = load(*SMALL)

    class Soon(Never):
        pass

    stop = Soon()

    class Stopping(Counting):
        def outcomes(self, model, x, y, seed, number):
            stop.wanted = number == 2
            outcomes = super().outcomes(model, x, y, seed, number)
            # Long enough for a round to come due.
            while number == 2:
                model(x)
            return outcomes

    with pytest.raises(Stopped, match="the same command goes on to measure accuracy"):
        measured(Stopping(subject), subject, images, stop)
    assert not subject.model._forward_pre_hooks
    again = Counting(subject)
    measured(again, subject, images)
    assert again.numbers == [2, 3, 4]


def test_a_failure_is_told_in_a_line(load):
    subject, images = load(*SMALL)

    class Failing(Counting):
        def outcomes(self, model, x, y, seed, number):
            raise RuntimeError("shapes do not match")

    with pytest.raises(WorkerError, match="cannot measure accuracy: shapes do not match"):
        measured(Failing(subject), subject, images)


def test_images_out_of_range_are_refused(load, monkeypatch):
    """Standardised images, as a loader of one's own may give them."""
    subject, images = load(*SMALL)
    real = sharding.open_loader

    class Standardised:
        def __init__(self, *arguments, **named):
            self.loader = real(*arguments, **named)

        def read(self, batches, seed):
            for x, y in self.loader.read(batches, seed):
                yield (x - 0.5) / 0.25, y

    monkeypatch.setattr(sharding, "open_loader", Standardised)
    with pytest.raises(InputError, match=r"images reach from -2 to 2, not within \[0, 1\]"):
        measured(Counting(subject), subject, images)


def test_images_of_which_none_can_be_read_are_told(load, monkeypatch):
    subject, images = load(*SMALL)

    class Unreadable:
        def __init__(self, *arguments, **named):
            pass

        def read(self, batches, seed):
            for _ in batches:
                yield torch.empty(0, 1, 8, 8), torch.empty(0, dtype=torch.int64)

    monkeypatch.setattr(sharding, "open_loader", Unreadable)
    with pytest.raises(InputError, match="accuracy: none of its images can be read"):
        measured(Counting(subject), subject, images)


def test_a_wrapped_model_is_another_model(load):
    """Keys tell models apart by every parameter and buffer."""
    subject, images = load(*SMALL)
    measurement = Counting(subject)
    other = Subject(nn.Sequential(subject.model), subject.job, subject.folder)
    places = [one.shelf(measurement, images, Workers())[0].folder for one in (subject, other)]
    assert places[0] != places[1]
    # Where its weights came from is no matter.
    fine_tuned, _ = load(*SMALL, "model.pretrained=runs/other")
    assert fine_tuned.shelf(measurement, images, Workers())[0].folder == places[0]
    assert isinstance(measured(measurement, other, images), Outcomes)
