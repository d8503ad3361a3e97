"""Modules of benchmarks/communication.py."""

from importlib import import_module

import pytest

from tests.conftest import CHECKOUT


@pytest.fixture
def modules(monkeypatch):
    """The modules of benchmarks."""
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")


@pytest.fixture
def operations(modules):
    return import_module("communication_operations")


@pytest.fixture
def rows(modules):
    return import_module("communication_rows")


@pytest.fixture
def sweeping(modules):
    return import_module("communication_sweep")


@pytest.fixture
def sampling(modules):
    return import_module("communication_samples")
