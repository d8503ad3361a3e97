"""Settings and images shared by the tests."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("hpcdat", deadline=None, derandomize=True, max_examples=100)
hypothesis.settings.load_profile("hpcdat")

CHECKOUT = Path(__file__).resolve().parents[1]
DEMO = CHECKOUT / "jobs" / "demo.yaml"


@pytest.fixture(scope="session", autouse=True)
def _one_cache(tmp_path_factory):
    """Nothing is read from or written to the user's own cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
