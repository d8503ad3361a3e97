"""AutoAttack batch by batch, and which result is called AA."""

import os
import runpy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyautoattack
import pytest
import torch

from hpcdat.data import open_loader
from hpcdat.data.cifar import read_cifar
from hpcdat.data.images import DataError
from hpcdat.errors import InputError
from hpcdat.evaluation.autoattack import STANDARD, AutoAttack
from hpcdat.seeds import derive

CIFAR = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hpcdat" / "data"
"""Where its official batches may lie (before the tests take a cache of their own)."""
TWO = ["apgd-ce", "square"]


class Quick(pyautoattack.AutoAttack):
    """The same attacks with far fewer iterations."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 5
        self.square.n_queries = 50


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(pyautoattack, "AutoAttack", Quick)


def batch(loaded, images):
    loader = open_loader(
        images, loaded.job.data, training=False, batch_size=len(images), device=torch.device("cpu")
    )
    return next(iter(loader.read([np.arange(len(images))], seed=0)))


@pytest.mark.parametrize("norm, eps", [("linf", 0.2), ("l2", 1.0)])
def test_each_image_ends_as_in_the_packages_own_evaluation(quick, load, norm, eps):
    loaded, images = load()
    x, y = batch(loaded, images)
    found = AutoAttack(eps, norm, 10, seed=7).measure(loaded.model, x, y, 3)
    own = pyautoattack.AutoAttack(
        loaded.model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, seed=derive(7, "autoattack", 3)
    )
    _, answers = own.run_standard_evaluation(x, y, batch_size=len(x))
    assert found.columns["square"].tolist() == (answers == y).tolist()
    assert 0 < found.count("square") <= found.count("apgd-ce") < found.count("correct") <= 40
    columns = list(found.columns.values())
    assert list(found.columns) == ["correct", *STANDARD]
    assert all(not (later & ~earlier).any() for earlier, later in pairwise(columns))
    assert found.warnings == ()


def test_the_packages_own_network_ends_as_in_its_own_evaluation(quick):
    """Its plainly trained ResNet-18 on the first test images of CIFAR-10, where some survive."""
    examples = Path(pyautoattack.__file__).parent / "examples"
    try:
        _, images = read_cifar("cifar10", CIFAR, download=False)
    except DataError as error:
        pytest.skip(f"without CIFAR-10 AutoAttack was not compared on its package's own network: {error}")
    model = runpy.run_path(str(examples / "resnet.py"))["ResNet18"]()
    model.load_state_dict(torch.load(examples / "model_test.pt", map_location="cpu", weights_only=True))
    model.eval()
    x = torch.from_numpy(images.pixels[:8]).permute(0, 3, 1, 2) / 255
    y = torch.tensor(images.labels[:8])
    eps = 1 / 255
    own = pyautoattack.AutoAttack(model, norm="Linf", eps=eps, seed=derive(0, "autoattack", 0))
    own.attacks_to_run = TWO
    _, answers = own.run_standard_evaluation(x, y, batch_size=len(x))
    ours = AutoAttack(eps, "linf", 10, seed=0)
    ours.settings["attacks"] = TWO
    found = ours.measure(model, x, y, 0)
    assert found.columns["square"].tolist() == (answers == y).tolist()
    assert 0 < found.count("square") < found.count("correct")


def test_nothing_is_left_behind(quick, load):
    loaded, images = load()
    x, y = batch(loaded, images)
    state, pixels = torch.get_rng_state(), x.clone()
    attack = AutoAttack(0.2, "linf", 10, seed=0)
    first = attack.measure(loaded.model, x, y, 0)
    torch.rand(5)
    assert attack.measure(loaded.model, x, y, 0).to_json() == first.to_json()
    torch.set_rng_state(state)
    attack.measure(loaded.model, x, y, 0)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(x, pixels)
    assert all(p.requires_grad and p.grad is None for p in loaded.model.parameters())


def test_only_the_standard_version_is_standard(monkeypatch):
    assert AutoAttack(0.1, "linf", 10, seed=0).is_standard

    class Left(pyautoattack.AutoAttack):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            self.attacks_to_run = ["apgd-ce", "apgd-t", "fab-t"]

    for weaker in (Quick, Left):
        monkeypatch.setattr(pyautoattack, "AutoAttack", weaker)
        assert not AutoAttack(0.1, "linf", 10, seed=0).is_standard


def test_warnings_of_the_package_are_recorded(quick, load):
    loaded, images = load()
    x, y = batch(loaded, images)

    class Random(torch.nn.Module):
        def forward(self, x):
            logits = loaded.model(x)
            return logits + torch.rand_like(logits)

    found = AutoAttack(0.2, "linf", 10, seed=0).measure(Random(), x, y, 0)
    assert "it seems to be a randomized defense" in found.warnings


def test_too_few_classes_or_no_radius_are_refused():
    with pytest.raises(InputError, match="10 classes or more, not 3"):
        AutoAttack(0.1, "linf", 3, seed=0)
    with pytest.raises(InputError, match=r"evaluation\.eps must be above 0"):
        AutoAttack(0.0, "linf", 10, seed=0)


def test_misclassified_images_are_not_attacked(quick, load):
    loaded, images = load()
    x, y = batch(loaded, images)
    found = AutoAttack(0.2, "linf", 10, seed=0).measure(loaded.model, x[:2], (y[:2] + 1) % 10, 0)
    assert all(not flags.any() for flags in found.columns.values())
