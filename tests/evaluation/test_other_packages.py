"""Weights of others, evaluated through a job file: image by image as other packages evaluate them."""

import json
from functools import partial

import foolbox
import numpy as np
import pyautoattack
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from hpcdat.attacks.pgd import PGD
from hpcdat.commands.evaluate import evaluate
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.evaluation.request import EvaluationRequest
from hpcdat.models import MODELS
from hpcdat.models.losses import clean_loss
from hpcdat.seeds import derive
from tests.conftest import Never
from tests.evaluation.test_autoattack import Quick

MEAN, STD, BATCH = 0.5, 0.2, 12
NETWORKS = {
    "plain": ("digits-cnn", 1.0, None),
    "adversarially trained": ("digits-cnn", 1.0, 0.03),
    "residual": ("preact-resnet18", 0.1, None),
}
"""Network, factor of its width, radius of the attack that it is trained with."""


class Normalised(nn.Module):
    """A network of pixels, made without this package's layers."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network((x - MEAN) / STD)


@pytest.fixture(scope="module")
def greys(tmp_path_factory):
    """Digits in greys from 0.3 to 0.7, so that no attack reaches black or white; 20 of them as files."""
    digits = load_digits()
    pixels = (77 + digits.images * 102 / 16).astype(np.uint8)
    root, test = tmp_path_factory.mktemp("greys"), []
    for label in range(10):
        for number, index in enumerate(np.flatnonzero(digits.target == label)[:2]):
            file = root / "shown" / str(label) / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[index]).save(file)
            test.append(index)
    x, y = torch.from_numpy(pixels).float().div(255).unsqueeze(1), torch.from_numpy(digits.target)
    rest = np.setdiff1d(np.arange(len(y)), test)
    return root, (x[test], y[test]), (x[rest], y[rest])


@pytest.fixture(scope="module", params=NETWORKS)
def given(request, greys, tmp_path_factory):
    """A network of others, and the job file that evaluates its weights."""
    root, _, (x, y) = greys
    name, width, eps = NETWORKS[request.param]
    torch.manual_seed(0)
    network = Normalised(MODELS[name](1, 10, **({} if width == 1 else {"width": width})))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for start in range(0, 1600, 160):
        images, labels = x[start : start + 160], y[start : start + 160]
        if eps:
            attack = PGD(eps=eps, step_size=eps, steps=2, norm="linf", random_start=False)
            images = attack(network, partial(clean_loss, y=labels), images)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("given")
    state = {f"module.{key}": value for key, value in network.network.state_dict().items()}
    torch.save({"epoch": 7, "state_dict": state}, folder / "theirs.pth")
    job = folder / "job.yaml"
    job.write_text(f"""\
run_dir: {folder / "evaluation"}
data: {{root: {root}, test: shown, loader: torchvision, image_size: 8, channels: 1}}
model: {{name: {name}, width: {width}, mean: [{MEAN}], std: [{STD}], pretrained: {folder / "theirs.pth"}}}
evaluation: {{eps: 0.03, steps: 10, random_start: false, batch_size: {BATCH}}}
""")
    return network.eval(), job


def outcomes(folder, name):
    """The outcomes of all images by column, from the files of one measurement."""
    (file,) = (folder / "evaluation").glob(f"{name}-*.jsonl")
    batches = [json.loads(line)["outcome"]["columns"] for line in file.read_text().splitlines()[1:]]
    return {key: [flag == "1" for batch in batches for flag in batch[key]] for key in batches[0]}


@pytest.mark.parametrize(
    "norm, eps, theirs", [("linf", 0.03, foolbox.attacks.LinfPGD), ("l2", 0.15, foolbox.attacks.L2PGD)]
)
def test_pgd_ends_for_each_image_as_foolboxs_does(given, greys, tmp_path, norm, eps, theirs):
    network, job = given
    settings = [f"run_dir={tmp_path}/run", f"evaluation.norm={norm}", f"evaluation.eps={eps}"]
    result = evaluate(job, settings, EvaluationRequest(), SingleProcess(), Never())
    found = outcomes(tmp_path / "run", "accuracy")
    _, (x, y), _ = greys
    attack = theirs(abs_stepsize=2.5 * eps / 10, steps=10, random_start=False)
    _, _, broken = attack(foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu"), x, y, epsilons=eps)
    correct = network(x).argmax(1) == y
    assert found["correct"] == correct.tolist()
    assert found["robust"] == (correct & ~broken).tolist()
    assert 0 < sum(found["robust"]) < sum(found["correct"]), "an outcome that says something"
    assert (result.ta, result.ra) == (sum(found["correct"]) / 20, sum(found["robust"]) / 20)


@pytest.mark.parametrize("shortened", [True, pytest.param(False, marks=pytest.mark.full)])
def test_autoattack_ends_for_each_image_as_the_packages_own_evaluation_does(
    given, greys, tmp_path, monkeypatch, shortened
):
    """On the same batches with the same seeds; only the whole attacks are AA."""
    if shortened:
        monkeypatch.setattr(pyautoattack, "AutoAttack", Quick)
    network, job = given
    few = [f"run_dir={tmp_path}/run", "evaluation.eps=0.02", "evaluation.steps=1"]
    result = evaluate(job, few, EvaluationRequest(autoattack="all"), SingleProcess(), Never())
    found = outcomes(tmp_path / "run", "autoattack")
    _, (x, y), _ = greys
    expected = []
    for number, start in enumerate(range(0, len(y), BATCH)):
        images, labels = x[start : start + BATCH], y[start : start + BATCH]
        seed = derive(0, "autoattack", number)
        own = pyautoattack.AutoAttack(network, norm="Linf", eps=0.02, device="cpu", seed=seed)
        _, answers = own.run_standard_evaluation(images, labels, batch_size=BATCH)
        expected += (answers == labels).tolist()
    assert found["square"] == expected
    assert 0 < sum(expected) < sum(found["correct"]), "an outcome that says something"
    assert result.aa == (None if shortened else sum(expected) / 20)
