"""Examples run: those in docstrings, which print what they say, and those in examples/."""

import doctest
import importlib
import re
import subprocess

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


@pytest.mark.full
@pytest.mark.distributed
@pytest.mark.computes
@pytest.mark.timeout(900)
def test_the_example_of_an_own_model_trains_exports_and_attacks():
    done = subprocess.run(
        ["bash", CHECKOUT / "examples" / "own_model" / "run.sh"], capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr
    (alone,) = re.findall(r"TA in plain PyTorch: ([0-9.]+) %", done.stdout)
    *_, trained, attacked = (line for line in done.stdout.splitlines() if line.startswith("| dat-fgsm"))
    assert f"| {alone} [" in trained and "PGD-20, linf, eps 0.1 | 360" in trained
    assert "PGD-20, linf, eps 0.1 | 50" in attacked


def test_the_example_of_an_own_model_is_short():
    files = [CHECKOUT / "examples" / "own_model" / name for name in ("network.py", "digits.py", "job.yaml")]
    assert sum(len(file.read_text().splitlines()) for file in files) <= 60
