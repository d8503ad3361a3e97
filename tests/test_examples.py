"""Examples in docstrings run, and print what they say."""

import doctest
import importlib

import pytest

import hpcdat
from tests.conftest import CHECKOUT

ON_WORKERS = {"hpcdat.exchange.horovod_compression"}
"""Modules whose example is one for several workers; see tests/distributed/test_exchange.py."""
MODULES = {
    ".".join(file.relative_to(CHECKOUT).with_suffix("").parts)
    for file in (CHECKOUT / "hpcdat").rglob("*.py")
    if ">>> " in file.read_text()
}


@pytest.mark.parametrize("module", sorted(MODULES - ON_WORKERS))
def test_examples_print_what_they_say(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted and not result.failed


def test_every_name_of_the_package_has_an_example():
    assert {hpcdat._MODULE_OF[name] for name in hpcdat.__all__} <= MODULES
    assert all(">>> " in getattr(hpcdat, name).__doc__ for name in hpcdat.__all__)
