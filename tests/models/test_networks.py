"""Networks of torchvision, of timm and of the user's own: built, checked, and refused in one line."""

import random
import sys

import numpy as np
import pytest
import torch
import torchvision

from hpcdat.config.job_file import JobError, read_job
from hpcdat.errors import InputError
from hpcdat.models import build_model, build_model_for, check_model_name
from hpcdat.models.split_batch_norm import SplitBatchNorm
from tests.conftest import DEMO

OWN = "tests.own_networks"


def build(name, *settings, classes=10):
    job = read_job(DEMO, [f"model.name={name if ':' in name else f'{OWN}:{name}'}", *settings])
    return build_model_for(job, classes)


def refused(name, *settings):
    with pytest.raises(InputError) as caught:
        build(name, *settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "library, option", [("torchvision:resnet18", ""), ("timm:vit_tiny_patch16_224", "{img_size: 32}")]
)
def test_a_librarys_network_is_that_of_the_library_with_its_options(library, option):
    job = ["data.image_size=32", *([f"model.options={option}"] if option else [])]
    model = build(library, *job, classes=7)
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 7)
    name = library.partition(":")[2]
    if library.startswith("timm"):
        import timm

        theirs = timm.create_model(name, num_classes=7, in_chans=1, img_size=32)
    else:
        theirs = torchvision.models.get_model(name, num_classes=7)
    assert type(model[1]) is type(theirs)
    assert list(model[1].state_dict()) == list(theirs.state_dict())


