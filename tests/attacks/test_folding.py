"""Folded batch norm is the network in real arithmetic, and is refused where it would not be."""

import copy
import threading
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from hpcdat.attacks.folding import fold
from hpcdat.attacks.pgd import PGD, attacked
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.models import build_model
from hpcdat.models.folded_layers import AffineNorm, FoldedLayer
from hpcdat.models.split_batch_norm import BatchNorm, routed, split_batch_norm
from hpcdat.models.synchronised_batch_norm import Synchronisation, SynchronisedBatchNorm

EXACT = 1e-12
"""Relative error of float64 in networks of some ten layers."""


@pytest.fixture(autouse=True)
def in_float64():
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@torch.no_grad()
def randomised(network):
    """The network with statistics and affine parameters as after a training, some of them negative."""
    for norm in network.modules():
        if isinstance(norm, BatchNorm):
            if norm.running_mean is not None:
                norm.running_mean.normal_(0, 0.3)
                norm.running_var.uniform_(0.3, 2)
            if norm.weight is not None:
                norm.weight.normal_(0.8, 0.5)
                norm.bias.normal_(0, 0.3)
    return network


def built(name, **options):
    model = build_model(
        name, channels=3, num_classes=10, mean=[0.5] * 3, std=[0.25] * 3, seed=0, **options
    ).double()
    return randomised(model)


def images(size=8, channels=3):
    return torch.rand(3, channels, size, size)


def answers(network, x):
    x = x.clone().requires_grad_()
    logits = network(x)
    return logits.detach(), torch.autograd.grad(logits.square().sum(), x)[0]


def difference(folded, model, x, branch="clean"):
    """The larger of the relative errors of logits and gradients, in evaluation mode."""
    with attacked(model, "eval"), attacked(folded, "eval"), routed(model, branch):
        pairs = zip(answers(folded, x), answers(model, x), strict=True)
        return max(((one - other).norm() / other.norm()).item() for one, other in pairs)


def kinds(folding):
    return [type(layer) for layer in folding.network.layers]


@pytest.mark.parametrize(
    ("name", "size", "options", "folded", "kept"),
    [
        ("digits-cnn", 8, {}, 3, 0),
        ("preact-resnet18", 8, {"width": 0.1}, 8, 9),
        ("wide-resnet28-10", 8, {"width": 0.05}, 13, 12),
        ("resnet50", 32, {}, 53, 0),
        ("torchvision:resnet18", 32, {}, 20, 0),
        ("torchvision:mobilenet_v2", 32, {}, 52, 0),
        ("torchvision:densenet121", 32, {}, 59, 62),
        ("torchvision:shufflenet_v2_x0_5", 32, {}, 56, 0),
        # Its batch norm has the activation inside.
        ("timm:mobilenetv3_small_050", 32, {}, 34, 0),
    ],
)
def test_gradients_are_the_networks_after_every_change_of_weights_and_statistics(
    name, size, options, folded, kept
):
    model, x = built(name, **options), images(size)
    model.train()
    folding = fold(model, x)
    found = kinds(folding)
    assert (found.count(FoldedLayer), found.count(AffineNorm), folding.remark) == (folded, kept, "")
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert difference(folding.current(model), model, x) < EXACT
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    randomised(model)
    assert difference(folding.network, model, x) > 1e-3
    assert difference(folding.current(model), model, x) < EXACT


@pytest.mark.parametrize("name", ["torchvision:swin_t", "torchvision:convnext_tiny"])
def test_a_network_without_batch_norm_has_nothing_to_fold(name):
    model = built(name)
    folding = fold(model, images(32))
    assert folding == (None, "")
    assert folding.current(model) is model


def test_each_branch_of_split_batch_norm_is_folded():
    model, x = built("digits-cnn"), images()
    split_batch_norm(model)
    randomised(model)
    for branch, other in (("clean", "adversarial"), ("adversarial", "clean")):
        folded = fold(model, x, branch).network.refreshed()
        assert difference(folded, model, x, branch) < EXACT
        assert difference(folded, model, x, other) > 1e-3


