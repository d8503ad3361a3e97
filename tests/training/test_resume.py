"""Where a stop finds a run in one process, what it goes on from, and what it refuses to go on with."""

import dataclasses
import sys

import pytest
import torch

from hpcdat.commands.train import train
from hpcdat.config.job_file import read_job
from hpcdat.data.digits import write_digits
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError, Stopped, WorkerError
from hpcdat.models import MODELS
from hpcdat.models.digits_cnn import DigitsCNN
from hpcdat.storage.checkpoint_format import load_checkpoint, save_checkpoint
from hpcdat.storage.run_folder import RunFolder
from tests.conftest import DEMO, Never


def quick(run_dir, *settings):
    """The demo's job with steps that take milliseconds: four an epoch."""
    small = ["epochs=2", "batch_size=50", "data.train_images=200", "data.test_images=100"]
    small += ["attack.steps=1", "evaluation.steps=1", "evaluation.every=0"]
    return read_job(DEMO, [f"run_dir={run_dir}", *small, *settings])


class AfterPolls:
    """A stop request that is made after a number of polls of the trainer, one per step."""

    def __init__(self, polls):
        self.left = polls

    @property
    def requested(self):
        if sys._getframe(1).f_globals["__name__"] == "hpcdat.distributed.uneven_work":
            # Of a check of images, or an evaluation, which polls at its own pace.
            return False
        self.left -= 1
        return self.left < 0


def test_a_stop_on_the_last_step_of_an_epoch_keeps_that_epoch_the_guard_included(tmp_path):
    peace, stopped = (quick(tmp_path / name, "method=dat-fgsm") for name in ("in peace", "stopped"))
    train(peace, SingleProcess(), Never())
    with pytest.raises(Stopped, match="stopped in epoch 2, step 0"):
        train(stopped, SingleProcess(), AfterPolls(3))
    train(stopped, SingleProcess(), Never())
    one, other = (RunFolder(job.run_dir).newest_checkpoint() for job in (peace, stopped))
    assert all(torch.equal(one.model[name], other.model[name]) for name in one.model)
    assert one.history == other.history and one.history["guarded"] > 0


def test_other_images_than_those_of_the_training_are_refused(tmp_path):
    write_digits(tmp_path / "digits")
    job = quick(tmp_path / "run", f"data.root={tmp_path}/digits", "data.train_images=null")
    with pytest.raises(Stopped, match="stopped in epoch 1, step 3"):
        train(job, SingleProcess(), AfterPolls(2))
    threes = tmp_path / "digits" / "train" / "3"
    next(threes.iterdir()).unlink()
    told = "trained on 1400 images of 10 classes, and now there are 1399 of 10: bring the images back"
    with pytest.raises(InputError, match=told):
        train(job, SingleProcess(), Never())
    for split in ("train", "test"):
        (tmp_path / "digits" / split / "3").rename(tmp_path / "digits" / split / "three")
    with pytest.raises(InputError, match=r"now there are 1399 of 10 \(others: 3, three\)"):
        train(job, SingleProcess(), Never())


def test_a_step_that_the_epoch_does_not_have_is_refused(tmp_path):
    job = quick(tmp_path / "run")
    with pytest.raises(Stopped):
        train(job, SingleProcess(), AfterPolls(1))
    kept = RunFolder(job.run_dir).checkpoints
    save_checkpoint(kept.step_file, dataclasses.replace(load_checkpoint(kept.step_file), step=4))
    with pytest.raises(InputError, match="at step 4, but the epoch now has 4"):
        train(job, SingleProcess(), Never())


def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path):
    """The first update carries them beyond float32; skipping every later step does not bring them back."""
    lr = ["method=plain", "optimizer.name=sgd", "optimizer.lr=1e38"]
    lr += ["optimizer.weight_decay=1e38", "skipped_steps=1000"]
    job = quick(tmp_path / "run", *lr)
    with pytest.raises(WorkerError, match=r"no longer finite in epoch 2, step 0.*\. Lower optimizer.lr"):
        train(job, SingleProcess(), Never())
    model = RunFolder(job.run_dir).newest_checkpoint().model
    assert all(torch.isfinite(t).all() for t in model.values() if t.is_floating_point())


