"""Mixed batches: pixels and labels are mixed in the same proportion, which depends on the seed only."""

import pytest
import torch

from hpcdat.config.sections import Data
from hpcdat.data.mixing import mix
from hpcdat.models.losses import Labelled, clean_loss

CLASSES = 3


def settings(mixing, **more):
    return Data(source="digits", mixing=mixing, image_size=8, **more)


@pytest.fixture
def images():
    """Each image has one value of its own everywhere, so that its part of a mixed one can be read off."""
    x = torch.tensor([0.0, 1.0, 0.5]).view(3, 1, 1, 1).expand(3, 3, 8, 8).clone()
    return Labelled(x, torch.arange(CLASSES))


def test_mixup_weighs_pixels_and_labels_alike(images):
    mixed = mix(images, settings("mixup"), CLASSES, seed=1)
    share = mixed.y[0, 0]
    assert 0 < share < 1
    other = [2, 0, 1]
    expected = share * images.x + (1 - share) * images.x[other]
    torch.testing.assert_close(mixed.x, expected)
    one_hot = torch.eye(CLASSES)
    torch.testing.assert_close(mixed.y, share * one_hot + (1 - share) * one_hot[other])


def test_cutmix_labels_by_the_area_of_the_rectangle(images):
    mixed = mix(images, settings("cutmix"), CLASSES, seed=3)
    replaced = (mixed.x[1] != images.x[1]).float().mean()
    assert 0 < replaced < 1
    torch.testing.assert_close(mixed.y[1], torch.tensor([replaced, 1 - replaced, 0.0]))


def test_the_proportion_follows_the_seed_and_leaves_the_global_generator_alone(images):
    state = torch.get_rng_state()
    first, same, other = (mix(images, settings("mixup"), CLASSES, seed) for seed in (1, 1, 2))
    assert torch.equal(first.x, same.x) and not torch.equal(first.x, other.x)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_small_alpha_hardly_mixes(images):
    largest = [
        mix(images, settings("mixup", mixing_alpha=0.01), CLASSES, seed).y.max().item() for seed in range(20)
    ]
    assert sorted(largest)[10] > 0.999


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_an_empty_batch_and_one_image_stay_as_they_are(images, mixing):
    empty, one = Labelled(images.x[:0], images.y[:0]), Labelled(images.x[:1], images.y[:1])
    assert mix(empty, settings(mixing), CLASSES, 0) is empty
    mixed = mix(one, settings(mixing), CLASSES, 0)
    torch.testing.assert_close(mixed.x, one.x)
    torch.testing.assert_close(mixed.y, torch.tensor([[1.0, 0, 0]]))


def test_the_loss_of_a_mixed_label_is_the_mean_of_the_losses(generator):
    logits = torch.randn(1, CLASSES, generator=generator)
    soft = torch.tensor([[0.3, 0.7, 0.0]])
    hard = clean_loss(logits.expand(2, -1), torch.tensor([0, 1]))
    torch.testing.assert_close(clean_loss(logits, soft)[0], 0.3 * hard[0] + 0.7 * hard[1])
