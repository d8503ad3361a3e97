"""Streams on a fake GPU: what two of them share is ordered by waits, and stays allocated until both are done.

Each wait and each record_stream of the package is removed once, which must be found.
"""

import json

import pytest
import torch

from hpcdat.config.sections import Exchange
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.exchange.protocols import Draw
from hpcdat.exchange.resolve import make_plan
from hpcdat.models.losses import Labelled
from hpcdat.training.concurrent_attack import Batch
from hpcdat.training.step import Algorithm1
from tests.distributed.programs.exchange import COUNT, EXCHANGES
from tests.fake_cuda.gpu import CUDA
from tests.fake_cuda.nccl import NcclWorkers
from tests.fake_cuda.streams import Stream
from tests.fake_cuda.test_exchange_on_fake_cuda import HIERARCHICAL, run
from tests.fake_cuda.test_step_on_fake_cuda import batch, make


def side():
    return torch.cuda.Stream(CUDA), torch.cuda.current_stream(CUDA)


def fresh():
    return torch.rand(4, device=CUDA)


# Programs of two streams; with `waits`, they do what they have to.


def reads_early(waits):
    other, main = side()
    x = fresh()
    if waits:
        other.wait_stream(main)
    with torch.cuda.stream(other):
        x + 1


def overwrites_what_is_still_read(waits):
    other, main = side()
    x = fresh()
    other.wait_stream(main)
    with torch.cuda.stream(other):
        y = x + 1
    if waits:
        main.wait_stream(other)
    x[1:].add_(1)
    del y


def reads_a_result_early(waits):
    other, main = side()
    other.wait_stream(main)
    with torch.cuda.stream(other):
        x = fresh()
        done = torch.cuda.Event()
        done.record()
    if waits:
        main.wait_event(done)
    torch.cat([x])


def waits_for_an_event_that_comes_too_early(waits):
    other, main = side()
    other.wait_stream(main)
    with torch.cuda.stream(other):
        early = other.record_event()
        x = fresh()
    main.wait_event(other.record_event() if waits else early)
    x.neg()


def host_reads_early(waits):
    other, _ = side()
    with torch.cuda.stream(other):
        x = fresh()
    if waits:
        torch.cuda.synchronize()
    x.tolist()
    x.exp()


def frees_what_is_still_used(waits):
    other, main = side()
    x = fresh()
    other.wait_stream(main)
    with torch.cuda.stream(other):
        y = x + 1
    if waits:
        x.record_stream(other)
    del x
    fresh()
    del y


PROGRAMS = {
    reads_early: "whose result it reads",
    overwrites_what_is_still_read: "which uses what it overwrites",
    reads_a_result_early: "whose result it reads",
    waits_for_an_event_that_comes_too_early: "whose result it reads",
    host_reads_early: "whose result it reads",
    frees_what_is_still_used: "record_stream is missing",
}


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_race_is_found_and_no_other(gpu, program, waits):
    program(waits)
    if waits:
        assert gpu.streams.races == []
    else:
        assert len(gpu.streams.races) == 1 and PROGRAMS[program] in gpu.streams.races[0]


def train(workers, *settings):
    """Three steps of ConAdv, whose loader frees a batch as soon as it has been handed on."""
    algorithm = make(workers, "method=conadv", *settings)
    delay = algorithm.adversary.delay
    coming = [batch(algorithm, step) for step in range(delay)]
    algorithm.adversary.begin_epoch(coming)
    for step in range(3):
        coming.append(batch(algorithm, step + delay))
        algorithm.step(coming.pop(0), coming[-1])
    return algorithm


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["model.precision=bfloat16", "model.channels_last=true"],
        ["concurrent.delay=2"],
        ["averaging.ema=0.9"],
        ["attack.norm=l2", "attack.direction=gradient"],
        ["model.name=tests.own_networks:Centred"],
    ],
    ids=str,
)
def test_conadv_beside_the_update_has_no_race(gpu, settings, monkeypatch):
    # It looks at numbers.
    monkeypatch.setattr("hpcdat.models.check_network", lambda *_, **__: None)
    train(SingleProcess(), *settings)
    assert gpu.streams.races == []


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["exchange.bits=8", "exchange.protocol=sharded_server", "exchange.error_feedback=true"],
    ],
    ids=str,
)
def test_conadv_between_workers_has_no_race(gpu, settings):
    train(NcclWorkers(gpu.streams, [0, 0, 1, 1]), *settings)
    assert gpu.streams.races == []


def test_nothing_orders_the_attack_and_the_gradient_of_the_same_step(gpu, monkeypatch):
    waited = []
    local_gradient = Algorithm1.local_gradient

    def then_look(algorithm, *arguments):
        result = local_gradient(algorithm, *arguments)
        main, other = gpu.streams.default, algorithm.adversary._stream
        waited.append((main.has_waited_for(other), other.has_waited_for(main)))
        return result

    monkeypatch.setattr(Algorithm1, "local_gradient", then_look)
    train(SingleProcess())
    assert waited == [(False, False)] * 3


@pytest.mark.parametrize("waiting", ["the default stream", "stream 1"])
def test_a_wait_that_is_removed_from_conadv_is_found(gpu, waiting, monkeypatch):
    """The update waits for the attack, and the attack for weights and images."""
    wait = Stream.wait_stream
    monkeypatch.setattr(
        Stream, "wait_stream", lambda stream, other: stream.name == waiting or wait(stream, other)
    )
    train(SingleProcess())
    assert any(f"on {waiting} does not wait for" in race for race in gpu.streams.races)


@pytest.mark.parametrize("recorded", [True, False])
def test_images_that_are_freed_during_the_attack_stay_until_it_ends(gpu, recorded, monkeypatch):
    if not recorded:
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    adversary = make(SingleProcess(), "method=conadv").adversary
    images = torch.rand(4, 1, 8, 8, device=CUDA), torch.zeros(4, dtype=torch.int64, device=CUDA)
    adversary.begin(Batch(0, 0, 4, {0: Labelled(*images)}))
    del images
    fresh()
    found = ["record_stream is missing" in race for race in gpu.streams.races]
    assert found == ([] if recorded else [True])


@pytest.mark.parametrize("settings", [*EXCHANGES, *HIERARCHICAL], ids=json.dumps)
def test_an_exchange_over_nccl_has_no_race(gpu, settings):
    exchange_twice(gpu, settings)
    assert gpu.streams.races == []


@pytest.mark.parametrize("settings", [EXCHANGES[0], *HIERARCHICAL], ids=json.dumps)
def test_an_exchange_that_does_not_wait_for_nccl_is_found(gpu, settings, monkeypatch):
    monkeypatch.setattr("tests.fake_cuda.nccl.Work.wait", lambda work: None)
    exchange_twice(gpu, settings)
    assert any("NCCL's stream" in race for race in gpu.streams.races)


def exchange_twice(gpu, settings):
    workers = NcclWorkers(gpu.streams, [0, 0, 1, 1])
    plan = make_plan(Exchange(**{"block": 64, **settings}), workers)
    for step in range(2):
        x = torch.rand(COUNT, device=CUDA)
        total = run(plan.protocol(workers, x, Draw(0, 0, step, 0, CUDA), "gradients", None))
        total.mul_(0.5)