def test_initial_weights_that_are_not_finite_are_told_without_checkpoints_that_do_not_exist(
    tmp_path, monkeypatch
):
    class Diverged(DigitsCNN):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            torch.nn.init.constant_(self.classifier.bias, float("nan"))

    monkeypatch.setitem(MODELS, "digits-cnn", Diverged)
    job = quick(tmp_path / "run")
    with pytest.raises(WorkerError, match="initial weights of digits-cnn are not finite") as failure:
        train(job, SingleProcess(), Never())
    assert "checkpoint" not in str(failure.value) and not RunFolder(job.run_dir).checkpoints.exist()


@pytest.mark.parametrize("field", ["totals", "history"])
def test_a_checkpoint_with_other_fields_is_refused(tmp_path, field):
    job = quick(tmp_path / "run")
    with pytest.raises(Stopped):
        train(job, SingleProcess(), AfterPolls(1))
    file = RunFolder(job.run_dir).checkpoints.step_file
    kept = load_checkpoint(file)
    save_checkpoint(file, dataclasses.replace(kept, **{field: getattr(kept, field) | {"later": 1}}))
    with pytest.raises(InputError, match=rf"^{file}: .* 'later': take the version .* --overwrite$"):
        train(job, SingleProcess(), Never())


def test_a_checkpoint_whose_optimiser_groups_parameters_differently_is_refused(tmp_path):
    """Such as one of a version that left biases and batch norm out of LALR."""
    job = quick(tmp_path / "run")
    with pytest.raises(Stopped):
        train(job, SingleProcess(), AfterPolls(1))
    file = RunFolder(job.run_dir).checkpoints.step_file
    stored = load_checkpoint(file)
    (group,) = stored.optimizer["param_groups"]
    first, rest = group["params"][:1], group["params"][1:]
    groups = [group | {"params": first}, group | {"params": rest, "layerwise": False}]
    save_checkpoint(file, dataclasses.replace(stored, optimizer=stored.optimizer | {"param_groups": groups}))
    with pytest.raises(InputError, match=rf"^{file}: .* groups the parameters differently: .* --overwrite$"):
        train(job, SingleProcess(), Never())


def test_extra_warm_up_epochs_are_trained_in_front_of_the_others(tmp_path):
    settings = ["optimizer.lr=0.4", "schedule.decay_epochs=[1]", "data.train_images=100"]
    job = quick(tmp_path / "run", *settings)
    train(job, SingleProcess(), Never())
    lines = RunFolder(job.run_dir).metrics("epoch")
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["lr"] for line in lines] == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.4, 0.4, 0.04])
    assert RunFolder(job.run_dir).read_result().epoch == 7


OWN_DATA = """
import random
import numpy as np
import torch

class Shaken(torch.utils.data.Dataset):
    def __init__(self, count):
        self.targets = [n % 2 for n in range(count)]
    def __len__(self):
        return len(self.targets)
    def __getitem__(self, index):
        noise = torch.randint(0, 60, (1, 8, 8)) + np.random.randint(60) + random.randrange(60)
        return (noise + 60 * self.targets[index]).to(torch.uint8), self.targets[index]

def load(count):
    return Shaken(count), Shaken(20)
"""


@pytest.mark.parametrize("loader", ["dali", "torchvision"])
def test_a_run_on_random_data_of_ones_own_resumes_within_an_epoch_bit_by_bit(tmp_path, loader, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"shaken_{loader}"
    (tmp_path / f"{name}.py").write_text(OWN_DATA)
    own = [f"data.source={name}:load", "data.options.count=200", f"data.loader={loader}"]
    own += ["data.train_images=null", "data.test_images=null", "method=plain", f"module_path=[{tmp_path}]"]
    peace, stopped = (quick(tmp_path / kind, *own) for kind in ("in peace", "stopped"))
    train(peace, SingleProcess(), Never())
    with pytest.raises(Stopped, match="stopped in epoch 1, step 3"):
        train(stopped, SingleProcess(), AfterPolls(2))
    torch.rand(1)
    train(stopped, SingleProcess(), Never())
    one, other = (RunFolder(job.run_dir).newest_checkpoint() for job in (peace, stopped))
    assert one.epoch == other.epoch == 2
    assert all(torch.equal(one.model[key], other.model[key]) for key in one.model)
    results = [RunFolder(job.run_dir).read_result() for job in (peace, stopped)]
    assert (results[0].ta, results[0].ra) == (results[1].ta, results[1].ra)
