"""Every exchange on a fake GPU: nothing waits for it, and NCCL can carry what is sent."""

import json

import pytest
import torch

from hpcdat.config.sections import Exchange
from hpcdat.exchange.protocols import Draw, ErrorFeedback
from hpcdat.exchange.resolve import make_plan
from tests.distributed.programs.exchange import COUNT, EXCHANGES
from tests.fake_cuda.gpu import CUDA
from tests.fake_cuda.workers import EqualWorkers, check_sent

HIERARCHICAL = [
    {"protocol": "hierarchical", "across": across, "bits": 8}
    for across in ("ring", "allgather", "parameter_server", "sharded_server")
]


@pytest.mark.parametrize("codes", ["Triton's", "torch's"])
@pytest.mark.parametrize("settings", [*EXCHANGES, *HIERARCHICAL], ids=json.dumps)
def test_no_exchange_waits_for_the_gpu(gpu, settings, codes, monkeypatch):
    if codes == "torch's":
        monkeypatch.setattr("hpcdat.exchange.codecs.kernels_on_gpu", lambda quantizer: None)
    workers = EqualWorkers(4, [0, 0, 1, 1])
    quantised = settings["bits"] not in (32, "float16")
    plan = make_plan(Exchange(**{"block": 64, "error_feedback": quantised, **settings}), workers)
    feedback = ErrorFeedback() if quantised else None
    # The second step adds residuals.
    for step in range(2):
        x = torch.rand(COUNT, device=CUDA)
        total = run(plan.protocol(workers, x, Draw(0, 0, step, 0, CUDA), "gradients", feedback))
        if feedback:
            feedback.commit(counts=True)
        assert (total.shape, total.dtype, total.device) == (x.shape, torch.float32, CUDA)
    assert not gpu.waits
    check_sent(workers)


def run(exchanging):
    received = None
    while True:
        try:
            received = exchanging.send(received).wait()
        except StopIteration as end:
            return end.value
