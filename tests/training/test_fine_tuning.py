"""A smoke test: networks of both libraries, fine-tuned from given weights on photographs of two classes."""

import json

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.models import get_model

from hpcdat.data.cifar import read_cifar
from hpcdat.data.images import DataError
from tests.conftest import run_here
from tests.evaluation.test_autoattack import CIFAR

VIT = {"img_size": 32, "patch_size": 8, "depth": 2}
NETWORKS = {
    "torchvision:resnet18": ({}, lambda: get_model("resnet18"), "conv1.weight"),
    "timm:vit_tiny_patch16_224": (
        VIT,
        lambda: timm.create_model("vit_tiny_patch16_224", **VIT),
        "patch_embed.proj.weight",
    ),
}
"""By ``model.name``: options, a network for 1,000 classes, and the name of its first weight."""


@pytest.fixture
def photographs(tmp_path):
    """Cats and dogs of CIFAR-10 as files: 16 of each class for training and for test."""
    try:
        splits = read_cifar("cifar10", CIFAR, download=False)
    except DataError as error:
        pytest.skip(f"without CIFAR-10 nothing was fine-tuned: {error}")
    for part, images in zip(("train", "test"), splits, strict=True):
        for kind in ("cat", "dog"):
            label, folder = images.classes.index(kind), tmp_path / "photographs" / part / kind
            folder.mkdir(parents=True)
            for number in [n for n, other in enumerate(images.labels) if other == label][:16]:
                Image.fromarray(images.pixels[number]).save(folder / f"{number}.png")
    return tmp_path / "photographs"


@pytest.mark.full
@pytest.mark.parametrize("name", NETWORKS)
def test_given_weights_are_fine_tuned(tmp_path, photographs, name):
    options, build, first = NETWORKS[name]
    given = build().state_dict()
    torch.save(given, tmp_path / "given.pth")
    job = {
        "run_dir": str(tmp_path / "run"),
        "method": "dat-fgsm",
        "epochs": 1,
        "batch_size": 8,
        "device": "cpu",
        "data": {"root": str(photographs), "image_size": 32, "loader": "device"},
        "model": {"name": name, "options": options, "pretrained": str(tmp_path / "given.pth")},
        "attack": {"eps": "2/255"},
        "evaluation": {"steps": 2},
        "optimizer": {"lr": 0.001},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    done = run_here("train", tmp_path / "job.yaml")
    assert done.returncode == 0, done.stderr
    assert "the file is for 1,000 classes, the model for 2" in done.stdout
    assert run_here("export", tmp_path / "run", tmp_path / "a.safetensors").returncode == 0
    tuned = load_file(tmp_path / "a.safetensors")
    assert tuned.keys() == given.keys() and not torch.equal(tuned[first], given[first])
    torch.testing.assert_close(tuned[first], given[first], rtol=0, atol=0.05)
