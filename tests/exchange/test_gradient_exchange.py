"""Buckets of gradients, their order, and their sums."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hpcdat.config.sections import Exchange
from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.exchange.gradient_exchange import GradientExchange, gradients_of, make_buckets


def small_model():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 20), nn.Linear(20, 5)
    )


@given(
    st.sampled_from([1e-5, 1e-3, 25.0]),
    st.booleans(),
    st.sampled_from([64, "bucket", "tensor"]),
    st.booleans(),
)
def test_every_parameter_is_in_one_bucket_and_last_layers_come_first(size, coding, block, exact_1d):
    model = small_model()
    settings = Exchange(bucket_mb=size, block=block, exact=["4.*"], exact_1d=exact_1d)
    buckets = make_buckets(list(model.named_parameters()), settings, coding=coding)
    placed = [p for bucket in buckets for p in bucket.parameters]
    assert len(placed) == len(set(placed)) == len(list(model.parameters()))
    assert [bucket.number for bucket in buckets] == list(range(len(buckets)))
    assert not buckets[-1].coded, "scalars go with the last one, exactly"
    for bucket in buckets:
        for parameter in bucket.parameters:
            name = next(n for n, p in model.named_parameters() if p is parameter)
            kept = name.startswith("4.") or (exact_1d and parameter.dim() == 1)
            assert bucket.coded == (coding and not kept)
        assert len(bucket.parameters) <= 1 or 4 * bucket.count <= size * 2**20
        assert block != "tensor" or not bucket.coded or len(bucket.parameters) == 1
    order = [id(p) for p in model.parameters()]
    coded = [order.index(id(p)) for bucket in buckets if bucket.coded for p in bucket.parameters]
    assert coded == sorted(coded, reverse=True)


def exchanged(model, settings, seed=0):
    """Gradients before and after an exchange of one worker, and the exchange."""
    exchange = GradientExchange(SingleProcess(), gradients_of(model), settings, seed)
    model.zero_grad(set_to_none=True)
    exchange.begin(0, 3)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model(x).square().sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    scalars = torch.tensor([1.5, 0.0])
    exchange.finish(scalars)
    assert scalars.tolist() == [1.5, 0.0]
    return before, [p.grad for p in model.parameters()], exchange


def test_biases_and_batch_norm_stay_exact_and_weights_are_rounded():
    torch.manual_seed(0)
    model = small_model()
    before, after, _ = exchanged(model, Exchange(bits=8, block=64, exact=["3.*"], overlap=False))
    for (name, p), old, new in zip(model.named_parameters(), before, after, strict=True):
        assert torch.equal(old, new) == (p.dim() == 1 or name.startswith("3.")), name
        assert torch.allclose(old, new, atol=(2 * old.abs().max() / 127).item())


def test_biases_and_batch_norm_are_rounded_where_the_job_says_so():
    torch.manual_seed(0)
    settings = Exchange(
        bits=4, norm="l2", block="tensor", exact_1d=False, protocol="allgather", overlap=False
    )
    model = small_model()
    before, after, exchange = exchanged(model, settings)
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True) if old.any())
    assert sum(bucket.coded for bucket in exchange.buckets) == len(before), (
        "each tensor has a norm of its own"
    )


def test_overlapping_the_backward_pass_does_not_change_the_sums():
    torch.manual_seed(0)
    model = small_model()
    after = [
        [g.clone() for g in exchanged(model, Exchange(bits=4, bucket_mb=1e-3, overlap=overlap))[1]]
        for overlap in (False, True)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*after, strict=True))


def test_missing_gradients_count_as_zero():
    model = small_model()
    exchange = GradientExchange(SingleProcess(), gradients_of(model), Exchange(bits=8), 0)
    exchange.begin(0, 0)
    exchange.finish(torch.zeros(1))
    assert all((p.grad == 0).all() for p in model.parameters())


def test_error_feedback_telescopes_and_forgets_steps_that_do_not_count():
    """The sum of what arrived is the sum of what was sent, less the last residual."""
    model = nn.Linear(40, 30, bias=False)
    exchange = GradientExchange(
        SingleProcess(), gradients_of(model), Exchange(bits=2, block=64, error_feedback=True), 0
    )
    generator = torch.Generator().manual_seed(0)
    sent = arrived = torch.zeros(30, 40, dtype=torch.float64)
    for step in range(20):
        model.weight.grad = torch.randn(30, 40, generator=generator)
        counts = step % 5 != 3
        sent = sent + (model.weight.grad.double() if counts else 0)
        exchange.begin(0, step)
        exchange.finish(torch.zeros(1))
        exchange.commit(counts=counts)
        arrived = arrived + (model.weight.grad.double() if counts else 0)
    shapes = exchange.shapes_of_feedback()
    residual = exchange.feedback_row(shapes).view(torch.float32)
    assert torch.allclose(sent, arrived + residual.view(30, 40), atol=1e-4)
    assert (sent - arrived).abs().max() > 0.1


def rounded(epoch, step, seed):
    """What becomes of the same gradients of two layers, each in a bucket of its own."""
    model = nn.Sequential(nn.Linear(40, 30, bias=False), nn.Linear(40, 30, bias=False))
    settings = Exchange(bits=2, block="tensor", overlap=False)
    exchange = GradientExchange(SingleProcess(), gradients_of(model), settings, seed)
    for layer in model:
        layer.weight.grad = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    exchange.begin(epoch, step)
    exchange.finish(torch.zeros(1))
    exchange.close()
    return [layer.weight.grad for layer in model]


def test_buckets_steps_epochs_and_seeds_round_with_other_random_numbers():
    sums = [*rounded(0, 0, 0), *rounded(0, 1, 0), *rounded(1, 0, 0), *rounded(0, 0, 1)]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(sums, 2))
    assert all(torch.equal(*pair) for pair in zip(sums[:2], rounded(0, 0, 0), strict=True))


def test_each_worker_gets_its_own_residual_back():
    def program(workers):
        model = nn.Linear(40, 30, bias=False)
        settings = Exchange(bits=2, block=64, protocol="allgather", error_feedback=True)
        exchange = GradientExchange(workers, gradients_of(model), settings, 0)
        model.weight.grad = torch.randn(30, 40, generator=torch.Generator().manual_seed(workers.rank))
        exchange.begin(0, 0)
        exchange.finish(torch.zeros(1))
        exchange.commit(counts=True)
        feedback = next(bucket.feedback for bucket in exchange.buckets if bucket.coded)
        own, state = feedback.residuals["worker"].clone(), exchange.gather_state()
        feedback.residuals = {}
        exchange.load_state(state)
        exchange.close()
        return own, feedback.residuals["worker"]

    (first, first_again), (second, second_again) = run_threads(loopback(2), program)
    assert not torch.equal(first, second)
    assert torch.equal(first, first_again) and torch.equal(second, second_again)
