"""Split batch norm: who passes which branch, and what each of them learns."""

import copy

import torch
from torch import nn

from hpcdat.attacks.pgd import PGD
from hpcdat.models import MODELS
from hpcdat.models.losses import Labelled, clean_loss, local_cost
from hpcdat.models.split_batch_norm import SplitBatchNorm, routed, split_batch_norm


def make(seed=0):
    torch.manual_seed(seed)
    return MODELS["preact-resnet18"](1, 10, 0.1)


def test_main_statistics_are_those_of_clean_images_alone():
    plain = make()
    model = copy.deepcopy(plain)
    split_batch_norm(model)
    x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    for _ in range(3):
        x_adv = PGD(
            eps=0.1, step_size=0.1, steps=1, batch_norm="train", branch="adversarial", random_start=False
        )(model.train(), lambda logits: clean_loss(logits, y), x)
        parts = Labelled(x, y), Labelled(x_adv, y)
        local_cost(model, *parts, weights=(0.5, 0.5)).total.backward()
        plain.train()(x)
    expected = dict(plain.named_buffers())
    found = {name.replace(".main", ""): t for name, t in model.named_buffers() if ".main." in name}
    assert found.keys() == expected.keys() and len(found) == 3 * 17
    assert all(torch.equal(found[name], expected[name]) for name in found)
    for layer in (m for m in model.modules() if isinstance(m, SplitBatchNorm)):
        assert not torch.equal(layer.auxiliary.running_mean, layer.main.running_mean)
        assert layer.auxiliary.weight.grad is not None and layer.main.weight.grad is not None


def test_evaluation_passes_main_whatever_was_routed_before():
    model = make()
    split_batch_norm(model)
    with torch.no_grad():
        for layer in (m for m in model.modules() if isinstance(m, SplitBatchNorm)):
            layer.auxiliary.running_mean += 1
    model.eval()
    x = torch.rand(2, 1, 8, 8)
    main = model(x)
    try:
        with routed(model, "adversarial"):
            auxiliary = model(x)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert torch.equal(model(x), main) and not torch.equal(auxiliary, main)


def test_splitting_twice_is_splitting_once():
    model = nn.Sequential(nn.Sequential(nn.BatchNorm1d(3)), nn.BatchNorm2d(4))
    split_batch_norm(model)
    names = [name for name, _ in model.named_parameters()]
    split_batch_norm(model)
    assert [name for name, _ in model.named_parameters()] == names and len(names) == 8