def test_grey_images_pass_torchvisions_networks_as_if_they_were_in_colour():
    statistics = {"num_classes": 5, "seed": 3}
    grey = build_model("torchvision:mobilenet_v3_small", channels=1, mean=[0.4], std=[0.3], **statistics)
    colour = build_model(
        "torchvision:mobilenet_v3_small", channels=3, mean=[0.4] * 3, std=[0.3] * 3, **statistics
    )
    x = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(grey.eval()(x), colour.eval()(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-6)


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_initial_weights_follow_the_seed_whichever_generator_they_come_from():
    models = []
    for number, seed in enumerate((0, 0, 1)):
        for seed_generator in (random.seed, np.random.seed, torch.manual_seed):
            seed_generator(number)
        before = states()
        models.append(build("Drawn", f"seed={seed}")[1])
        assert states() == before
    one, again, other = ((m.order, m.signs.tolist(), m.head.weight.tolist()) for m in models)
    assert one == again
    assert all(a != b for a, b in zip(one, other, strict=True))


def test_the_check_leaves_a_network_as_it_was_built():
    for name in ("Odd", "batch_norm", "Attention"):
        model = build(name)
        untouched = build_model(f"{OWN}:{name}", channels=1, num_classes=10, mean=[0.5], std=[0.25], seed=0)
        assert model.training and all(m.training for m in model.modules())
        for key, value in untouched.named_buffers():
            if "." in key and not key.startswith("0."):
                assert torch.equal(dict(model.named_buffers())[key], value), key
        assert all(p.grad is None for p in model.parameters())


def test_parameters_and_buffers_are_contiguous_and_tied_ones_stay_tied():
    network = build("Odd")[1]
    assert network.turned.is_contiguous() and network.turned.shape == (12, 16)
    assert network.positions.is_contiguous() and network.positions.tolist() == [[0, 1, 2]] * 2
    assert network.again.weight is network.first.weight
    assert network.nothing is None and "rotations" not in network.state_dict()


def test_batch_norm_in_two_places_is_split_once():
    model = build("batch_norm", "method=conadv", "attack.steps=1", "optimizer.lr=2")
    splits = [m for m in model.modules() if isinstance(m, SplitBatchNorm)]
    assert len(splits) == 1 and model[1][2] is model[1][4][1] is splits[0]


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", f"{OWN}:Attention"])
def test_split_batch_norm_needs_batch_norm(name):
    text = refused(name, "method=conadv", "attack.steps=1", "optimizer.lr=2", "data.image_size=224")
    assert (
        f"method conadv trains with two batch norms, one for adversarial images, and {name} has none" in text
    )


@pytest.mark.parametrize(
    "name, expected",
    [
        ("torchvision:resnet19", "torchvision has no network resnet19; did you mean resnet18 or resnet1"),
        (
            "torchvision:resnet",
            "torchvision has no network resnet; did you mean resnet18 or resnet34 or resnet50?",
        ),
        (
            "torchvision:fcn_resnet50",
            "torchvision:fcn_resnet50 does not classify images: it returns no logits",
        ),
        ("torchvison:resnet18", "there is no module torchvison in "),
        ("torchvison:resnet18", "did you mean torchvision?"),
        ("timm:vit_tiny", "timm has no network vit_tiny; did you mean vit_tiny_patch16_224 or vit_tiny_"),
        ("timm:vit_tinny_patch16_224", "timm has no network vit_tinny_patch16_224; did you mean vit_tiny_"),
        (
            "torchvision:googlenet",
            "returns a GoogLeNetOutputs of 3 in training mode, expected logits (N, 10)",
        ),
        ("a_module_of_nobody:net", "there is no module a_module_of_nobody"),
        (f"{OWN}:Attentoin", "did you mean Attention?"),
        ("nothing", "returned NoneType, expected a torch.nn.Module"),
        ("a_class", "returned the class Attention, expected a torch.nn.Module: return an instance"),
        ("other_arguments", "takes no argument num_classes: it is called as callable(num_classes=..., in_"),
        ("fails", "own_networks.py:"),
        ("fails", "KeyError: 'of the user'"),
    ],
)
def test_what_is_no_network_is_refused(name, expected):
    assert expected in refused(name, "data.image_size=96")


@pytest.mark.parametrize(
    "what, expected",
    [
        ("tuple", "returns a tuple of 2 in training mode, expected logits (N, 10), N the number of images"),
        ("auxiliary", "returns a tuple of 2 in training mode"),
        ("mapping", "returns a dict of 1 in training mode"),
        ("features", "returns a tensor (2, 1) for 2 images in training mode, expected logits (N, 10)"),
        ("one", "returns a tensor () for 2 images"),
        ("classes", "returns int64 numbers"),
        (
            "probabilities",
            "returns probabilities in training mode, expected logits (N, 10), N the number of images",
        ),
        ("size", "fails on images of 1x8x8 (data.channels, data.image_size): "),
        ("detached", "no gradient reaches the images, so they cannot be attacked"),
        ("counts", "a pass in evaluation mode changes the buffer 1.count"),
        ("derived", "training changes the buffer 1.count, which is not persistent"),
        ("late", "a pass adds 1.late to its state"),
        ("half", "head.weight is float16, expected float32: call .float()"),
        ("lazy", "head.weight belongs to a lazy layer"),
        ("empty", "has no parameters"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused(what, expected):
    text = refused("Wrong", f"model.options={{what: {what}}}")
    assert text.startswith(f"model.name: {OWN}:Wrong: ") or "has no parameters" in text
    assert expected in text


@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("Attention", "{widht: 8}", "takes no widht; did you mean width?; it has width, dropout"),
        ("Attention", "{num_classes: 8}", "num_classes is not allowed: it follows from the data"),
        ("torchvision:resnet18", "{weights: DEFAULT}", "weights is not allowed: nothing is downloaded"),
        ("torchvision:resnet18", "{depth: 3}", "torchvision:resnet18 failed: TypeError: "),
        ("timm:resnet18", "{pretrained: true}", "pretrained is not allowed: nothing is downloaded"),
        ("timm:resnet18", "{in_chans: 3}", "in_chans is not allowed: it follows from the data"),
    ],
)
def test_wrong_options_are_refused(name, options, expected):
    assert expected in refused(name, f"model.options={options}")


def test_a_network_for_images_of_one_size_names_the_option():
    text = refused("timm:vit_tiny_patch16_224", "data.image_size=32")
    assert "fails on images of 1x32x32" in text and "model.options (img_size)" in text


def test_a_module_that_is_returned_twice_is_refused():
    """A second training in the same process would start from the weights of the first."""
    build("the_same")
    assert "returned the same module as in an earlier call" in refused("the_same")


def test_options_and_names_without_a_library():
    with pytest.raises(JobError, match=r"model\.options: not allowed with digits-cnn"):
        read_job(DEMO, ["model.options={width: 3}"])
    with pytest.raises(JobError, match=r"did you mean 'torchvision:resnet34'\?"):
        read_job(DEMO, ["model.name=resnet34"])
    with pytest.raises(JobError, match=r"expected one of .*did you mean 'preact-resnet18'\?"):
        read_job(DEMO, ["model.name=preact-resnet81"])


def test_without_timm_the_line_to_install_it_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install timm" in refused("timm:resnet18")


def test_names_are_checked_without_building():
    for name in ("torchvision:resnet19", f"{OWN}:Attentoin"):
        with pytest.raises(InputError, match="did you mean"):
            check_model_name(read_job(DEMO, [f"model.name={name}"]))
