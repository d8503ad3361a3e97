"""Tests that need a GPU. With REHEARSE_ON_CPU=1 they compute on the CPU, which tests the tests."""

import os

import pytest
import torch


@pytest.fixture
def device(monkeypatch):
    if torch.cuda.is_available():
        for backend in (torch.backends.cudnn, torch.backends.cuda.matmul):
            monkeypatch.setattr(backend, "allow_tf32", False)
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
        return torch.device("cuda", 0)
    if os.environ.get("REHEARSE_ON_CPU"):
        return torch.device("cpu")
    pytest.skip("needs a GPU")
