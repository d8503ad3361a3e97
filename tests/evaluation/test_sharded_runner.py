"""Measurements that are interrupted and resumed."""

import json

import pytest
import torch
from torch import nn

from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError, Stopped, WorkerError
from hpcdat.evaluation.accuracy import PgdAccuracy
from hpcdat.evaluation.image_batches import ImageBatches
from hpcdat.evaluation.outcome_store import StoredOutcome
from hpcdat.evaluation.outcomes import merge
from hpcdat.evaluation.sharded_runner import open_store, run_sharded
from hpcdat.evaluation.sweep import Sweep
from tests.conftest import Never
from tests.evaluation.conftest import execution

SMALL = ("evaluation.batch_size=8", "evaluation.eps=0.2", "evaluation.steps=3")


class Counting(PgdAccuracy):
    """Records which batches are measured, and is interrupted after ``interrupt_after`` of them."""

    def __init__(self, loaded, interrupt_after=None):
        super().__init__(loaded.job.evaluation, "linf", loaded.job.seed)
        self.interrupt_after, self.numbers = interrupt_after, []

    def measure(self, model, x, y, number, **folded):
        if len(self.numbers) == self.interrupt_after:
            raise KeyboardInterrupt
        self.numbers.append(number)
        return super().measure(model, x, y, number, **folded)


def batches_of(loaded, images, loader=None):
    job = loaded.job
    batches = ImageBatches(images, job.data, job.evaluation.batch_size, torch.device("cpu"))
    if loader:
        batches.loader = loader
    return batches


def store_of(measurement, loaded, images):
    batches = batches_of(loaded, images)
    return open_store(loaded.folder, measurement, batches, loaded.model, loaded.job, SingleProcess())


def measured(measurement, loaded, images, *, stop=None, loader=None):
    return merge(
        run_sharded(
            measurement,
            batches_of(loaded, images, loader),
            loaded.model,
            loaded.job,
            execution(stop),
            store=store_of(measurement, loaded, images),
        )
    )


def test_only_missing_batches_are_measured_and_the_end_is_the_same(load, tmp_path):
    loaded, images = load(*SMALL)
    whole = measured(Counting(loaded), loaded, images).to_json()
    elsewhere = loaded._replace(folder=tmp_path / "elsewhere")
    with pytest.raises(KeyboardInterrupt):
        measured(Counting(loaded, interrupt_after=2), elsewhere, images)
    second = Counting(loaded)
    assert measured(second, elsewhere, images).to_json() == whole
    assert second.numbers == [2, 3, 4]
    third = Counting(loaded)
    assert measured(third, elsewhere, images).to_json() == whole and third.numbers == []
    files = [store_of(third, one, images).path for one in (loaded, elsewhere)]
    assert files[0] != files[1] and files[0].read_bytes() == files[1].read_bytes()


def test_without_a_store_all_batches_are_measured_each_time(load):
    loaded, images = load(*SMALL)
    for _ in range(2):
        counting = Counting(loaded)
        run_sharded(counting, batches_of(loaded, images), loaded.model, loaded.job, execution())
        assert counting.numbers == [0, 1, 2, 3, 4] and not loaded.folder.exists()


def test_outcomes_of_other_settings_images_or_weights_are_not_used(load):
    loaded, images = load(*SMALL)
    measured(Counting(loaded), loaded, images)
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
        loaded.model[1].classifier.weight[0, 0] += 1e-6
    _, images = load(*SMALL)
    again = Counting(loaded)
    measured(again, loaded, images)
    assert again.numbers == [0, 1, 2, 3, 4]


