"""Weights in the formats and names of other programs: safetensors, torchvision, timm, RobustBench."""

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from hpcdat.errors import InputError
from hpcdat.models.normalization import Normalization
from hpcdat.models.pixel_model import PixelModel
from hpcdat.models.split_batch_norm import split_batch_norm
from hpcdat.storage.checkpoint_format import Checkpoint, save_checkpoint
from hpcdat.training.classifier import class_tensors
from hpcdat.training.pretrained import load_pretrained
from hpcdat.training.weight_files import METADATA


class Toy(nn.Module):
    """A network with a convolution, a batch norm and a head."""

    def __init__(self, classes=5, width=4):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.norm(self.stem(x)).mean((2, 3)))


def model_of(network, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)):
    return PixelModel(Normalization(mean, std), network, "float32", False)


def named(count):
    return [str(number) for number in range(count)]


def load(tmp_path, value, network, classes=5, **options):
    """Load a value that torch.save has written, or a file of that name, into a network."""
    path = tmp_path / (value if isinstance(value, str) else "weights.pth")
    if not isinstance(value, str):
        torch.save(value, path)
    return load_pretrained(model_of(network), path, named(classes), **options)


def drawn(network):
    """A network with other weights and statistics, of any dtype."""
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1)
    return network


def assert_same(ours, theirs, but=()):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert {name for name in ours if not torch.equal(ours[name], theirs[name])} == set(but)


def vision_transformer(classes, image_size=8):
    sizes = {"patch_size": 4, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8}
    return torchvision.models.VisionTransformer(image_size, num_classes=classes, **sizes)


def densenet(classes):
    return torchvision.models.DenseNet(4, (1, 1), 8, num_classes=classes)


def timm_vit(classes, name="vit_tiny_patch16_224"):
    size = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
    return timm.create_model(name, num_classes=classes, **size)


def swin(classes):
    sizes = {"patch_size": [2, 2], "embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": [2, 2]}
    return torchvision.models.SwinTransformer(num_classes=classes, **sizes)


