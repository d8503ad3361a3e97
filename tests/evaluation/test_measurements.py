"""TA, RA and their sweeps where they are known."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from hpcdat.data import open_loader
from hpcdat.evaluation.measurements import PgdAccuracy, Sweep
from hpcdat.job_file import read_job
from tests.conftest import DEMO
from tests.evaluation.test_accuracy import Threshold

GREYS = [0.55, 0.65, 0.75, 0.95, 0.45, 0.25]
"""Grey levels of images of class 1, 1, 1, 1, 1 (wrong) and 0."""


def grey_images():
    x = torch.tensor(GREYS).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return x, torch.tensor([1, 1, 1, 1, 1, 0])


def settings(*more):
    return read_job(DEMO, ["evaluation.eps=0.1", *more]).evaluation


def flags(outcomes):
    return {
        name: "".join("1" if flag else "0" for flag in column) for name, column in outcomes.columns.items()
    }


def test_accuracy_and_what_tells_whether_to_believe_it():
    x, y = grey_images()
    found = flags(PgdAccuracy(settings(), "linf").outcomes(Threshold(), x, y, 0, 0))
    assert (found["correct"], found["robust"], found["gradient"]) == ("111101", "011101", "111111")
    assert all(s >= r for s, r in zip(found["steady"], found["robust"], strict=True)), "noise is weaker"


def test_an_image_must_withstand_every_start():
    """One pixel, and an attack that stays where it starts: a tenth of the ball is beyond the threshold."""
    x, y = torch.full((2000, 1, 1, 1), 0.58), torch.ones(2000, dtype=torch.int64)

    def robust(restarts):
        more = ["evaluation.step_size=0", f"evaluation.restarts={restarts}"]
        return PgdAccuracy(settings(*more), "linf").outcomes(Threshold(), x, y, 0, 0).columns["robust"]

    once, often = robust(1), robust(10)
    assert abs(once.mean() - 0.9) < 0.03 and abs(often.mean() - 0.9**10) < 0.04
    assert not (often & ~once).any(), "the first start is the same"


@pytest.mark.parametrize("norm, scale", [("linf", 1.0), ("l2", 2.0)])
def test_a_sweep_over_radii_finds_every_margin(norm, scale):
    """The l2 margin of 2 x 2 pixels is twice that of linf."""
    x, y = grey_images()
    radii = [0.0, 0.04, 0.1, 0.2, 0.3, 0.6]
    sweep = Sweep("eps", [scale * radius for radius in radii], settings(), norm)
    found = list(flags(sweep.outcomes(Threshold(), x, y, 0, 0)).values())
    assert found == ["111101", "111101", "011101", "001101", "000100", "000000"]


class WeakSpot(nn.Module):
    """Wrong where the mean pixel is between 0.6 and 0.7; the loss of class 1 grows with it everywhere."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        grey = x.flatten(1).mean(1)
        wrong = (grey > 0.6) & (grey < 0.7)
        return torch.stack([self.scale * grey, 2 + torch.where(wrong, -9.0, 0.0)], 1)


def test_what_was_broken_once_stays_broken():
    """At the largest radius the attack runs past the weak spot; alone it finds nothing there."""
    x, y = torch.full((4, 1, 2, 2), 0.5), torch.ones(4, dtype=torch.int64)

    def found(*radii):
        sweep = Sweep("eps", radii, settings("evaluation.random_start=false"), "linf")
        return list(flags(sweep.outcomes(WeakSpot(), x, y, 0, 0)).values())

    assert found(0.05, 0.15, 0.4) == ["1111", "0000", "0000"] and found(0.4) == ["1111"]


@pytest.mark.parametrize("over, values", [("eps", [0.0, 0.05, 0.1, 0.2, 0.3]), ("steps", [1, 2, 5, 10])])
def test_curves_of_a_trained_net_never_rise(load, over, values):
    subject, images = load()
    loader = open_loader(images, subject.job.data, training=False, batch_size=40, device=torch.device("cpu"))
    ((x, y),) = loader.read([list(range(40))], seed=0)
    sweep = Sweep(over, values, subject.job.evaluation, "linf")
    outcomes = sweep.outcomes(subject.model, x, y, 0, 0)
    columns = list(outcomes.columns.values())
    for earlier, later in pairwise(columns):
        assert not (later & ~earlier).any()
    assert columns[0].sum() > columns[-1].sum()
    again = sweep.outcomes(subject.model, x, y, 0, 0)
    other = sweep.outcomes(subject.model, x, y, 0, 1)
    assert again.to_json() == outcomes.to_json()
    assert other.images == outcomes.images
