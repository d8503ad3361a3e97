"""RA over radii and steps where it is known."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from hpcdat.data import open_loader
from hpcdat.evaluation.sweep import Sweep
from tests.evaluation.test_accuracy import Threshold, flags, grey_images, settings


@pytest.mark.parametrize("norm, scale", [("linf", 1.0), ("l2", 2.0)])
def test_a_sweep_over_radii_finds_every_margin(norm, scale):
    """The l2 margin of 2 x 2 pixels is twice that of linf."""
    x, y = grey_images()
    radii = [0.0, 0.04, 0.1, 0.2, 0.3, 0.6]
    sweep = Sweep("eps", [scale * radius for radius in radii], settings(), norm, seed=0)
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


def test_what_was_broken_once_stays_broken():
    """At the largest radius the attack runs past the weak spot; by itself this radius finds nothing."""
    x, y = torch.full((4, 1, 2, 2), 0.5), torch.ones(4, dtype=torch.int64)

    def found(*radii):
        sweep = Sweep("eps", radii, settings("evaluation.random_start=false"), "linf", seed=0)
        return list(flags(sweep.measure(WeakSpot(), x, y, 0)).values())

    assert found(0.05, 0.15, 0.4) == ["1111", "0000", "0000"] and found(0.4) == ["1111"]


@pytest.mark.parametrize("over, values", [("eps", [0.0, 0.05, 0.1, 0.2, 0.3]), ("steps", [1, 2, 5, 10])])
def test_curves_of_a_trained_model_never_rise(load, over, values):
    loaded, images = load()
    loader = open_loader(images, loaded.job.data, training=False, batch_size=40, device=torch.device("cpu"))
    ((x, y),) = loader.read([list(range(40))], seed=0)
    sweep = Sweep(over, values, loaded.job.evaluation, "linf", seed=0)
    outcomes = sweep.measure(loaded.model, x, y, 0)
    columns = list(outcomes.columns.values())
    for earlier, later in pairwise(columns):
        assert not (later & ~earlier).any()
    assert columns[0].sum() > columns[-1].sum()
    again = sweep.measure(loaded.model, x, y, 0)
    other = sweep.measure(loaded.model, x, y, 1)
    assert again.to_json() == outcomes.to_json()
    assert other.images == outcomes.images
