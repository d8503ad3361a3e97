"""Smaller training images in earlier epochs: their sizes, computation and bits, and what is refused."""

import pytest
import torch

from hpcdat.commands.train import train
from hpcdat.config.job_file import JobError, read_job
from hpcdat.data.progressive_resizing import resized
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError, Stopped
from hpcdat.evaluation.accuracy import PgdAccuracy
from hpcdat.models import build_model_for
from hpcdat.storage.run_folder import RunFolder
from hpcdat.training.flops import TrainingFlops
from hpcdat.training.step import Algorithm1
from tests.conftest import DEMO, Never, run_here
from tests.training.test_resume import AfterPolls, quick

STAGES = "data.progressive_resizing=[[1, 4], [2, 6], [3, 8]]"


@pytest.fixture
def seen(monkeypatch):
    """Sizes of the images of every attack, update and evaluation, in order."""
    sizes = {"attack": [], "update": [], "evaluation": []}
    attack, local_gradient, measured = Algorithm1.attack, Algorithm1.local_gradient, PgdAccuracy.measure

    def attacked(self, batch, number):
        x_adv = attack(self, batch, number)
        assert x_adv.shape == batch.images[number].x.shape
        assert (x_adv - batch.images[number].x).abs().max() <= self.job.attack.eps
        sizes["attack"].append(x_adv.shape[2:])
        return x_adv

    def updated(self, now, x_adv):
        sizes["update"] += [labelled.x.shape[2:] for labelled in x_adv.values()]
        return local_gradient(self, now, x_adv)

    def evaluated(self, model, x, *others, **more):
        sizes["evaluation"].append(x.shape[2:])
        return measured(self, model, x, *others, **more)

    monkeypatch.setattr(Algorithm1, "attack", attacked)
    monkeypatch.setattr(Algorithm1, "local_gradient", updated)
    monkeypatch.setattr(PgdAccuracy, "measure", evaluated)
    return sizes


@pytest.mark.parametrize("loader", ["dali", "torchvision", "device"])
def test_every_epoch_attacks_and_trains_on_its_size_and_evaluations_see_the_whole(tmp_path, seen, loader):
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    job = quick(
        tmp_path / "run",
        *("epochs=3", "evaluation.every=1", STAGES, f"data.loader={loader}", "data.augmentation=pad-crop"),
        *("data.train_images=100", "data.test_images=50"),
    )
    train(job, SingleProcess(), Never())
    expected = [(size, size) for size in (4, 6, 8) for _ in range(2)]
    assert seen["attack"] == seen["update"] == expected
    assert set(seen["evaluation"]) == {(8, 8)}
    # And the computation of each epoch is that of its size.
    of_image = TrainingFlops(job, build_model_for(job, 10)).of_image
    lines = RunFolder(job.run_dir).metrics("epoch")
    assert [line["flops"] for line in lines] == [
        100 * sum(of_image(size) for size in (4, 6, 8)[:epochs]) for epochs in (1, 2, 3)
    ]
    assert of_image(4) < of_image(6) < of_image(8)


@pytest.mark.parametrize(
    "settings",
    [
        ["method=conadv"],
        ["data.mixing=cutmix", "virtual_workers=2"],
        ["method=dat-fgsm", "model.batch_norm=synchronised", "data.last_batch=short", "batch_size=48"],
        ["smoothing={sigma: 0.1, copies: 2}"],
    ],
    ids=" ".join,
)
def test_whatever_makes_and_shares_the_images_of_a_step_takes_smaller_ones(tmp_path, settings):
    job = quick(tmp_path / "run", "epochs=2", "data.progressive_resizing=[[1, 4], [2, 8]]", *settings)
    assert 0 <= train(job, SingleProcess(), Never()).ta <= 1


