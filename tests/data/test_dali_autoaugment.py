"""AutoAugment: torchvision's policy and DALI's, in training alone, the same whatever else is read."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from hpcdat.config.sections import Data
from hpcdat.data import open_loader
from hpcdat.data.augmentation import view_of
from hpcdat.data.dali_autoaugment import AutoAugment
from hpcdat.data.encoded_images import Files
from hpcdat.data.images import Images
from hpcdat.data.pixels import apply_view
from hpcdat.data.torchvision_loader import BatchReader, Wanted

LOADERS = ["dali", "torchvision"]
SEED = 7
SIDE = 32
"""Pixels. Like PIL, torchvision equalises no image with fewer than 255 below its brightest grey."""
UNTOUCHED = np.mean([np.prod([1 - p for _, p, _ in sub]) for sub in AutoAugment().sub_policies])
"""Share of the images that the policy does nothing to."""


def settings(loader="dali", threads=1, **others):
    return Data(root="x", loader=loader, threads=threads, image_size=SIDE, policy="autoaugment", **others)


def loader_of(images, data, training=True):
    return open_loader(images, data, training=training, batch_size=8, device=torch.device("cpu"))


def in_batches(indices, size=8):
    return [np.array(indices[start : start + size]) for start in range(0, len(indices), size)]


def read(reader, indices, size=8, seed=SEED):
    """The images (N, C, H, W), uint8, in the order of the indices."""
    batches = [x.clone() for x, _ in reader.read(in_batches(list(indices), size), seed)]
    return torch.cat(batches).mul(255).round().to(torch.uint8)


def memory(count):
    """Smooth images without black and white, so that every operation has something to change."""
    coarse = np.random.default_rng(0).integers(20, 236, (count, 4, 4, 3), dtype=np.uint8)
    fine = [Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR) for image in coarse]
    return Images([f"image {i}" for i in range(count)], [0] * count, ["a"], np.stack(fine))


def views(images, data):
    """What is seen of each image without a policy."""
    seen = []
    for index, pixels in enumerate(images.pixels):
        view = view_of(SIDE, SIDE, index, data, training=True, seed=SEED)
        seen.append(apply_view(torch.from_numpy(pixels).permute(2, 0, 1), view, SIDE))
    return torch.stack(seen)


def test_both_libraries_have_the_same_policy():
    """Torchvision writes operations with probability 0 out."""
    ours = [[(op.name.replace("_", ""), p, m) for op, p, m in sub] for sub in AutoAugment().sub_policies]
    theirs = [[(name.lower(), p, m) for name, p, m in sub if p > 0] for sub in v2.AutoAugment()._policies]
    assert ours == theirs and len(ours) == 25


@pytest.mark.parametrize("loader", LOADERS)
def test_an_image_is_changed_alike_whatever_is_read_with_it(loader):
    images = memory(40)
    one = loader_of(images, settings(loader, augmentation="pad-crop"))
    two = loader_of(images, settings(loader, augmentation="pad-crop", threads=2))
    whole = read(one, range(40))
    assert torch.equal(read(two, range(16, 40)), whole[16:]), "an epoch taken up in the middle"
    assert torch.equal(read(two, reversed(range(40)), size=3).flip(0), whole), "other batches"
    assert not torch.equal(read(one, range(40), seed=SEED + 1), whole)
    assert torch.equal(read(one, range(40)), whole)


@pytest.mark.parametrize("loader", LOADERS)
def test_images_that_cannot_be_read_change_no_others(tmp_path, loader):
    images = memory(12)
    files = [tmp_path / f"{index}.png" for index in range(12)]
    for file, pixels in zip(files, images.pixels, strict=True):
        Image.fromarray(pixels).save(file)
    good = [index for index in range(12) if index not in (4, 10)]
    data = settings(loader, augmentation="crop-flip", corrupt="skip")
    listed = Images(Files.of(map(str, files)), images.labels, images.classes)
    whole = read(loader_of(listed, data), range(12), size=3)
    files[4].write_bytes(Path(files[0]).read_bytes()[:90])
    files[10].write_bytes(b"")
    assert torch.equal(read(loader_of(listed, data), range(12), size=3), whole[good])


@pytest.mark.parametrize("loader", LOADERS)
def test_in_evaluation_nothing_is_changed(loader):
    images = memory(8)
    seen = read(loader_of(images, settings(loader), training=False), range(8))
    assert torch.equal(seen, torch.from_numpy(images.pixels).permute(0, 3, 1, 2))


@pytest.mark.parametrize("augmentation", ["none", "crop-flip", "pad-crop"])
def test_dali_does_to_the_view_what_was_chosen(augmentation):
    images, data, policy = memory(500), settings(augmentation=augmentation), AutoAugment()
    before, after = views(images, data), read(loader_of(images, data), range(500))
    assert abs((before == after).flatten(1).all(1).float().mean() - UNTOUCHED) < 0.05
    spared = [not policy.choices(index, SEED)[:, 0].any() for index in range(500)]
    assert torch.equal(before[spared], after[spared])


def test_every_operation_of_dali_does_something(monkeypatch):
    names = [operation.name for operation in AutoAugment().operations]
    monkeypatch.setattr(
        AutoAugment, "choices", lambda self, index, seed: np.array([[index, 2, 1], [0, 0, 0]], np.int32)
    )
    images, data = memory(len(names)), settings()
    before, after = views(images, data), read(loader_of(images, data), range(len(names)))
    assert (before == after).flatten(1).all(1).tolist() == [name == "identity" for name in names]
    inverted = names.index("invert")
    assert torch.equal(after[inverted], 255 - before[inverted])


@pytest.mark.parametrize("augmentation", ["none", "crop-flip", "pad-crop"])
def test_torchvision_does_to_the_view_what_the_policy_says(augmentation, monkeypatch):
    images, data, done = memory(500), settings("torchvision", augmentation=augmentation), Counter()
    carry_out = v2.AutoAugment._apply_image_or_video_transform

    def noted(self, image, name, *others, **more):
        done[name] += 1
        return carry_out(self, image, name, *others, **more)

    monkeypatch.setattr(v2.AutoAugment, "_apply_image_or_video_transform", noted)
    reader, state = BatchReader(images, data, training=True), torch.get_rng_state()
    after = reader(Wanted(np.arange(500), SEED, None))[0].permute(0, 3, 1, 2)
    assert torch.equal(torch.get_rng_state(), state), "others draw what they would have drawn"
    untouched = (views(images, data) == after).flatten(1).all(1).float().mean()
    assert abs(untouched - UNTOUCHED) < 0.05
    expected = Counter()
    for sub_policy in v2.AutoAugment()._policies:
        for name, probability, _ in sub_policy:
            expected[name] += 20 * probability
    assert set(done) == set(expected)
    assert all(abs(done[name] - count) < 4 * count**0.5 for name, count in expected.items())


def test_operations_magnitudes_and_signs_are_chosen_as_often_as_the_policy_says():
    policy, number = AutoAugment(), 10000
    expected, chosen, signs = Counter(), Counter(), []
    for sub_policy in policy.sub_policies:
        for stage, (operation, probability, magnitude) in enumerate(sub_policy):
            expected[stage, operation.name, magnitude or 0] += probability * number / len(policy.sub_policies)
    for index in range(number):
        for stage, (n, magnitude, sign) in enumerate(policy.choices(index, SEED)):
            if n:
                chosen[stage, policy.operations[n].name, magnitude] += 1
                signs.append(sign)
    assert set(chosen) == set(expected)
    assert all(abs(chosen[key] - count) < 4 * count**0.5 for key, count in expected.items())
    assert abs(np.mean(signs) - 0.5) < 0.02
