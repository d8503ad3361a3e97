"""Planted defects are found, and an ordinary model passes all checks."""

from functools import partial

import numpy as np
import pytest
from torch import nn

from hpcdat.evaluation import sanity_checks
from hpcdat.evaluation.outcomes import Outcomes
from hpcdat.evaluation.request import EvaluationRequest
from hpcdat.evaluation.results import evaluate_robustness
from tests.evaluation.conftest import execution


def flags(text):
    return np.array([int(c) for c in text], bool)


class Masked(nn.Module):
    """A model whose logits are so large that the softmax is exactly 0 or 1 and the loss has no gradient."""

    def __init__(self, model, factor=1e6):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x):
        return self.factor * self.model(x)


def warnings_of(loaded, images, **requested):
    model, job, folder = loaded
    request = EvaluationRequest(**requested)
    return evaluate_robustness(request, images, model, job, execution(), folder).warnings


def test_the_demo_passes_all_checks(load):
    loaded, images = load("evaluation.eps=0.2")
    assert warnings_of(loaded, images, radii=(0.0, 0.05, 0.1, 0.2, 0.3, 0.6), steps=(1, 5, 20)) == []


def test_masked_gradients_are_found_in_three_ways(load):
    loaded, images = load("evaluation.eps=0.3", images=100)
    masked = loaded._replace(model=Masked(loaded.model).eval())
    warnings = warnings_of(masked, images, radii=(0.05, 0.3, 0.6))
    assert any(text.startswith("zero gradients: on ") for text in warnings)
    assert any("where all images can be made the same" in text for text in warnings)
    assert any(text.startswith("black box beats white box: random noise") for text in warnings)


def test_a_curve_that_does_not_fall():
    check = partial(sanity_checks.does_not_fall, eps=0.03, norm="linf", pixels=64, most_frequent=0.1)
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


def test_a_black_box_that_beats_the_white_box():
    check = partial(sanity_checks.black_box_beats_white_box, names=("PGD", "Square"))
    assert "Square breaks 2 of the 3 images that are robust to PGD" in check(flags("0111"), flags("1100"))[0]
    assert check(flags("0111"), flags("1110")) == [], "one image may be luck"
    assert check(np.ones(2000, bool), np.arange(2000) >= 4) == [], "so may two in a thousand"
    assert len(check(np.ones(2000, bool), np.arange(2000) >= 5)) == 1


def test_zero_gradients_count_only_on_correct_images():
    assert sanity_checks.zero_gradients(flags("0011"), flags("0011")) == []
    assert "on 1 of 2 correctly" in sanity_checks.zero_gradients(flags("0011"), flags("1110"))[0]


def test_steps_too_short_for_the_ball(load):
    loaded, images = load("evaluation.eps=0.4", "evaluation.step_size=0.001")
    assert any(
        "20 steps of 0.001 cannot cross a ball of radius 0.4" in t for t in warnings_of(loaded, images)
    )


def without_statistics(model):
    model[1].running_mean = model[1].running_var = None


@pytest.mark.parametrize("spoil", [nn.Module.train, without_statistics])
def test_batch_norm_in_train_mode(spoil):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    assert sanity_checks.batch_norm_in_train_mode(model) == []
    spoil(model)
    assert (
        "batch norm is in train mode (1 layers, the first is 1)"
        in sanity_checks.batch_norm_in_train_mode(model)[0]
    )


@pytest.mark.parametrize("low, high", [(-0.1, 1.0), (0.0, 255.0), (float("nan"), float("nan"))])
def test_pixels_out_of_range(low, high):
    assert "not within [0, 1]" in sanity_checks.pixels_out_of_range(low, high)[0]
    assert sanity_checks.pixels_out_of_range(0.0, 1.0) == []


def test_square_beating_autoattacks_white_boxes_and_the_packages_own_checks():
    outcomes = Outcomes({"fab-t": flags("1110"), "square": flags("0010")}, ("it seems to be dynamic",))
    warnings = sanity_checks.check_autoattack(outcomes, Outcomes({"robust": flags("0110")}))
    assert "Square breaks 2 of the 3 images that are robust to APGD and FAB" in warnings[0]
    assert warnings[1] == "AutoAttack warns: it seems to be dynamic"


def test_aa_above_ra_is_never_unexplained():
    check = partial(sanity_checks.beaten_by_pgd, name="AA", attack="AutoAttack")
    assert check(flags("0110"), flags("0110")) == check(flags("0111"), flags("1100")) == []
    assert check(flags("001"), flags("1100")) == [], "of different images"
    assert check(flags("0010"), flags("1100")) == [
        "AA is above RA on the same 4 images: PGD breaks 2 that are robust to AutoAttack; RA is the bound"
    ]
