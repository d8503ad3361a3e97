"""The margin attack against closed forms."""

import pytest
import torch
from torch import nn

from hpcdat.attacks.margin import RelaxedMarginAttack, linearised_margins, margin
from hpcdat.attacks.norm_balls import BALLS

EPS = {"linf": 0.1, "l2": 0.5}


class Counted(nn.Module):
    """A linear network that counts the images that pass through it."""

    def __init__(self, classes=5):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.images = nn.Linear(16, classes), 0

    def forward(self, x):
        self.images += len(x)
        return self.linear(x.flatten(1))


def drawn(generator, low=0.3, high=0.7):
    """Images far from black and white."""
    return low + (high - low) * torch.rand(20, 1, 4, 4, generator=generator)


def attack_of(norm, **settings):
    return RelaxedMarginAttack(**{"eps": EPS[norm], "norm": norm, "steps": 30, "relaxation": 2.0} | settings)


def test_a_margin_is_that_of_the_target_or_of_the_closest_class():
    logits, y = torch.tensor([[3.0, 1.0, 2.5], [0.0, 4.0, -1.0]]), torch.tensor([0, 1])
    assert margin(logits, y).tolist() == [-0.5, -4.0]
    assert margin(logits, y, torch.tensor([1, 2])).tolist() == [-2.0, -5.0]


@pytest.mark.parametrize("norm", BALLS)
def test_a_linear_network_is_broken_exactly_where_it_can_be(norm, generator):
    """The margin of class t over y is w.x + b with w = w_t - w_y: in a ball it rises by eps times ||w||*."""
    model, x = Counted(), drawn(generator)
    with torch.no_grad():
        logits = model(x)
        y, target = logits.argsort(1, descending=True)[:, :2].T
        dual = (model.linear.weight[target] - model.linear.weight[y]).norm({"linf": 1, "l2": 2}[norm], dim=1)
        margins = margin(logits, y, target)
        eps = (-margins / dual).median().item() * 1.001
        found = attack_of(norm, eps=eps)(model, x, y, generator, target=target)
        reached, possible = margin(model(found), y, target), margins + eps * dual
    assert (possible > 0).sum() == 10 and ((reached > 0) == (possible > 0)).all()
    estimated = linearised_margins(model, x, y, target[:, None], eps=eps, norm=norm)
    torch.testing.assert_close(estimated[:, 0], possible, rtol=0, atol=1e-5)
    # Those that hold end at the point of the ball with the largest margin.
    torch.testing.assert_close(reached[possible < 0], possible[possible < 0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("relaxation", [1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_points_lie_in_ball_and_box(norm, relaxation, dtype, generator):
    x = drawn(generator, 0.0, 1.0).to(dtype)
    model = Counted().to(dtype)
    for steps in (1, 2, 7):
        y = model(x).argmax(1)
        found = attack_of(norm, steps=steps, relaxation=relaxation)(model, x, y, generator).double()
        order = {"linf": torch.inf, "l2": 2}[norm]
        lengths = torch.linalg.vector_norm((found - x.double()).flatten(1), ord=order, dim=1)
        assert (lengths <= EPS[norm]).all() and found.min() >= 0 and found.max() <= 1


def test_the_radius_falls_to_eps_in_the_first_half_of_the_steps():
    attack = attack_of("linf", steps=8, relaxation=3.0)
    assert [attack.radius(step) / 0.1 for step in range(8)] == pytest.approx([2.5, 2, 1.5, 1, 1, 1, 1, 1])
    assert all(attack.radius(step) == 0.1 for step in range(3, 8))
    assert attack.step_size(0) == 0.2 and 0 < attack.step_size(7) < 0.02


def test_points_outside_the_ball_do_not_count(generator):
    """Relaxed, the first steps reach the other side of the boundary, which is farther than eps away."""
    model = Counted(classes=2)
    with torch.no_grad():
        model.linear.weight.copy_(torch.stack([torch.zeros(16), torch.ones(16)]))
        model.linear.bias.copy_(torch.tensor([0.0, -8.0 - 16 * 0.15]))
    x = torch.full((4, 1, 4, 4), 0.5)
    attack = attack_of("linf", relaxation=3.0)
    found = attack(model, x, torch.zeros(4, dtype=torch.long), generator)
    assert (found - x).abs().max() <= 0.1 and (model(found).argmax(1) == 0).all()


def test_only_images_that_hold_are_attacked_further(generator):
    model, x = Counted(), drawn(generator)
    y = model(x).argmax(1)
    model.images = 0
    attack_of("linf", eps=1e-6)(model, x, y, generator)
    assert model.images == 20 * 30, "all hold"
    model.images = 0
    wrong = attack_of("linf", relaxation=1.0)(model, x, (y + 1) % 5, generator)
    assert model.images == 20 and (model(wrong).argmax(1) != (y + 1) % 5).all()


def test_modes_and_gradients_of_the_network_are_left_as_they_were(generator):
    model = nn.Sequential(nn.BatchNorm2d(1), Counted()).train()
    attack_of("linf")(model, drawn(generator), torch.zeros(20, dtype=torch.long), generator)
    assert model.training and model[0].num_batches_tracked == 0
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
