"""What is imported before a command does anything, and what the package exports."""

import subprocess
import sys

import pytest

import hpcdat
from tests.conftest import CHECKOUT


@pytest.mark.parametrize(
    "module, slow",
    [
        ("hpcdat", {"torch", "numpy", "horovod"}),
        ("hpcdat.cli", {"torch", "horovod", "scipy", "matplotlib"}),
        ("hpcdat.commands.train", {"scipy", "matplotlib"}),
    ],
    ids=["library", "help", "train"],
)
def test_nothing_slow_is_imported_that_is_not_needed(module, slow):
    code = f"import {module}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not slow & set(done.stdout.split())


def test_the_package_exports_what_scripts_use():
    assert {"PGD", "LAMB", "LARS", "QuantizedSum"} <= set(dir(hpcdat))
    assert [getattr(hpcdat, name).__name__ for name in hpcdat.__all__] == hpcdat.__all__
    with pytest.raises(AttributeError, match="'hpcdat' has no attribute 'PGDD'"):
        _ = hpcdat.PGDD
