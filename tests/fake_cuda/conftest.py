import pytest

from hpcdat.exchange import gradient_exchange
from tests.fake_cuda.gpu import FakeGpu


class InOrder:
    """A pipeline without a thread, since torch's modes are those of one thread: exchanges end at once."""

    busy_seconds = 0.0

    def __init__(self, in_flight):
        pass

    def submit(self, begin, deliver):
        steps = begin()
        result = None
        while True:
            try:
                result = steps.send(result).wait()
            except StopIteration as end:
                deliver(end.value)
                return

    def wait(self):
        pass


@pytest.fixture
def gpu(monkeypatch):
    """The fake GPU; everything in the test runs on a machine that has it."""
    monkeypatch.setattr(gradient_exchange, "Pipeline", InOrder)
    with FakeGpu().running(monkeypatch) as gpu:
        yield gpu