def test_synchronised_batch_norm_is_folded():
    layer = nn.BatchNorm2d(4)
    synchronised = SynchronisedBatchNorm(layer, "it", Synchronisation(SingleProcess()))
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), synchronised, nn.Flatten()))
    folding = fold(model, images())
    assert kinds(folding) == [FoldedLayer]
    assert difference(folding.current(model), model, images()) < EXACT


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "circular"])
def test_convolutions_of_any_padding_and_linear_layers_are_folded(padding_mode):
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, dilation=2, groups=2, padding_mode=padding_mode),
        nn.BatchNorm2d(8, affine=False),
        nn.Flatten(),
        nn.Linear(8 * 9, 6, bias=False),
        nn.BatchNorm1d(6),
    )
    x = images(channels=4)
    folding = fold(randomised(model), x)
    assert kinds(folding) == [FoldedLayer] * 2
    assert difference(folding.current(model), model, x) < EXACT


class Twice(nn.Module):
    """A convolution that is called twice, once in front of its batch norm, which is called twice, too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(self.norm(self.conv(x)).relu() + self.conv(x))).mean((2, 3))


class WithConstants(nn.Module):
    """Makes a tensor in every pass, and has one that is no buffer."""

    def __init__(self):
        super().__init__()
        self.block, self.mask = block(nn.Conv2d(3, 4, 3)), torch.rand(4 * 36)

    def forward(self, x):
        return self.block(x) * torch.arange(4 * 36) + self.mask


class Viewing(nn.Module):
    """Takes activations in the usual layout only."""

    def __init__(self):
        super().__init__()
        self.block = block(nn.Conv2d(3, 4, 3))[:3]

    def forward(self, x):
        return self.block(x).view(-1, 4 * 36)


class UsedTwice(nn.Module):
    """Of its two convolutions, one is used in front of batch norm and beside it, the other is changed."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.first(x)
        y = y + self.norm(y)
        z = self.second(y)
        z += 1
        return self.norm(z).relu_().mean((2, 3))


class Derived(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).abs()


def block(convolution):
    return nn.Sequential(convolution, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())


def hooked(module):
    module.register_forward_hook(lambda module, given, result: 2 * result)
    return module


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (Twice, [FoldedLayer] * 2),
        (UsedTwice, [AffineNorm] * 2),
        (WithConstants, [FoldedLayer]),
        (lambda: block(Derived(3, 4, 3)), [AffineNorm]),
        (lambda: block(nn.ConvTranspose2d(3, 4, 3)), [AffineNorm]),
        (lambda: block(hooked(nn.Conv2d(3, 4, 3))), [AffineNorm]),
        (lambda: block(weight_norm(nn.Conv2d(3, 4, 3))), [AffineNorm]),
        (lambda: block(parametrizations.weight_norm(nn.Conv2d(3, 4, 3))), [AffineNorm]),
        (lambda: block(parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))), [AffineNorm]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_only_plain_layers_whose_result_nothing_else_uses_are_folded(make, expected):
    model, x = randomised(make()), images()
    folding = fold(model, x)
    assert kinds(folding) == expected
    assert difference(folding.current(model), model, x) < EXACT


@pytest.mark.parametrize(
    "norm", [hooked(nn.BatchNorm2d(4)), nn.BatchNorm2d(4, track_running_stats=False)], ids=["hook", "batch"]
)
def test_batch_norm_that_is_more_than_an_affine_map_is_not_folded(norm):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten())
    assert fold(model, images()) == (None, "")


class Own(nn.Module):
    """A block of the user's own."""

    def __init__(self):
        super().__init__()
        self.block, self.factor, self.seen = block(nn.Conv2d(3, 4, 3)), 1.0, []

    def forward(self, x):
        return self.factor * self.block(x)


class Branching(Own):
    def forward(self, x):
        return self.block(x) if x.mean() > 0.5 else -self.block(x)


class Counting(Own):
    def forward(self, x):
        self.factor += 1
        return super().forward(x)


class Recording(Own):
    def forward(self, x):
        self.seen.append(x)
        return super().forward(x)


class Drawing(Own):
    def forward(self, x):
        return super().forward(x) * torch.rand(())


