"""The networks by name."""

from typing import get_args

import pytest
import torch

from hpcdat.job import Model
from hpcdat.models import MODELS, build_model


def build(name, channels=3, seed=0):
    statistics = {"mean": [0.5] * channels, "std": [0.25] * channels}
    return build_model(name, channels=channels, num_classes=7, seed=seed, **statistics)


def test_the_names_in_a_job_are_those_there_are():
    assert set(get_args(Model.model_fields["name"].annotation)) == set(MODELS)


@pytest.mark.parametrize("name, size", [("digits-cnn", 8), ("resnet50", 64)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_become_logits(name, size, channels):
    assert build(name, channels).eval()(torch.rand(2, channels, size, size)).shape == (2, 7)


def test_resnet50_has_the_size_that_the_paper_sends():
    """97.49 MiB of float32 gradient with 1,000 classes (Table 4: 2924 = 30 x 97.49)."""
    net = build_model("resnet50", channels=3, num_classes=1000, mean=[0.0] * 3, std=[1.0] * 3, seed=0)
    assert sum(p.numel() for p in net.parameters()) * 4 / 2**20 == pytest.approx(97.49, abs=0.005)


def test_normalisation_is_inside():
    x = torch.rand(4, 3, 2, 2)
    torch.testing.assert_close(build("digits-cnn")[0](x), (x - 0.5) / 0.25)


def test_weights_depend_on_the_seed_alone():
    state = torch.get_rng_state()
    a = build("digits-cnn")
    torch.manual_seed(5)
    b = build("digits-cnn")
    other = build("digits-cnn", seed=1)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a[1].classifier.weight, other[1].classifier.weight)
    torch.set_rng_state(state)
    build("digits-cnn")
    assert torch.equal(torch.get_rng_state(), state)
