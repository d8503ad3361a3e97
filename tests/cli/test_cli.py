"""What a command waits for before it does anything."""

import subprocess
import sys

import pytest

from tests.conftest import CHECKOUT


@pytest.mark.parametrize(
    "module, slow",
    [
        ("hpcdat.cli", {"torch", "horovod", "scipy", "matplotlib"}),
        ("hpcdat.commands.train", {"scipy", "matplotlib"}),
    ],
    ids=["help", "train"],
)
def test_nothing_slow_is_imported_that_is_not_needed(module, slow):
    code = f"import {module}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not slow & set(done.stdout.split())
