"""The models by name."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hpcdat.models import MODELS, build_model
from hpcdat.models.preact_resnet import PreActBlock, preact_resnet18, wide_resnet28_10


def build(name, channels=3, seed=0):
    statistics = {"mean": [0.5] * channels, "std": [0.25] * channels}
    return build_model(name, channels=channels, num_classes=7, seed=seed, **statistics)


@pytest.mark.parametrize(
    "name, size",
    [
        ("digits-cnn", 8),
        ("preact-resnet18", 32),
        ("preact-resnet18", 20),
        ("wide-resnet28-10", 16),
        ("resnet50", 64),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_become_logits(name, size, channels):
    assert build(name, channels).eval()(torch.rand(2, channels, size, size)).shape == (2, 7)


def test_resnet50_has_the_size_that_the_paper_sends():
    """97.49 MiB of float32 gradient with 1,000 classes (Table 4: 2924 = 30 x 97.49)."""
    model = build_model("resnet50", channels=3, num_classes=1000, mean=[0.0] * 3, std=[1.0] * 3, seed=0)
    assert sum(p.numel() for p in model.parameters()) * 4 / 2**20 == pytest.approx(97.49, abs=0.005)


@pytest.mark.parametrize(
    "model, expected",
    [(preact_resnet18(3, 10), 11_172_170), (wide_resnet28_10(3, 10), 36_479_194)],
    ids=["preact-resnet18", "wide-resnet28-10"],
)
def test_residual_nets_have_their_published_sizes(model, expected):
    assert sum(p.numel() for p in model.parameters()) == expected


def test_a_block_whose_convolutions_are_zero_is_the_identity():
    """The shortcut has no activation, which comes before the convolutions."""
    block = PreActBlock(4, 4, stride=1)
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 5, 5)
    assert block.shortcut is None and torch.equal(block(x), x)


def test_stages_halve_height_and_width():
    model = preact_resnet18(3, 10).eval()
    sizes = {tuple(model.stages[: n + 1](model.stem(torch.rand(1, 3, 32, 32))).shape[1:]) for n in range(8)}
    assert sizes == {(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)}


def test_normalisation_is_inside():
    x = torch.rand(4, 3, 2, 2)
    torch.testing.assert_close(build("digits-cnn")[0](x), (x - 0.5) / 0.25)


def test_weights_depend_only_on_the_seed():
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


def test_threads_that_build_at_once_draw_the_weights_of_one():
    """As ranks of the loopback communicator do."""
    alone = weights_of(build("digits-cnn"))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            built = list(pool.map(lambda _: weights_of(build("digits-cnn")), range(40)))
    finally:
        sys.setswitchinterval(before)
    assert all(torch.equal(weights, alone) for weights in built)


def test_a_network_may_build_another_one(monkeypatch):
    monkeypatch.setitem(MODELS, "nested", lambda channels, classes: build("digits-cnn", channels)[1])
    assert torch.equal(weights_of(build("nested")), weights_of(build("digits-cnn")))


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])
