"""Evaluation and certification of models in memory; the examples in docstrings cover the rest."""

from functools import partial

import pytest
import torch
from torch import nn

from hpcdat import PGD, certify, evaluate, train
from hpcdat.data.images import Images
from hpcdat.errors import InputError

GENERATOR = torch.Generator().manual_seed(0)
BYTES = torch.randint(256, (60, 3, 6, 6), generator=GENERATOR, dtype=torch.uint8)
IMAGES = BYTES / 255


def make_model(classes=10):
    """A linear model with batch norm, in training mode."""
    torch.manual_seed(1)
    return nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(108, classes))


def labels_of(model, wrong=6):
    """The model's own classes, except for some images."""
    with torch.no_grad():
        labels = model.eval()(IMAGES).argmax(1)
    labels[:wrong] = (labels[:wrong] + 1) % 10
    model.train()
    return labels


def test_accuracies_are_those_of_pgd_by_hand():
    model = make_model()
    labels = labels_of(model)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    result = evaluate(model, IMAGES, labels, eps=0.02, steps=5, batch_size=60)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())

    model.eval()
    # The loss of a linear model has one maximum, so that the random start is irrelevant for most images.
    attack = PGD(eps=0.02, step_size=0.01, steps=5, random_start=False)
    loss = partial(nn.functional.cross_entropy, target=labels, reduction="none")
    robust = (model(attack(model, loss, IMAGES)).argmax(1) == labels) & (model(IMAGES).argmax(1) == labels)
    assert (result.images, result.ta, result.aa) == (60, 0.9, None)
    assert abs(result.ra - robust.double().mean().item()) <= 2 / 60 and 0 < result.ra < result.ta


def test_bytes_are_the_same_as_numbers_between_0_and_1():
    model = make_model()
    labels = labels_of(model)
    assert evaluate(model, BYTES, labels, eps=0.02) == evaluate(model, IMAGES, labels.int(), eps=0.02)


def exactly_robust(model, labels, eps):
    """Which images keep their class under all perturbations within eps and [0, 1]: a closed form."""
    weight, bias = model[3].weight.double() / (1 + model[0].eps) ** 0.5, model[3].bias.double()
    x = IMAGES.double().flatten(1)
    differences = weight[labels][:, None] - weight
    down, up = x.clamp(max=eps)[:, None], (1 - x).clamp(max=eps)[:, None]
    margin = (differences * x[:, None]).sum(2) + bias[labels][:, None] - bias
    margin -= torch.where(differences > 0, differences * down, -differences * up).sum(2)
    margin[torch.arange(len(x)), labels] = torch.inf
    return (margin > 0).all(1)


def test_autoattack_finds_what_a_linear_model_withstands():
    model = make_model()
    labels = labels_of(model)
    result = evaluate(model, IMAGES, labels, eps=0.02, autoattack="all")
    exact = exactly_robust(model, labels, 0.02).double().mean().item()
    assert result.aa_images == 60 and result.aa_version is None
    assert 0.1 < exact < 0.8 and result.aa == exact <= result.ra


def test_the_fast_bound_is_what_a_linear_model_withstands():
    model = make_model()
    labels = labels_of(model)
    result = evaluate(model, IMAGES, labels, eps=0.02, fast_bound=True)
    exact = exactly_robust(model, labels, 0.02).double().mean().item()
    assert 0.1 < exact < 0.8 and result.fast_bound == exact <= result.ra and result.aa is None


def test_autoattack_of_some_images_takes_equally_many_of_each_class():
    model = make_model()
    labels = torch.arange(60) % 10
    positions = Images([""] * 60, labels.tolist(), [""] * 10).balanced(20)
    result = evaluate(model, IMAGES, labels, eps=0.02, steps=1, autoattack=20)
    assert result.aa_images == 20 and sorted(labels[positions].tolist()) == sorted([*range(10)] * 2)
    assert result.aa == exactly_robust(model.eval(), labels, 0.02)[positions].double().mean().item()


def test_autoattack_of_few_classes_is_named():
    model = make_model(classes=3)
    result = evaluate(model, IMAGES[:6], torch.arange(6) % 3, eps=0.02, steps=1, autoattack="all")
    assert "3 classes: 2 targets in place of 9" in result.aa_version
    assert any("not the standard version" in warning for warning in result.warnings)


def test_certificates_of_a_linear_model_are_nearly_exact():
    """The decision boundaries of a linear model are planes: the certified radius is at most the distance."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 2))
    labels = model(IMAGES[:8]).argmax(1)
    certified = certify(model, IMAGES[:8], labels, sigma=0.2, n=2000)
    weight, bias = model[1].weight[1] - model[1].weight[0], model[1].bias[1] - model[1].bias[0]
    distance = ((IMAGES[:8].flatten(1) @ weight + bias).abs() / weight.norm()).detach().numpy()
    radii = certified.correct_radii.clip(min=0)
    assert (radii <= distance + 0.02).all() and (
        radii[distance < 0.4] >= distance[distance < 0.4] - 0.1
    ).all()


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"eps": -1}, r"evaluation.eps: -1: expected 0 or more"),
        ({"norm": "l3"}, r"evaluation.norm: 'l3': expected one of linf, l2"),
        ({"images": IMAGES[0]}, r"images: expected \(N, C, H, W\).* not torch.float32 of shape \(3, 6, 6\)"),
        ({"images": IMAGES * 255}, r"images range from 0 to 255, not within \[0, 1\]"),
        ({"images": BYTES.long()}, r"images: expected .*not torch.int64"),
        ({"images": IMAGES[:0], "labels": torch.zeros(0, dtype=torch.int64)}, "images: there are none"),
        ({"labels": torch.zeros(60)}, "labels: expected 60 integers, one for each image, not torch.float32"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels: expected 60 integers"),
        ({"labels": torch.arange(60)}, r"labels: expected 0 to 9, for the 10 logits .*found 0 to 59"),
        ({"model": nn.Flatten(0)}, r"model: expected logits \(N, classes\).*found \(108,\)"),
        ({"autoattack": 61}, "cannot take 61 images of 60"),
    ],
)
def test_wrong_arguments_are_errors_of_one_line(change, expected):
    given = {"model": make_model(), "images": IMAGES, "labels": torch.arange(60) % 10, "eps": 0.02} | change
    with pytest.raises(InputError, match=expected) as caught:
        evaluate(given.pop("model"), given.pop("images"), given.pop("labels"), **given)
    assert "\n" not in str(caught.value)


def test_a_wrong_setting_of_a_training_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"the job:\d+: epoch: unknown key; did you mean 'epochs'\?"):
        train({"run_dir": str(tmp_path / "run"), "method": "plain", "epoch": 1})
    assert not (tmp_path / "run").exists()


def test_a_job_may_be_a_dictionary_of_pythons_own_types(tmp_path):
    job = {
        "run_dir": tmp_path / "run",
        "method": "plain",
        "epochs": 1,
        "batch_size": 50,
        "optimizer": {"lr": 0.1},
    }
    data = {"source": "folder", "root": tmp_path, "image_size": 8}
    with pytest.raises(InputError, match=str(tmp_path / "train")):
        train({**job, "optimizer": {"lr": 0.1}, "data": data, "schedule": {"decay_epochs": ()}})