class WithoutGradients(Own):
    def forward(self, x):
        with torch.no_grad():
            beside = self.block(x)
        return self.block(x) * beside


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Branching, "torch.fx cannot trace it: symbolically traced variables cannot be used"),
        (Counting, "a pass changes the attribute factor"),
        (Recording, "a pass changes the attribute seen"),
        (Drawing, "logits of the traced network are not those of the network"),
        (WithoutGradients, "gradients of the traced network are not those of the network"),
        (lambda: hooked(Own()), "the Own has hooks"),
        (lambda: nn.Sequential(hooked(Own())), "a Own has hooks"),
    ],
)
def test_a_network_that_a_trace_does_not_describe_is_attacked_as_it_is(make, why):
    model, x = randomised(make()), images()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    folding = fold(model, x)
    assert folding.network is None and folding.current(model) is model
    assert why in folding.remark
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    own = model if isinstance(model, Own) else model[0]
    assert (own.factor, own.seen) == (1.0, [])


def test_on_a_cpu_channels_are_last_where_the_network_takes_them_so():
    x = images()
    for make, last in ((Own, True), (Viewing, False)):
        model = randomised(make())
        folding = fold(model, x)
        assert folding.network.channels_last == last
        assert difference(folding.current(model), model, x) < EXACT
        # What is trained on has the layout of the images.
        loss = partial(nn.functional.cross_entropy, target=torch.arange(3), reduction="none")
        attack = PGD(eps=0.1, step_size=0.05, steps=2)
        assert attack(folding.network, loss, x, torch.Generator().manual_seed(0)).is_contiguous()


def test_a_gpu_checks_it_in_the_full_precision_of_float32():
    """In TF32 the rounding of a deep network alone exceeds the bounds, as was seen on a GPU."""
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    seen = []

    class Recording(nn.Flatten):
        def forward(self, x):
            seen.append([switch.allow_tf32 for switch in switches])
            return super().forward(x)

    with allowing_tf32(switches):
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Recording(), nn.LazyLinear(10))
        network(images())
        assert fold(network.eval(), images()).network
        after = [switch.allow_tf32 for switch in switches]
    assert after == [True, True]
    # The check comes last, after passes of this test and of the trace.
    assert seen[0] == [True, True] and seen[-1] == [False, False]


@contextmanager
def allowing_tf32(switches):
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = True
    yield
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value


def test_a_constant_that_training_changes_is_traced_again():
    model, x = randomised(Own()), images()
    folding = fold(model, x)
    model.factor = 3.0
    assert difference(folding.current(model), model, x) < EXACT


def test_other_threads_may_call_modules_during_a_trace():
    """As those that read images do."""
    model, other, failed, done = built("resnet50"), block(nn.Conv2d(3, 4, 3)), [], threading.Event()

    def call():
        while not done.is_set():
            try:
                assert isinstance(other(images()), torch.Tensor)
            except Exception as error:
                failed.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    folding = fold(model, images(32))
    done.set()
    thread.join()
    assert folding.network and not failed


@st.composite
def networks(draw):
    """Sequences of convolutions, batch norm, ReLU, dropout and residual sums."""
    layers, channels = [], 3
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["conv", "norm", "norm, relu_", "relu", "drop", "residual"]))
        if kind == "conv":
            out = draw(st.integers(1, 4))
            layers.append(nn.Conv2d(channels, out, 3, padding=1, bias=draw(st.booleans())))
            channels = out
        elif "norm" in kind:
            layers.append(nn.BatchNorm2d(channels, affine=draw(st.booleans())))
            layers += [nn.ReLU(inplace=True)] if "relu_" in kind else []
        elif kind == "residual":
            layers.append(Residual(channels))
        else:
            layers.append(nn.ReLU() if kind == "relu" else nn.Dropout())
    return randomised(nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.Flatten()))


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x + self.conv(self.norm(x).relu())


@settings(max_examples=40, deadline=None)
@given(networks())
def test_any_sequence_of_layers_is_folded_exactly(model):
    x = images()
    folding = fold(model, x)
    assert folding.network, folding.remark
    assert difference(folding.current(model), model, x) < EXACT
