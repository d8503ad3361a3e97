"""RA over radii and steps where it is known."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from hpcdat.data import open_loader
from hpcdat.evaluation.accuracy import PgdAccuracy
from hpcdat.evaluation.sweep import Sweep
from tests.evaluation.test_accuracy import Threshold, flags, grey_images, settings

KINDS = ("plain", "accumulating")


@pytest.mark.parametrize("norm, scale", [("linf", 1.0), ("l2", 2.0)])
def test_a_sweep_over_radii_finds_every_margin(norm, scale):
    """The l2 margin of 2 x 2 pixels is twice that of linf."""
    x, y = grey_images()
    radii = [0.0, 0.04, 0.1, 0.2, 0.3, 0.6]
    sweep = Sweep("eps", [scale * radius for radius in radii], settings(), norm, 0, "accumulating")
    found = list(flags(sweep.measure(Threshold(), x, y, 0)).values())
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


def test_what_was_broken_once_stays_broken_where_sweeps_accumulate():
    """At the largest radius the attack runs past the weak spot; alone it finds nothing there."""
    x, y = torch.full((4, 1, 2, 2), 0.5), torch.ones(4, dtype=torch.int64)

    def found(kind, *radii):
        sweep = Sweep("eps", radii, settings("evaluation.random_start=false"), "linf", 0, kind)
        return list(flags(sweep.measure(WeakSpot(), x, y, 0)).values())

    assert found("accumulating", 0.05, 0.15, 0.4) == ["1111", "0000", "0000"]
    assert found("plain", 0.05, 0.15, 0.4) == ["1111", "0000", "1111"] and found("plain", 0.4) == ["1111"]


@pytest.mark.parametrize("over, values", [("eps", [0.0, 0.05, 0.1, 0.2, 0.3]), ("steps", [1, 2, 5, 10])])
def test_curves_of_a_trained_model_never_rise(load, over, values):
    loaded, images = load()
    loader = open_loader(images, loaded.job.data, training=False, batch_size=40, device=torch.device("cpu"))
    ((x, y),) = loader.read([np.arange(40)], seed=0)
    sweep = Sweep(over, values, loaded.job.evaluation, "linf", 0, "accumulating")
    outcomes = sweep.measure(loaded.model, x, y, 0)
    columns = list(outcomes.columns.values())
    for earlier, later in pairwise(columns):
        assert not (later & ~earlier).any()
    assert columns[0].sum() > columns[-1].sum()
    again = sweep.measure(loaded.model, x, y, 0)
    other = sweep.measure(loaded.model, x, y, 1)
    assert again.to_json() == outcomes.to_json()
    assert other.images == outcomes.images


@pytest.mark.parametrize("over, value", [("eps", 0.2), ("steps", 20)])
def test_a_plain_sweep_is_ra_at_every_value_whatever_else_is_measured(load, over, value):
    loaded, images = load("evaluation.eps=0.2", "evaluation.steps=20")
    loader = open_loader(images, loaded.job.data, training=False, batch_size=40, device=torch.device("cpu"))
    ((x, y),) = loader.read([np.arange(40)], seed=0)
    ra = PgdAccuracy(loaded.job.evaluation, "linf", 0).measure(loaded.model, x, y, 3).columns["robust"]
    assert 0 < ra.sum() < len(ra)
    for values in ([value], [value / 2, value]):
        sweep = Sweep(over, [type(value)(v) for v in values], loaded.job.evaluation, "linf", 0)
        assert (sweep.measure(loaded.model, x, y, 3).columns[str(value)] == ra).all()


def test_kinds_of_sweeps_have_outcomes_of_their_own():
    sweeps = [Sweep("eps", [0.1], settings(), "linf", 0, kind) for kind in KINDS]
    assert len({sweep.name for sweep in sweeps}) == len({str(sweep.settings) for sweep in sweeps}) == 2
