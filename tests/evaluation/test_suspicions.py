"""Planted defects are told, and an ordinary model is not suspected."""

from functools import partial

import numpy as np
import pytest
from torch import nn

from hpcdat.cluster.workers import Workers
from hpcdat.evaluation import suspicions
from hpcdat.evaluation.findings import examine
from hpcdat.evaluation.outcomes import Outcomes
from hpcdat.evaluation.sharding import Subject
from hpcdat.evaluation.wanted import Wanted
from hpcdat.progress import Progress
from tests.conftest import Never


def flags(text):
    return np.array([int(c) for c in text], bool)


class Masked(nn.Module):
    """A net whose logits are so large that the softmax is exactly 0 or 1 and the loss has no gradient."""

    def __init__(self, net, factor=1e6):
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x):
        return self.factor * self.net(x)


def found_in(subject, images, **wanted):
    progress = Progress(shown=False)
    return examine(subject, Wanted(**wanted), images, Workers(), progress, Never()).suspicions


def test_the_demo_is_above_suspicion(load):
    subject, images = load("evaluation.eps=0.2")
    assert found_in(subject, images, radii=(0.0, 0.05, 0.1, 0.2, 0.3, 0.6), steps=(1, 5, 20)) == []


def test_masked_gradients_are_found_in_three_ways(load):
    subject, images = load("evaluation.eps=0.3", images=100)
    masked = Subject(Masked(subject.model).eval(), subject.job, subject.folder)
    told = found_in(masked, images, radii=(0.05, 0.3, 0.6))
    assert any(text.startswith("zero gradients: on ") for text in told)
    assert any("where all images can be made the same" in text for text in told)
    assert any(text.startswith("black box beats white box: random noise") for text in told)


def test_a_curve_that_does_not_fall_is_told():
    check = partial(suspicions.does_not_fall, eps=0.03, norm="linf", pixels=64, most_frequent=0.1)
    assert check({0.0: 0.9, 0.01: 0.8, 0.03: 0.795}) == [
        "RA does not fall with eps: 80.0 % at 0.01, 79.5 % at 0.03: the attack does not work"
    ]
    assert check({0.0: 0.9, 0.01: 0.8, 0.03: 0.7}) == []
    assert check({0.0: 0.9, 0.01: 0.8, 0.02: 0.8}) == [], "a radius below that of the evaluation says nothing"
    assert check({0.01: 0.0, 0.03: 0.0}) == []
    assert "at 0.5, where all images can be made the same" in check({0.01: 0.8, 0.5: 0.2})[0]
    assert check({0.01: 0.8, 0.5: 0.1}) == []
    assert check({0.01: 0.8, 3.9: 0.5}, norm="l2") == []
    assert len(check({0.01: 0.8, 4.0: 0.5}, norm="l2")) == 1


def test_a_black_box_that_beats_the_white_box_is_told():
    check = partial(suspicions.black_box_beats_white_box, names=("PGD", "Square"))
    assert "Square breaks 2 of the 3 images that withstood PGD" in check(flags("0111"), flags("1100"))[0]
    assert check(flags("0111"), flags("1110")) == [], "one image may be luck"
    assert check(np.ones(2000, bool), np.arange(2000) >= 4) == [], "so may two in a thousand"
    assert len(check(np.ones(2000, bool), np.arange(2000) >= 5)) == 1


def test_zero_gradients_are_told_of_correct_images_alone():
    assert suspicions.zero_gradients(flags("0011"), flags("0011")) == []
    assert "on 1 of 2 correctly" in suspicions.zero_gradients(flags("0011"), flags("1110"))[0]


def test_steps_too_short_for_the_ball_are_told(load):
    subject, images = load("evaluation.eps=0.4", "evaluation.step_size=0.001")
    assert any("20 steps of 0.001 cannot cross a ball of radius 0.4" in t for t in found_in(subject, images))


def without_statistics(net):
    net[1].running_mean = net[1].running_var = None


@pytest.mark.parametrize("spoil", [nn.Module.train, without_statistics])
def test_batch_norm_in_train_mode_is_told(spoil):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    assert suspicions.batch_norm_in_train_mode(net) == []
    spoil(net)
    assert (
        "batch norm is in train mode (1 layers, 1 the first)" in suspicions.batch_norm_in_train_mode(net)[0]
    )


@pytest.mark.parametrize("low, high", [(-0.1, 1.0), (0.0, 255.0), (float("nan"), float("nan"))])
def test_pixels_out_of_range_are_told(low, high):
    assert "not within [0, 1]" in suspicions.pixels_out_of_range(low, high)[0]
    assert suspicions.pixels_out_of_range(0.0, 1.0) == []


def test_square_beating_autoattacks_white_boxes_and_the_packages_own_checks_are_told():
    outcomes = Outcomes({"fab-t": flags("1110"), "square": flags("0010")}, ("it seems to be dynamic",))
    told = suspicions.of_autoattack(outcomes)
    assert "Square breaks 2 of the 3 images that withstood APGD and FAB" in told[0]
    assert told[1] == "AutoAttack says: it seems to be dynamic"