NETWORKS = {
    "torchvision-resnet": (
        lambda classes: torchvision.models.ResNet(
            torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], classes, width_per_group=64
        ),
        ["fc"],
    ),
    "torchvision-densenet": (densenet, ["classifier"]),
    "torchvision-squeezenet": (lambda c: torchvision.models.squeezenet1_1(num_classes=c), ["classifier.1"]),
    "torchvision-mobilenet": (
        lambda c: torchvision.models.mobilenet_v3_small(num_classes=c, width_mult=0.25),
        ["classifier.3"],
    ),
    "torchvision-vit": (vision_transformer, ["heads.head"]),
    "torchvision-swin": (swin, ["head"]),
    "torchvision-convnext": (
        lambda c: torchvision.models.ConvNeXt(
            [torchvision.models.convnext.CNBlockConfig(8, None, 2)], num_classes=c
        ),
        ["classifier.2"],
    ),
    "timm-vit": (timm_vit, ["head"]),
    "timm-deit": (lambda c: timm_vit(c, "deit_tiny_distilled_patch16_224"), ["head", "head_dist"]),
    "timm-convnext": (
        lambda c: timm.models.convnext.ConvNeXt(num_classes=c, depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)),
        ["head.fc"],
    ),
    "timm-resnet": (lambda c: timm.create_model("test_resnet", num_classes=c), ["fc"]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_of_1000_classes_gives_any_network_all_but_its_head(tmp_path, name):
    build, heads = NETWORKS[name]
    torch.manual_seed(0)
    source, network = drawn(build(1000)), build(7)
    fresh = [f"{head}.{part}" for head in heads for part in ("weight", "bias")]
    assert class_tensors(network, 7) == set(fresh)
    before = {name: network.state_dict()[name].clone() for name in fresh}
    torch.save({"state_dict": source.state_dict()}, tmp_path / "weights.pth")
    loaded = load_pretrained(model_of(network), tmp_path / "weights.pth", named(7))
    assert sorted(loaded.fresh) == sorted(f"1.{name}" for name in fresh)
    assert loaded.remarks == ["the file is for 1,000 classes, the model for 7"]
    assert all(torch.equal(t, network.state_dict()[name]) for name, t in before.items())
    for part, tensor in network.state_dict().items():
        assert part in fresh or torch.equal(tensor, source.state_dict()[part]), part


def test_safetensors_are_read_as_torchs_files_are_with_classes_and_normalisation_of_an_export(tmp_path):
    source, network = drawn(Toy()), Toy()
    safetensors.torch.save_file(source.state_dict(), tmp_path / "plain.safetensors")
    loaded = load(tmp_path, "plain.safetensors", network)
    assert_same(network, source)
    assert loaded.assumed == named(5) and loaded.remarks == []
    described = {"classes": ["4", "3", "2", "1", "0"], "mean": [0.5, 0.5, 0.4], "std": [0.25] * 3}
    path = tmp_path / "exported.safetensors"
    safetensors.torch.save_file(source.state_dict(), path, {METADATA: json.dumps(described)})
    loaded = load(tmp_path, path.name, Toy())
    assert loaded.fresh == ["1.fc.weight", "1.fc.bias"] and loaded.assumed == []
    assert loaded.remarks == [
        "the file's normalisation is not used: mean 0.5 0.5 0.4, std 0.25 0.25 0.25 there, mean 0.5 0.5 0.5, "
        "std 0.25 0.25 0.25 here (model.mean, model.std)"
    ]
    # Metadata of other programs, or damaged, is not ours.
    safetensors.torch.save_file(source.state_dict(), path, {METADATA: '{"classes": [1]}'})
    assert load(tmp_path, path.name, Toy()).assumed == named(5)


def test_damaged_safetensors_are_refused_in_one_sentence(tmp_path):
    whole = safetensors.torch.save(Toy().state_dict())
    size = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + size]
    files = {
        "cut": whole[:-9],
        "longer": whole + b"x",
        "cut-header": whole[:50],
        "huge-header": (2**62).to_bytes(8, "little") + whole[8:],
        "no-json": whole[:8] + b"!" * size + whole[8 + size :],
        "shape": whole[:8] + header.replace(b"[4,3,3,3]", b"[9,3,3,3]") + whole[8 + size :],
        "none": (2).to_bytes(8, "little") + b"{}",
        "empty": b"",
        "page": b"<!DOCTYPE html><html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\n",
        "torch": b"\x80\x02}q\0.",
        "index": b'{"metadata": {}, "weight_map": {}}',
    }
    expected = {
        "none": "expected tensors by name, found none",
        "empty": "empty: write it with",
        "page": "an HTML or XML page",
        "pointer": "a pointer of Git LFS",
        "index": "JSON, not a file of weights: give the weights themselves",
    }
    for name, contents in files.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(contents)
        match = expected.get(name, "an incomplete or damaged safetensors file .*: copy or download it again$")
        with pytest.raises(InputError, match=f"^model.pretrained: {path}: {match}") as refused:
            load(tmp_path, path.name, Toy())
        assert str(refused.value).isprintable() and len(str(refused.value)) < 400


def test_a_checkpoint_of_timm_gives_its_weights_and_the_average_if_asked(tmp_path):
    source, average = drawn(Toy()), drawn(Toy())
    checkpoint = {
        "epoch": 3,
        "arch": "toy",
        "state_dict": source.state_dict(),
        "optimizer": torch.optim.SGD(source.parameters(), lr=0.1).state_dict(),
        "args": argparse.Namespace(lr=0.1, model="toy"),
        "metric": np.float64(76.5),
        "state_dict_ema": {f"module.{name}": t for name, t in average.state_dict().items()},
    }
    network = Toy()
    loaded = load(tmp_path, checkpoint, network)
    assert_same(network, source)
    assert loaded.found_in == "in 'state_dict'"
    assert loaded.remarks == [
        "not used: averaged weights, in 'state_dict_ema'; model.pretrained_averaged takes them"
    ]
    loaded = load(tmp_path, checkpoint, network, averaged=True)
    assert_same(network, average)
    assert (loaded.found_in, loaded.remarks) == ("in 'state_dict_ema', without 'module.'", [])
    network = Toy()
    assert load(tmp_path, {"ema": average.state_dict()}, network).found_in == "in 'ema'"
    assert_same(network, average)
    del checkpoint["state_dict_ema"]
    with pytest.raises(InputError, match=r"model.pretrained_averaged: there are no averaged weights"):
        load(tmp_path, checkpoint, network, averaged=True)


