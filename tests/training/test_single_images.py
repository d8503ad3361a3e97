"""Batches of one image: torch's batch norm needs more than one value a channel."""

import pytest
import torch
from torch import nn

from hpcdat.config.sections import Data
from hpcdat.errors import InputError
from hpcdat.training.single_images import check_batches, reported
from tests.conftest import DEMO, run_here

DATA = Data(image_size=4, channels=1)
CPU = torch.device("cpu")


def network(pixels):
    """Its last feature map has this height and width."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(pixels), nn.BatchNorm2d(1))


def test_a_model_with_feature_maps_of_one_pixel_refuses_a_single_image():
    with pytest.raises(InputError, match=r"batch of one image .* images of 4x4 leave one value a channel"):
        check_batches({8, 1}, network(1), DATA, CPU)
    check_batches({8, 2}, network(1), DATA, CPU)


def test_larger_feature_maps_are_enough_and_the_model_stays_as_it_is():
    model = network(2).train()
    check_batches({1}, model, DATA, CPU)
    assert model.training and model[1].num_batches_tracked == 0


def test_other_errors_pass():
    with pytest.raises(ValueError, match="something else"), reported(DATA):
        raise ValueError("something else")


def test_an_image_left_alone_by_unreadable_ones_is_reported_too():
    with pytest.raises(InputError, match="set batch_size to 2 or more"), reported(DATA):
        network(1).train()(torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize(
    "settings",
    [["batch_size=1"], ["batch_size=4", "data.last_batch=short"]],
    ids=["batch of one", "last batch"],
)
def test_training_refuses_it_before_the_first_step(tmp_path, settings):
    """Nine images in batches of four leave one."""
    images = ["data.train_images=9", "data.test_images=10", "method=plain", "model.name=resnet50"]
    done = run_here("train", DEMO, *images, *settings, f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 2 and "a worker's batch of one image cannot pass" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list((tmp_path / "run").rglob("*.pt")), "no checkpoint binds the run to these settings"