def test_a_batch_that_lacks_an_image_is_measured_again_unless_images_may_be_skipped(load):
    loaded, images = load(*SMALL)
    whole = measured(Counting(loaded), loaded, images)
    store = store_of(Counting(loaded), loaded, images)
    outcomes = store.load(pytest.fail)
    value = {
        "columns": {name: text[1:] for name, text in outcomes[2].value["columns"].items()},
        "warnings": [],
    }
    store.write({**outcomes, 2: StoredOutcome(7, value)})
    lenient, _ = load(*SMALL, "data.corrupt=skip")
    again = Counting(lenient)
    assert measured(again, lenient, images).images == 39 and again.numbers == []
    again = Counting(loaded)
    assert measured(again, loaded, images).to_json() == whole.to_json() and again.numbers == [2]


def test_batches_do_not_depend_on_each_other(load):
    """A batch measured by itself has the same outcome as among the others."""
    loaded, images = load(*SMALL)
    sweep = Sweep("eps", [0.0, 0.1, 0.3], loaded.job.evaluation, "linf", loaded.job.seed)
    whole = measured(sweep, loaded, images)
    store = store_of(sweep, loaded, images)
    outcomes = store.load(pytest.fail)
    store.write({number: outcome for number, outcome in outcomes.items() if number != 3})
    assert measured(sweep, loaded, images).to_json() == whole.to_json()
    assert store.load(pytest.fail) == outcomes


def test_a_stop_takes_effect_within_a_batch_and_preserves_the_others(load):
    loaded, images = load(*SMALL)

    class Soon(Never):
        pass

    stop = Soon()

    class Stopping(Counting):
        def measure(self, model, x, y, number, **folded):
            stop.requested = number == 2
            outcomes = super().measure(model, x, y, number, **folded)
            # Long enough for a round to come due.
            while number == 2:
                model(x)
            return outcomes

    with pytest.raises(Stopped, match="rerun the same command to measure accuracy"):
        measured(Stopping(loaded), loaded, images, stop=stop)
    again = Counting(loaded)
    measured(again, loaded, images)
    assert again.numbers == [2, 3, 4]


def test_a_failure_is_reported_in_a_line(load):
    loaded, images = load(*SMALL)

    class Failing(Counting):
        def measure(self, model, x, y, number, **folded):
            raise RuntimeError("shapes do not match")

    with pytest.raises(WorkerError, match="cannot measure accuracy: shapes do not match"):
        measured(Failing(loaded), loaded, images)


def test_images_out_of_range_are_refused(load):
    """Standardised images, as a custom loader may return them."""
    loaded, images = load(*SMALL)
    real = batches_of(loaded, images).loader

    class Standardised:
        def read(self, batches, seed):
            for x, y in real.read(batches, seed):
                yield (x - 0.5) / 0.25, y

    with pytest.raises(InputError, match=r"images range from -2 to 2, not within \[0, 1\]"):
        measured(Counting(loaded), loaded, images, loader=Standardised())


def test_a_wrapped_model_is_another_model(load):
    """Keys tell models apart by every parameter and buffer."""
    loaded, images = load(*SMALL)
    wrapped = loaded._replace(model=nn.Sequential(loaded.model))
    files = [store_of(Counting(one), one, images).path for one in (loaded, wrapped)]
    assert files[0] != files[1]
    # Where its weights came from does not matter.
    fine_tuned, _ = load(*SMALL, "model.pretrained=runs/other")
    assert store_of(Counting(loaded), fine_tuned, images).path == files[0]
    assert measured(Counting(loaded), wrapped, images).images == 40


def test_damaged_outcomes_are_measured_again(load, capsys):
    loaded, images = load(*SMALL)
    whole = measured(Counting(loaded), loaded, images)
    path = store_of(Counting(loaded), loaded, images).path
    lines = path.read_text().splitlines(keepends=True)
    outcome = json.loads(lines[4])
    assert outcome["batch"] == 3
    path.write_text("".join([*lines[:4], lines[4].replace('"robust": "', '"robust": "1'), *lines[5:]]))
    again = Counting(loaded)
    assert measured(again, loaded, images).to_json() == whole.to_json() and again.numbers == [3]
    assert path.read_text() == "".join(lines)
