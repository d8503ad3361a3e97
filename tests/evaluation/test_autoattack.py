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


def test_one_class_or_no_radius_are_refused():
    with pytest.raises(InputError, match="2 classes or more, not 1"):
        AutoAttack(0.1, "linf", 1, seed=0)
    with pytest.raises(InputError, match=r"evaluation\.eps must be above 0"):
        AutoAttack(0.0, "linf", 10, seed=0)


@pytest.mark.parametrize("classes", [2, 3, 4, 9])
def test_with_fewer_classes_there_are_fewer_targets_and_the_result_says_so(classes):
    attack = AutoAttack(0.1, "linf", classes, seed=0)
    attacks = attack.settings["attacks"]
    assert attack.is_complete and not attack.is_standard
    assert attacks["fab-t"]["targets"] == classes - 1
    assert {name: attacks[name] for name in TWO} == {name: STANDARD[name] for name in TWO}
    assert ("apgd-t" in attacks) == (classes >= 4)
    assert attack.version.startswith(f"AutoAttack for {classes} classes: {classes - 1} target")
    assert ("without targeted APGD" in attack.version) == (classes < 4)
    assert AutoAttack(0.1, "linf", 10, seed=0).version is None
    attack.settings["attacks"] = {name: attacks[name] for name in TWO}
    assert not attack.is_complete


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_all_attacks_run_on_few_classes(quick, load, classes):
    """The outcome of every image is the package's own, with as many targets, without warnings."""
    loaded, images = load()
    x, y = batch(loaded, images)
    x, y = x[y < classes], y[y < classes]

    class Few(torch.nn.Module):
        def forward(self, x):
            return loaded.model(x)[:, :classes]

    attack = AutoAttack(0.3, "linf", classes, seed=7)
    found = attack.measure(Few(), x, y, 3)
    own = pyautoattack.AutoAttack(Few(), norm="Linf", eps=0.3, seed=derive(7, "autoattack", 3))
    own.apgd_targeted.n_target_classes = own.fab.n_target_classes = classes - 1
    own.attacks_to_run = [name for name in STANDARD if name != "apgd-t" or classes > 3]
    _, answers = own.run_standard_evaluation(x, y, batch_size=len(x))
    assert found.columns["square"].tolist() == (answers == y).tolist()
    assert list(found.columns) == ["correct", *own.attacks_to_run]
    assert found.count("square") < found.count("correct")
    assert found.warnings == ()


def test_targeted_apgd_is_undefined_for_three_classes(quick, load):
    """Which is why it is left out: its loss takes the fourth largest logit."""
    loaded, images = load()
    x, y = batch(loaded, images)

    class Three(torch.nn.Module):
        def forward(self, x):
            return loaded.model(x)[:, :3]

    own = pyautoattack.AutoAttack(Three(), norm="Linf", eps=0.3, seed=0)
    own.apgd_targeted.n_target_classes, own.attacks_to_run = 2, ["apgd-t"]
    with pytest.raises(IndexError):
        own.run_standard_evaluation(x[y < 3], y[y < 3])


def test_misclassified_images_are_not_attacked(quick, load):
    loaded, images = load()
    x, y = batch(loaded, images)
    found = AutoAttack(0.2, "linf", 10, seed=0).measure(loaded.model, x[:2], (y[:2] + 1) % 10, 0)
    assert all(not flags.any() for flags in found.columns.values())
