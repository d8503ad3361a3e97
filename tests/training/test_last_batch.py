"""What a run does with the images that fill no global batch, and whose images a batch has."""

import pytest

from hpcdat.commands.train import train
from hpcdat.config.job_file import read_job
from hpcdat.data import sampler
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError
from hpcdat.storage.run_folder import RunFolder
from hpcdat.training import trainer
from hpcdat.training.step import Algorithm1
from tests.conftest import DEMO, Never


def quick(run_dir, *settings):
    """130 images in batches of 50, one epoch."""
    small = ["epochs=1", "schedule.decay_epochs=[]", "data.train_images=130", "data.test_images=20"]
    small += ["method=plain", "evaluation.steps=1", "evaluation.every=0"]
    return read_job(DEMO, [f"run_dir={run_dir}", *small, *settings])


@pytest.mark.parametrize("last_batch, sizes", [("drop", [50, 50]), ("short", [50, 50, 30])])
def test_a_run_drops_the_last_batch_unless_its_job_says_otherwise(tmp_path, monkeypatch, last_batch, sizes):
    seen, step = [], Algorithm1.step

    def spied(algorithm, now, *rest):
        seen.append(now.global_size)
        return step(algorithm, now, *rest)

    monkeypatch.setattr(Algorithm1, "step", spied)
    job = quick(tmp_path / "run", *(["data.last_batch=short"] if last_batch == "short" else []))
    result = train(job, SingleProcess(), Never())
    assert job.data.last_batch == last_batch and seen == sizes
    (epoch,) = RunFolder(job.run_dir).metrics("epoch")
    assert (epoch["images"], epoch["left_out_images"]) == (sum(sizes), 130 - sum(sizes))
    assert result.images == 20, "an evaluation sees every image"


def test_an_epoch_without_a_step_is_refused_before_anything_binds_the_run(tmp_path):
    job = quick(tmp_path / "run", "virtual_workers=3")
    told = r"an epoch has 130 images and a global batch 3 x 50 = 150, .* or data.last_batch: short$"
    with pytest.raises(InputError, match=told):
        train(job, SingleProcess(), Never())
    train(quick(tmp_path / "run", "virtual_workers=3", "data.last_batch=short"), SingleProcess(), Never())
    assert RunFolder(job.run_dir).metrics("finished")


@pytest.mark.parametrize("split, groups", [("workers", [0, 0]), ("nodes", [0, 0]), ("own", [0, 1])])
def test_each_batch_has_the_images_that_the_job_says(tmp_path, monkeypatch, split, groups):
    asked = []

    def spied(*arguments, **named):
        asked.append(named["groups"])
        return sampler.training_shares(*arguments, **named)

    monkeypatch.setattr(trainer, "training_shares", spied)
    train(quick(tmp_path / "run", "virtual_workers=2", f"data.split={split}"), SingleProcess(), Never())
    assert asked and all(given == groups for given in asked)
