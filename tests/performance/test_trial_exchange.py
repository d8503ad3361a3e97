"""The placeholders for a model's gradients in a trial, and its result."""

import pytest
import torch
from torch import nn

from hpcdat.config.sections import Exchange
from hpcdat.exchange.gradient_exchange import gradients_of
from hpcdat.performance import trial_exchange
from hpcdat.performance.cost_model import Link, Network
from hpcdat.performance.microbenchmarks import SimulatedCommunicator
from hpcdat.performance.trial_exchange import measure_correction

MODEL = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 10), nn.Linear(10, 4))


def test_the_last_layers_are_tried_and_vectors_stay_vectors(monkeypatch):
    monkeypatch.setattr(trial_exchange, "TRIAL_LENGTH", 44 + 210 + 20 + 100)
    tried = trial_exchange._placeholders(gradients_of(MODEL))
    shapes = {name: tuple(p.shape) for name, p in tried}
    expected = {"0.weight": (100, 1), "0.bias": (20,), "1.weight": (10, 20), "1.bias": (10,)}
    assert shapes == expected | {"2.weight": (4, 10), "2.bias": (4,)}
    assert list(shapes) == [name for name, _ in MODEL.named_parameters()]


@pytest.mark.parametrize("feedback", [False, True])
def test_a_trial_is_compared_with_the_prediction(feedback, monkeypatch):
    """With links a thousand times slower in the prediction, the same trial is relatively as much faster."""
    monkeypatch.setattr(
        trial_exchange, "median", lambda times: 1.0 if len(times) > 1 and min(times) > 0 else None
    )
    settings = Exchange(bits=8, protocol="allgather", error_feedback=feedback, block=8)

    def correction(seconds):
        link = Link(points=[(0, 0), (1, seconds)])
        network = Network(nodes=2, links=dict.fromkeys(("allreduce", "allgather"), link))
        return measure_correction(
            settings, lambda *_: 0.0, gradients_of(MODEL), network, SimulatedCommunicator(2)
        )

    before = [p.grad for p in MODEL.parameters()]
    assert correction(1e-3) == pytest.approx(1000 * correction(1.0))
    assert [p.grad for p in MODEL.parameters()] == before, "the model is not changed"
    assert torch.isfinite(torch.tensor(correction(1.0)))