def test_a_run_that_is_stopped_within_a_stage_resumes_with_the_same_bits(tmp_path):
    peace, stopped = (
        quick(tmp_path / name, "epochs=3", "data.mixing=mixup", STAGES) for name in ("in peace", "stopped")
    )
    train(peace, SingleProcess(), Never())
    for polls in (1, 4):
        with pytest.raises(Stopped):
            train(stopped, SingleProcess(), AfterPolls(polls))
    train(stopped, SingleProcess(), Never())
    one, other = (RunFolder(job.run_dir).newest_checkpoint().model for job in (peace, stopped))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "stages, told",
    [
        ("[[1, 4], [2]]", "expected pairs of an epoch and a size"),
        ("[[0, 4], [2, 8]]", "expected pairs of an epoch and a size, both 1 or more"),
        ("[[2, 4], [3, 8]]", "expected epochs in increasing order, the first of them 1"),
        ("[[1, 4], [3, 6], [3, 8]]", "expected epochs in increasing order"),
        ("[[1, 4], [2, 6]]", "expected data.image_size = 8 as the last size, at which images are evaluated"),
        ("[[1, 9], [2, 8]]", "expected sizes of at most data.image_size = 8"),
        ("[[1, 4], [4, 8]]", "expected epochs of at most 3, the last one"),
        ("[[1, small], [2, 8]]", "expected a whole number"),
        ("4", "expected a list"),
    ],
)
def test_stages_that_do_not_lead_to_the_evaluated_size_are_refused(stages, told):
    with pytest.raises(JobError) as refused:
        read_job(DEMO, ["epochs=3", f"data.progressive_resizing={stages}"])
    assert told in str(refused.value) and "data.progressive_resizing" in str(refused.value)


def test_attack_workers_are_refused_since_they_hand_over_images_of_one_size():
    settings = ["method=conadv", "attack.steps=1", "concurrent.place=workers", "epochs=3", STAGES]
    with pytest.raises(JobError, match=r"data.progressive_resizing: expected \[\]: attack workers"):
        read_job(DEMO, settings)


def test_a_wrong_list_ends_the_command_with_one_line(tmp_path):
    wrong = [f"run_dir={tmp_path / 'run'}", "data.progressive_resizing=[[1, 4]]"]
    done = run_here("train", DEMO, "--set", *wrong)
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr.count("\n") == 1 and "as the last size" in done.stderr


@pytest.mark.parametrize("name, size", [("tests.own_networks:Odd", 6), ("digits-cnn", 1)])
def test_a_network_that_does_not_take_a_size_is_refused_before_training(tmp_path, name, size):
    stages = f"data.progressive_resizing=[[1, {size}], [2, 8]]"
    job = quick(tmp_path / "run", f"model.name={name}", stages)
    with pytest.raises(InputError) as refused:
        train(job, SingleProcess(), Never())
    assert f"model.name: {name}: fails on images of 1x{size}x{size}" in str(refused.value)
    assert "(data.channels, data.progressive_resizing)" in str(refused.value)
    assert not RunFolder(job.run_dir).checkpoints.exist()


def test_a_smaller_image_shows_the_same():
    """A plane stays one, apart from the edges, and a grey stays the same grey."""
    place = torch.arange(16.0) / 16
    plane = (place[:, None] + place) / 2
    small = resized(plane.expand(2, 3, 16, 16), 8)
    assert small.shape == (2, 3, 8, 8)
    middle = (plane[::2, ::2] + plane[1::2, 1::2]) / 2
    torch.testing.assert_close(small[:, :, 1:-1, 1:-1], middle[1:-1, 1:-1].expand(2, 3, 6, 6))
    torch.testing.assert_close(resized(torch.full((1, 1, 10, 10), 0.3), 7), torch.full((1, 1, 7, 7), 0.3))


def test_smaller_images_stay_within_range_and_others_as_they_are(generator):
    black_or_white = torch.rand(64, 3, 32, 32, generator=generator).round()
    for size in (24, 20, 9):
        small = resized(black_or_white, size)
        assert small.min() >= 0 and small.max() <= 1
    white = resized(torch.ones(8, 3, 32, 32), 24)
    assert white.max() <= 1
    assert resized(black_or_white, 32) is black_or_white
    assert resized(black_or_white[:0], 24).shape == (0, 3, 24, 24)
