"""Tests that need a GPU. With REHEARSE_ON_CPU=1 they compute on the CPU, which tests the tests."""

import os

import pytest
import torch

from hpcdat.evaluation.determinism import deterministic


@pytest.fixture
def device():
    if not torch.cuda.is_available() and not os.environ.get("REHEARSE_ON_CPU"):
        pytest.skip("needs a GPU")
    chosen = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    with deterministic(chosen, print):
        yield chosen