def test_averaged_weights_of_a_run_are_taken_if_asked(tmp_path):
    source, average = drawn(Toy()), drawn(Toy())
    stored = Checkpoint(
        **{"model": model_of(source).state_dict(), "averaged": model_of(average).state_dict()},
        **{"optimizer": {}, "epoch": 1, "step": 0, "workers": 1, "classes": named(5), "images": 9},
    )
    save_checkpoint(tmp_path / "epoch.pt", stored)
    network = Toy()
    assert load(tmp_path, "epoch.pt", network).found_in == ""
    assert_same(network, source)
    assert load(tmp_path, "epoch.pt", network, averaged=True).found_in == "averaged weights"
    assert_same(network, average)
    save_checkpoint(tmp_path / "epoch.pt", replace(stored, averaged=None))
    with pytest.raises(InputError, match="there are no averaged weights: the run has averaged none"):
        load(tmp_path, "epoch.pt", network, averaged=True)


@pytest.mark.parametrize(
    "prefix, mean, std",
    [
        ("module.1.", "module.0.mean", "module.0.std"),
        ("model.", "normalize.mean", "normalize.std"),
        ("module.model.", "module.mu", "module.sigma"),
        ("", "mean", "std"),
        ("1.", "0.mean", "0.std"),
    ],
)
def test_normalisation_layers_of_robust_models_are_dropped_and_compared(tmp_path, prefix, mean, std):
    source, network = drawn(Toy()), Toy()
    state = {f"{prefix}{name}": t for name, t in source.state_dict().items()}
    state[mean], state[std] = torch.full((3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.25)
    assert load(tmp_path, {"state_dict": state}, network).remarks == []
    assert_same(network, source)
    state[std] = torch.tensor([0.2471, 0.2435, 0.2616])
    (remark,) = load(tmp_path, {"net": state}, Toy()).remarks
    assert remark.startswith(
        "the file's normalisation is not used: mean 0.5 0.5 0.5, std 0.2471 0.2435 0.2616 "
    )


def test_what_is_left_over_is_a_remark_or_an_error_never_silent(tmp_path):
    source = drawn(Toy())
    state = source.state_dict()
    ema = {f"ema.{name}": t for name, t in drawn(Toy()).state_dict().items()}
    for more, expected in [
        ({"aux1.fc.weight": torch.ones(9, 9)}, "left over: auxiliary classifiers (aux1.fc.weight)"),
        (ema, "left over: further copies of the network, such as averages (ema.stem.weight, "),
        ({"stem.total_ops": torch.ones(1)}, "left over: counters and tables (stem.total_ops)"),
    ]:
        network = Toy()
        (remark,) = load(tmp_path, {**state, **more}, network).remarks
        assert remark.startswith(expected)
        assert_same(network, source)
    both = {f"{who}.{name}": t for who in ("student", "teacher") for name, t in state.items()}
    for wrong, expected in [
        ({**state, "stem.se.weight": torch.ones(4, 4)}, r"it has 1 others \(stem.se.weight\)"),
        ({**state, "head.weight": torch.ones(5, 4)}, r"it has 1 others \(head.weight\)"),
        ({**state, "ema.fc.bias": torch.ones(5)}, r"it has 1 others \(ema.fc.bias\)"),
        (both, "it has the network more than once, under 'student.' and 'teacher.': save one of them"),
        (vision_transformer(5).state_dict(), r"it lacks 8 of 8 tensors .*; it has \d+ others"),
    ]:
        network = Toy()
        before = {name: t.clone() for name, t in network.state_dict().items()}
        with pytest.raises(InputError, match=expected):
            load(tmp_path, wrong, network)
        assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


def test_a_backbone_without_head_or_with_a_head_of_another_name_starts_a_fresh_head(tmp_path):
    source, network = drawn(Toy()), Toy()
    backbone = {name: t for name, t in source.state_dict().items() if not name.startswith("fc.")}
    loaded = load(tmp_path, backbone, network)
    assert loaded.fresh == ["1.fc.weight", "1.fc.bias"] and loaded.remarks == []
    assert torch.equal(network.stem.weight, source.stem.weight)
    backbone |= {"linear.weight": torch.ones(10, 4), "linear.bias": torch.ones(10)}
    loaded = load(tmp_path, backbone, Toy())
    assert loaded.fresh == ["1.fc.weight", "1.fc.bias"]
    assert loaded.remarks == ["left over: a last layer (linear.weight, linear.bias)"]


@pytest.mark.parametrize("build", [vision_transformer, timm_vit])
def test_positional_embeddings_of_another_size_are_an_error_that_says_so(tmp_path, build):
    larger = build(5).state_dict()
    name = next(name for name in larger if "pos_embed" in name)
    larger[name] = torch.ones(1, 17, 8)
    expected = (
        rf"positional embeddings of another size: {name} is \(1, 17, 8\) there and \(1, 5, 8\) here: set data"
    )
    with pytest.raises(InputError, match=expected):
        load(tmp_path, larger, build(5))


class Tied(nn.Module):
    """A network two of whose layers share their weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)
        self.second.weight = self.first.weight


def test_a_shared_parameter_is_read_under_any_of_its_names(tmp_path):
    source, network = drawn(Tied()), Tied()
    state = dict(source.state_dict())
    del state["second.weight"]
    assert load(tmp_path, state, network).fresh == []
    assert_same(network, source)
    state["second.weight"] = torch.ones(6, 6)
    with pytest.raises(
        InputError, match=r"first.weight and second.weight differ there and are one tensor here"
    ):
        load(tmp_path, state, Tied())


def test_names_that_torchvision_renames_as_it_loads_are_renamed(tmp_path):
    source, network = drawn(densenet(5)), densenet(5)
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): t
        for name, t in source.state_dict().items()
    }
    assert old.keys() != source.state_dict().keys()
    assert load(tmp_path, old, network).fresh == []
    assert_same(network, source)
    source, network = drawn(vision_transformer(5)), vision_transformer(5)
    old = {
        name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): t
        for name, t in source.state_dict().items()
    }
    assert old.keys() != source.state_dict().keys()
    load(tmp_path, old, network)
    assert_same(network, source)


class Own(nn.Module):
    """A user's network whose names are those of wrappers and of split batch norm."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential()
        self.model.main, self.model.auxiliary = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.model.net = nn.Linear(4, 5)


@pytest.mark.parametrize("prefix", ["", "model.", "module._orig_mod."])
def test_a_network_with_names_of_wrappers_gets_its_own_tensors(tmp_path, prefix):
    source, network = drawn(Own()), Own()
    state = {f"{prefix}{name}": t for name, t in source.state_dict().items()}
    loaded = load(tmp_path, state, network)
    assert_same(network, source)
    assert loaded.found_in == (f"without {prefix!r}" if prefix else "") and loaded.remarks == []


def test_both_branches_of_split_batch_norm_are_taken_where_both_networks_have_them(tmp_path):
    source, network = Toy(), Toy()
    for each in (source, network):
        split_batch_norm(each)
    drawn(source)
    assert load(tmp_path, source.state_dict(), network).remarks == []
    assert_same(network, source)
    plain = Toy()
    (remark,) = load(tmp_path, source.state_dict(), plain).remarks
    assert remark.startswith("left over: batch norm for adversarial images (norm.auxiliary.weight, ")
    assert torch.equal(plain.norm.weight, source.norm.main.weight)


def test_weights_of_another_precision_are_taken_if_the_model_can_hold_them(tmp_path):
    state = Toy().state_dict()
    narrow = {**state, "fc.weight": state["fc.weight"].to(torch.float8_e4m3fn)}
    network = Toy()
    load(tmp_path, narrow, network)
    assert torch.equal(network.fc.weight, narrow["fc.weight"].float())
    with pytest.raises(InputError, match=r"1 of the 5 numbers of fc.bias are NaN or infinite"):
        load(tmp_path, {**state, "fc.bias": torch.tensor([1e300, 0, 0, 0, 0], dtype=torch.float64)}, network)
    source, network = drawn(Toy()), Toy()
    load(
        tmp_path,
        {name: t.half() if t.is_floating_point() else t for name, t in source.state_dict().items()},
        network,
    )
    assert torch.equal(network.fc.weight, source.fc.weight.half().float())
