"""Precision and memory layout, which attacks and costs do not depend on."""

from functools import partial

import pytest
import torch

from hpcdat.attacks.pgd import PGD
from hpcdat.models import build_model
from hpcdat.models.losses import clean_loss


def build(name="preact-resnet18", **settings):
    """The same weights for all settings."""
    statistics = {"mean": [0.5] * 3, "std": [0.25] * 3}
    return build_model(name, channels=3, num_classes=10, seed=0, **statistics, **settings).eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(8, 3, 16, 16, generator=generator), torch.arange(8)


SETTINGS = [{}, {"precision": "bfloat16"}, {"precision": "bfloat16", "channels_last": True}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_logits_and_gradients_are_float32_and_names_do_not_change(batch, settings):
    x, y = batch
    model = build(**settings).train()
    logits = model(x.requires_grad_())
    clean_loss(logits, y).sum().backward()
    assert logits.dtype == x.grad.dtype == torch.float32
    for p in model.parameters():
        assert p.dtype == p.grad.dtype == torch.float32 and p.grad.is_contiguous()
    assert list(model.state_dict()) == list(build().state_dict())


def test_bfloat16_changes_the_logits_by_about_its_rounding(batch):
    """8 bits of mantissa: 2^-8 a rounding, some of them in a row."""
    x, _ = batch
    exact, reduced = build()(x), build(precision="bfloat16")(x)
    error = (reduced - exact).norm() / exact.norm()
    assert 2**-12 < error < 2**-4


@pytest.mark.parametrize("settings", SETTINGS[1:], ids=str)
def test_an_attack_in_bfloat16_gains_as_much_loss(batch, settings):
    """Both perturbations are evaluated in float32: the gains differ by less than 2 %."""
    x, y = batch
    phi, exact_model = partial(clean_loss, y=y), build("digits-cnn")

    def gain(model):
        x_adv = PGD(eps=0.2, step_size=0.05, steps=5, random_start=False)(model, phi, x)
        assert x_adv.dtype == torch.float32 and (x_adv - x).abs().max() <= 0.2
        return (clean_loss(exact_model(x_adv), y) - clean_loss(exact_model(x), y)).mean().item()

    exact = gain(exact_model)
    assert exact > 0.1, "the attack must matter for this test to mean anything"
    assert gain(build("digits-cnn", **settings)) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("name", ["digits-cnn", "preact-resnet18"])
def test_the_memory_layout_changes_nothing_but_rounding(batch, name):
    x, y = batch
    answers = []
    for channels_last in (False, True):
        model = build(name, channels_last=channels_last)
        logits = model(x)
        gradients = torch.autograd.grad(clean_loss(logits, y).mean(), list(model.parameters()))
        answers.append((logits, gradients))
    torch.testing.assert_close(*answers, rtol=1e-5, atol=1e-5)


def test_channels_last_reaches_the_network(batch):
    layouts = []
    model = build(channels_last=True)
    model[1].stem.register_forward_hook(
        lambda module, inputs, output: layouts.append(output.is_contiguous(memory_format=torch.channels_last))
    )
    model(batch[0])
    assert layouts == [True]
