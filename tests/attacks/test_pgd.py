"""The inner maximisation oracle against closed forms, another library, and extreme inputs."""

from functools import partial

import foolbox
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from hpcdat.attacks.norm_balls import BALLS, LinfBall
from hpcdat.attacks.pgd import PGD, input_gradient
from hpcdat.config.job_file import read_job
from hpcdat.models import build_model
from hpcdat.models.losses import clean_loss
from tests.conftest import DEMO

SHAPE = (6, 1, 4, 4)


class Linear(nn.Module):
    """Two classes, logits (0, w.x): the loss of class 0 grows with w.x."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x):
        score = (x * self.w).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(score), score], 1)


@pytest.fixture
def w(generator):
    return torch.randn(SHAPE[1:], generator=generator)


def images(generator, low=0.0, high=1.0, shape=SHAPE, dtype=torch.float32):
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=dtype)


def loss_of_zero(logits):
    return clean_loss(logits, torch.zeros(len(logits), dtype=torch.long))


def worst_case_l2(x, w, eps):
    """max w.d over ||d|| <= eps and x + d in [0, 1], in float64: d = clip(t w) with the largest t."""
    x, w = x.double().numpy().reshape(len(x), -1), w.double().numpy().ravel()
    worst = np.empty_like(x)
    for row, centre in zip(worst, x, strict=True):
        low, high = 0.0, 1e6
        for _ in range(200):
            t = (low + high) / 2
            inside = np.linalg.norm(np.clip(centre + t * w, 0, 1) - centre) <= eps
            low, high = (t, high) if inside else (low, t)
        row[:] = np.clip(centre + low * w, 0, 1)
    return worst


@pytest.mark.parametrize(
    "steps, step_size, random_start", [(1, 0.1, False), (10, 0.03, False), (10, 0.03, True)]
)
@pytest.mark.parametrize("low, high", [(0.3, 0.7), (0.0, 1.0)], ids=["inside the box", "box active"])
def test_linf_reaches_the_worst_case_of_a_linear_model(
    w, generator, steps, step_size, random_start, low, high
):
    x = images(generator, low, high)
    x_adv = PGD(eps=0.1, step_size=step_size, steps=steps, random_start=random_start)(
        Linear(w), loss_of_zero, x, generator
    )
    torch.testing.assert_close(x_adv, (x + 0.1 * w.sign()).clamp(0, 1), rtol=0, atol=1e-6)


def test_fgsm_raises_a_linear_score_by_the_dual_norm(w, generator):
    x = images(generator, 0.3, 0.7)
    model = Linear(w)
    x_adv = PGD(eps=0.1, step_size=0.1, steps=1, random_start=False)(model, loss_of_zero, x)
    raised = (model(x_adv) - model(x))[:, 1]
    torch.testing.assert_close(raised, 0.1 * w.abs().sum().expand_as(raised), rtol=1e-5, atol=0)


def test_a_step_by_the_gradient_itself_has_its_length(w, generator):
    """ConAdv's eq. (3): two steps of 0.05 w, of which some pixels' are longer than the ball allows."""
    x = images(generator)
    how = {"eps": 0.1, "step_size": 0.05, "steps": 2, "direction": "gradient", "random_start": False}
    x_adv = PGD(**how)(Linear(w), lambda logits: logits[:, 1], x)
    moved = (0.1 * w).clamp(-0.1, 0.1)
    assert 0 < (moved == 0.1 * w).sum() < moved.numel()
    torch.testing.assert_close(x_adv, (x + moved).clamp(0, 1), rtol=0, atol=1e-6)


def test_n_fgsm_steps_from_noise_of_two_eps_without_projection(w, generator):
    """De Jorge et al. 2022, Algorithm 1: x + noise + alpha sign(gradient at x + noise), within [0, 1]."""
    x, eps = images(generator), 0.1
    seed = generator.get_state()
    noise = (2 * torch.rand(x.shape, generator=generator) - 1) * 2 * eps
    generator.set_state(seed)
    n_fgsm = PGD(eps=eps, step_size=eps, steps=1, noise=2, projection=False)
    x_adv = n_fgsm(Linear(w), loss_of_zero, x, generator)
    expected = ((x + noise).clamp(0, 1) + eps * w.sign()).clamp(0, 1)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-6)
    farthest = (x_adv - x).abs().max()
    assert 2.5 * eps < farthest <= 3 * eps + 1e-6


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("low, high", [(0.3, 0.7), (0.0, 1.0)], ids=["inside the box", "box active"])
def test_l2_pgd_reaches_the_worst_case_of_a_linear_model(w, generator, random_start, low, high):
    eps = 0.3 if low else 1.2
    x = images(generator, low, high)
    x_adv = PGD(eps=eps, step_size=eps, steps=60, norm="l2", random_start=random_start)(
        Linear(w), loss_of_zero, x, generator
    )
    worst = worst_case_l2(x, w, eps)
    np.testing.assert_allclose(x_adv.numpy().reshape(len(x), -1), worst, rtol=0, atol=2e-4)
    score = w.double().numpy().ravel()
    reached = (x_adv.double().numpy().reshape(len(x), -1) - worst) @ score
    assert np.abs(reached).max() < 1e-4


floats = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}


class Hostile(nn.Module):
    """Gradients of any size, zero, infinite and not-a-number ones among them."""

    def __init__(self, gradient):
        super().__init__()
        self.gradient = gradient

    def forward(self, x):
        return (x * self.gradient).flatten(1).sum(1, keepdim=True)


def test_a_radius_is_not_rounded_before_it_is_added():
    """In float16, 0.5 - 0.41717 is farther from 0.5 than eps when eps itself has been rounded up."""
    x, eps = torch.tensor([[0.5]], dtype=torch.float16), 0.41717110670510593
    assert (x.double() - LinfBall(x, eps).low.double()).item() <= eps


def test_a_step_that_overflows_does_not_move_the_sample():
    """The gradient is finite, its product with the length of the step is not."""
    x = torch.full((2, 1, 1, 2), 0.5, dtype=torch.float16)
    gradient = torch.tensor([[[[7.0, -7.0]]], [[[1e-5, 0.0]]]], dtype=torch.float16)
    attack = PGD(norm="l2", eps=0.1, step_size=1e4, steps=1, random_start=False, direction="gradient")
    x_adv = attack(Hostile(gradient), lambda out: out[:, 0], x)
    assert torch.equal(x_adv[0], x[0]) and x_adv[1, 0, 0, 0] > 0.5


@settings(max_examples=400)
@given(
    data=st.data(),
    dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]),
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.one_of(st.floats(0, 2), st.floats(0, 1e-6), st.sampled_from([0.0, 8 / 255, 1e4])),
    step_size=st.one_of(st.floats(0, 2), st.sampled_from([0.0, 1e-30, 1e4])),
    steps=st.integers(1, 3),
    random_start=st.booleans(),
    direction=st.sampled_from(["steepest", "gradient"]),
)
def test_no_attack_leaves_ball_or_box(data, dtype, norm, eps, step_size, steps, random_start, direction):
    width = np.finfo(floats[dtype]).bits
    pixels = hnp.arrays(floats[dtype], (2, 1, 2, 3), elements=st.floats(0, 1, width=width))
    gradients = hnp.arrays(floats[dtype], (2, 1, 2, 3), elements=st.floats(width=width))
    x = torch.from_numpy(data.draw(pixels))
    how = {"norm": norm, "random_start": random_start, "direction": direction}
    x_adv = PGD(eps=eps, step_size=step_size, steps=steps, **how)(
        Hostile(torch.from_numpy(data.draw(gradients))),
        lambda out: out[:, 0],
        x,
        torch.Generator().manual_seed(0),
    )
    assert x_adv.dtype == dtype and x_adv.shape == x.shape
    assert (x_adv >= 0).all() and (x_adv <= 1).all()
    delta = (x_adv.double() - x.double()).flatten(1)
    size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    # The float64 arithmetic of this check has a rounding of its own.
    assert (size <= eps * (1 + 1e-12)).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_eps_zero_is_the_identity_and_an_empty_batch_stays_empty(w, generator, norm):
    x = images(generator)
    common = {"step_size": 0.1, "steps": 3, "norm": norm}
    assert torch.equal(PGD(eps=0.0, **common)(Linear(w), loss_of_zero, x, generator), x)
    assert PGD(eps=0.1, **common)(Linear(w), loss_of_zero, x[:0], generator).shape == (0, *SHAPE[1:])


@pytest.mark.parametrize(
    "norm, spread", [("linf", lambda d: d.abs().amax(1)), ("l2", lambda d: d.norm(dim=1))]
)
def test_the_random_start_is_uniform_in_the_ball(norm, spread):
    """The radius r of a uniform point in a ball of n dimensions has P(r < q eps) = q^n."""
    x = torch.full((20000, 1, 1, 3), 0.5)
    still = Hostile(torch.zeros(1, 1, 1, 3))
    x_adv = PGD(eps=0.2, step_size=0.0, steps=1, norm=norm)(
        still, lambda out: out[:, 0], x, torch.Generator().manual_seed(1)
    )
    radius = spread((x_adv - x).flatten(1)) / 0.2
    for q in (0.3, 0.6, 0.9):
        share, expected = (radius < q).double().mean().item(), q**3
        # Five standard deviations of a share among 20,000.
        assert abs(share - expected) < 5 * (expected * (1 - expected) / 20000) ** 0.5


def small_model(seed=0):
    return build_model("digits-cnn", channels=1, num_classes=10, mean=[0.5], std=[0.25], seed=seed)


@pytest.mark.parametrize("batch_norm", ["eval", "train"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("training", [True, False])
def test_an_attack_leaves_no_trace(generator, batch_norm, norm, training):
    model = small_model().train(training)
    model[1].features[0].weight.requires_grad_(False)
    model[1].classifier.weight.grad = torch.ones_like(model[1].classifier.weight)
    model[1].features[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    tracked = [getattr(module, "track_running_stats", None) for module in model.modules()]
    requires_grad = [p.requires_grad for p in model.parameters()]
    x, y = images(generator, shape=(4, 1, 8, 8)), torch.arange(4)
    x_before, state = x.clone(), torch.get_rng_state()
    PGD(eps=0.1, step_size=0.03, steps=3, norm=norm, batch_norm=batch_norm)(
        model, partial(clean_loss, y=y), x, generator
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [getattr(module, "track_running_stats", None) for module in model.modules()] == tracked
    assert [p.requires_grad for p in model.parameters()] == requires_grad
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert list(grads) == ["1.classifier.weight"] and (grads["1.classifier.weight"] == 1).all()
    assert torch.equal(x, x_before) and not x.requires_grad and x.grad is None


def test_no_gradient_of_the_weights_is_computed(w, generator):
    required = []

    class Watched(Linear):
        def forward(self, x):
            required.append(any(p.requires_grad for p in self.parameters()))
            return super().forward(x)

    x = images(generator)
    PGD(eps=0.1, step_size=0.1, steps=2)(Watched(w), loss_of_zero, x, generator)
    assert required == [False, False]


def test_a_failing_model_is_put_back_too(generator):
    model = small_model().train()

    def fail(logits):
        raise RuntimeError("no loss today")

    with pytest.raises(RuntimeError, match="no loss today"):
        PGD(eps=0.1, step_size=0.1, steps=1, random_start=False)(
            model, fail, images(generator, shape=(2, 1, 8, 8))
        )
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_the_batch_norm_mode_decides_which_statistics_are_attacked(generator):
    x, y = images(generator, shape=(8, 1, 8, 8)), torch.arange(8)
    phi = partial(clean_loss, y=y)
    moved = {}
    for mode in ("eval", "train"):
        model = small_model()
        expected = input_gradient(model.train(mode == "train"), phi, x).sign()
        moved[mode] = PGD(eps=0.1, step_size=0.1, steps=1, random_start=False, batch_norm=mode)(
            small_model(), phi, x
        )
        torch.testing.assert_close(moved[mode], (x + 0.1 * expected).clamp(0, 1))
    assert not torch.equal(moved["eval"], moved["train"])


def test_it_works_inside_no_grad_and_with_frozen_parameters(w, generator):
    x = images(generator)
    model = Linear(w).requires_grad_(False)
    with torch.no_grad():
        x_adv = PGD(eps=0.1, step_size=0.1, steps=1, random_start=False)(model, loss_of_zero, x)
    assert not torch.equal(x_adv, x) and not x_adv.requires_grad


def test_the_same_generator_state_gives_the_same_attack(w, generator):
    x = images(generator)
    twice = [
        PGD(eps=0.1, step_size=0.02, steps=2)(Linear(w), loss_of_zero, x, torch.Generator().manual_seed(s))
        for s in (5, 5, 6)
    ]
    assert torch.equal(twice[0], twice[1]) and not torch.equal(twice[0], twice[2])


@pytest.mark.parametrize(
    "norm, attack, eps", [("linf", foolbox.attacks.LinfPGD, 0.1), ("l2", foolbox.attacks.L2PGD, 0.25)]
)
def test_agreement_with_foolbox(generator, norm, attack, eps):
    """The same iterates as foolbox's PGD on a fixed model, without a random start.

    Pixels stay away from 0 and 1 in the l2 case: there foolbox scales and then clips, which is not
    the projection onto ball and box.
    """
    model = small_model(3).double().eval()
    x = images(generator, 0.3, 0.7, (16, 1, 8, 8), torch.float64)
    y = torch.arange(16) % 10
    theirs = attack(abs_stepsize=0.02, steps=10, random_start=False)
    _, expected, _ = theirs(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=[eps])
    ours = PGD(eps=eps, step_size=0.02, steps=10, norm=norm, random_start=False)(
        model, partial(clean_loss, y=y), x
    )
    torch.testing.assert_close(ours, expected[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.full(SHAPE, 1.5)}, "normalise inside the model"),
        ({"x": torch.full(SHAPE, float("nan"))}, r"lie in \[0, 1\]"),
        ({"x": torch.ones(SHAPE, dtype=torch.uint8)}, "floating point"),
        ({"eps": -0.1}, "eps -0.1"),
        ({"eps": float("nan")}, "eps nan"),
        ({"step_size": float("inf")}, "step_size inf"),
        ({"steps": 0}, "steps 0"),
        ({"norm": "l1"}, "'l1' is unknown; one of linf, l2"),
        ({"batch_norm": "off"}, "'off' is unknown"),
        ({"generator": None}, "needs a generator"),
        # There is nothing to wait for on a CPU.
        ({"x": torch.full(SHAPE, 1.5), "wait": False}, "normalise inside the model"),
    ],
)
def test_wrong_arguments_are_refused(w, generator, change, message):
    given = {"x": images(generator), "generator": generator} | change
    x, generator, wait = given.pop("x"), given.pop("generator"), given.pop("wait", True)
    with pytest.raises(ValueError, match=message):
        attack = PGD(**{"eps": 0.1, "step_size": 0.1, "steps": 1} | given)
        attack(Linear(w), loss_of_zero, x, generator, wait=wait)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_starts_from_given_points_projected_onto_the_ball(generator, w, norm):
    x, start = images(generator, 0.3, 0.6), images(generator)
    settings = {"eps": 0.1, "steps": 1, "norm": norm}
    still = PGD(step_size=0.0, **settings)(Linear(w), loss_of_zero, x, start=start)
    assert torch.allclose(still, BALLS[norm](x, 0.1).project(start), atol=1e-6) and not torch.equal(still, x)
    moved = PGD(step_size=0.02, **settings)(Linear(w), loss_of_zero, x, start=start)
    assert (loss_of_zero(Linear(w)(moved)) > loss_of_zero(Linear(w)(still))).all()


def test_an_attack_has_the_settings_of_its_section():
    job = read_job(DEMO, ["method=conadv", "attack.steps=1", "attack.norm=l2", "attack.direction=gradient"])
    assert PGD.from_settings(job.attack) == PGD(
        eps=0.2,
        step_size=0.2,
        steps=1,
        norm="l2",
        direction="gradient",
        batch_norm="train",
        branch="adversarial",
    )
    evaluation = job.evaluation.model_copy(update={"steps": 7, "random_start": False})
    assert PGD.from_settings(evaluation, norm="l2") == PGD(
        eps=0.2, step_size=evaluation.step_size, steps=7, norm="l2", random_start=False
    )
