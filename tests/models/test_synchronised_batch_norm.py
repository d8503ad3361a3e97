"""Batch norm over several workers: as torch's with the whole batch, in float64."""

import copy

import pytest
import torch
from torch import nn

from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError
from hpcdat.models.split_batch_norm import routed, split_batch_norm
from hpcdat.models.synchronised_batch_norm import SynchronisedBatchNorm, placeholder, synchronise_batch_norm

LAYERS = {
    "2d": (nn.BatchNorm2d(3), (3, 4, 5)),
    "1d": (nn.BatchNorm1d(3, eps=0.1), (3,)),
    "3d": (nn.BatchNorm3d(3, momentum=0.3), (3, 2, 2, 2)),
    "not affine": (nn.BatchNorm2d(3, affine=False), (3, 4, 5)),
    "cumulative": (nn.BatchNorm2d(3, momentum=None), (3, 4, 5)),
    "untracked": (nn.BatchNorm2d(3, track_running_stats=False), (3, 4, 5)),
}
SHARES = (5, 0, 1, 3)
"""Images of each worker; torch's layer gets all of them."""


def made(layer):
    """In double precision, with weights that are not 1 and 0."""
    model = nn.Sequential(copy.deepcopy(layer)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.linspace(0.5, 2, 3))
    return model


def batches(shape, generator):
    """Three batches, far from zero, and gradients of their outputs."""
    size = (3, sum(SHARES), *shape)
    x, dy = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))
    return 7 + 3 * x, dy


def passed(model, x, dy):
    """Outputs and gradients of the input."""
    x = x.clone().requires_grad_()
    y = model(x)
    y.backward(dy)
    return y.detach(), x.grad


@pytest.mark.parametrize("name", LAYERS)
def test_workers_with_uneven_shares_compute_what_one_does_with_all_images(name, generator):
    layer, shape = LAYERS[name]
    xs, dys = batches(shape, generator)
    whole = made(layer).train()
    expected = [passed(whole, x, dy) for x, dy in zip(xs, dys, strict=True)]

    def program(workers):
        model = made(layer).train()
        synchronisation = synchronise_batch_norm(model, workers)
        outputs = []
        for x, dy in zip(xs.split(SHARES, 1)[workers.rank], dys.split(SHARES, 1)[workers.rank], strict=True):
            if len(x):
                outputs.append(passed(model, x, dy))
            else:
                with synchronisation.without_images():
                    # Its gradient must not count either.
                    passed(model, placeholder(x), torch.ones_like(placeholder(x)))
                outputs.append((x, x))
        return model, outputs

    models, answers = zip(*run_threads(loopback(len(SHARES)), program), strict=True)
    for step, (y, dx) in enumerate(expected):
        found = [torch.cat([answer[step][which] for answer in answers]) for which in (0, 1)]
        torch.testing.assert_close(found, [y, dx], rtol=0, atol=1e-10)
    for name, p in whole.named_parameters():
        # The worker without images has a gradient of ones, which the trainer multiplies by 0.
        grads = [dict(m.named_parameters())[name].grad for m, n in zip(models, SHARES, strict=True) if n]
        torch.testing.assert_close(sum(grads), p.grad, rtol=0, atol=1e-10)
    for model in models:
        assert model.state_dict().keys() == whole.state_dict().keys()
        torch.testing.assert_close(dict(model.state_dict()), dict(whole.state_dict()), rtol=0, atol=1e-10)
        assert all(torch.equal(t, models[0].state_dict()[n]) for n, t in model.state_dict().items())
    # In evaluation there is nothing to wait for, unless statistics are not tracked.
    if name != "untracked":
        torch.testing.assert_close(models[0].eval()(xs[0]), whole.eval()(xs[0]))


def test_reduced_precision_is_that_of_torch(generator):
    """Features in bfloat16, statistics and weights in float32."""
    x, dy = (torch.randn(8, 3, 4, 4, generator=generator).bfloat16() for _ in range(2))
    layer = nn.Sequential(nn.BatchNorm2d(3)).train()

    def program(workers):
        model = copy.deepcopy(layer)
        synchronise_batch_norm(model, workers)
        own = passed(model, x.chunk(2)[workers.rank], dy.chunk(2)[workers.rank])
        return *own, model[0].running_var

    parts = run_threads(loopback(2), program)
    whole = passed(layer, x, dy)
    for which, expected in enumerate(whole):
        found = torch.cat([part[which] for part in parts])
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(parts[1][2], layer[0].running_var)


def test_each_branch_of_split_batch_norm_is_synchronised(generator):
    x = torch.randn(8, 3, 2, 2, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.BatchNorm2d(3)).double().train()
    split_batch_norm(model)

    def program(workers):
        own = copy.deepcopy(model)
        synchronise_batch_norm(own, workers)
        part = x.chunk(2)[workers.rank]
        with routed(own, "adversarial"):
            own(2 * part)
        own(part)
        return dict(own.state_dict())

    states = run_threads(loopback(2), program)
    with routed(model, "adversarial"):
        model(2 * x)
    model(x)
    for state in states:
        torch.testing.assert_close(state, dict(model.state_dict()))


def test_timms_layer_keeps_its_activation(generator):
    layers = pytest.importorskip("timm.layers")
    x = torch.randn(6, 3, 2, 2, generator=generator, dtype=torch.float64)
    model = nn.Sequential(layers.BatchNormAct2d(3, act_layer=nn.SiLU)).double().train()
    expected = copy.deepcopy(model)(x)

    def program(workers):
        own = copy.deepcopy(model)
        synchronise_batch_norm(own, workers)
        assert (
            isinstance(own[0], SynchronisedBatchNorm) and own.state_dict().keys() == model.state_dict().keys()
        )
        return own(x.chunk(2)[workers.rank])

    torch.testing.assert_close(torch.cat(run_threads(loopback(2), program)), expected)


def test_a_single_value_of_all_workers_is_refused_and_one_of_each_is_not():
    def program(workers, images):
        model = nn.Sequential(nn.BatchNorm1d(3)).train()
        synchronisation = synchronise_batch_norm(model, workers)
        if workers.rank < images:
            return model(torch.full((1, 3), float(workers.rank)))
        with synchronisation.without_images():
            return model(torch.ones(1, 3))

    assert torch.cat(run_threads(loopback(2), lambda w: program(w, 2))).abs().min() > 0.9
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        run_threads(loopback(2), lambda w: program(w, 1))
    # None at all: the step is skipped, but not because a number is not finite.
    torch.testing.assert_close(run_threads(loopback(2), lambda w: program(w, 0))[0], torch.ones(1, 3))


class Doubled(nn.BatchNorm2d):
    """A layer that does something of its own."""


def test_what_cannot_be_synchronised_is_refused():
    for workers in (SingleProcess(), loopback(2)[0]):
        with pytest.raises(InputError, match="the network has no batch norm: leave the setting out"):
            synchronise_batch_norm(nn.Sequential(nn.LayerNorm(3)), workers)
    with pytest.raises(InputError, match=r"layer 1\.0 is a Doubled, which does more than batch norm"):
        synchronise_batch_norm(nn.Sequential(nn.ReLU(), nn.Sequential(Doubled(3))), loopback(2)[0])
    alone = nn.Sequential(nn.BatchNorm2d(3))
    assert synchronise_batch_norm(alone, SingleProcess()) is None and type(alone[0]) is nn.BatchNorm2d
