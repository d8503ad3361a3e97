"""The tests that need a GPU: ``pytest -m gpu``.

A tiny run on a CPU tries out those of them that can compute there. There are no ratios.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter

from gpu.section import CHECKOUT, Call, Keep, Measured, Table
from hpcdat.errors import HpcdatError

MARKED = ["tests/on_gpu", "tests/exchange/test_triton_codec.py"]
"""Tests for one GPU that need no packages but those of wheels.txt. Finding others would import all."""
ENDED = re.compile(r"^(\S+::.+) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
"""A line of ``pytest -v``; a test that passes and then fails to clean up has two."""


def measure(call: Call, before: Measured, keep: Keep) -> None:
    """Run the tests, and keep the outcome of each.

    Raises:
        HpcdatError: a test failed, or pytest found none.
    """
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--tb=short", "-p", "no:cacheprovider"]
    output = ""
    with subprocess.Popen(
        [*command, *(MARKED[:1] if call.tiny else MARKED)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=CHECKOUT,
        env={**os.environ, **({"REHEARSE_ON_CPU": "1"} if call.tiny else {})},
    ) as pytest:
        for line in pytest.stdout or ():
            print(line, end="", flush=True)
            output += line
            if ENDED.match(line):
                keep({"outcomes": outcomes_of(output)})
    if pytest.returncode:
        raise HpcdatError(f"pytest -m gpu ended with exit code {pytest.returncode}: its output is above")


def outcomes_of(output: str) -> dict[str, str]:
    """The last outcome of each test, in lower case, by its name."""
    return {name: outcome.lower() for name, outcome in ENDED.findall(output)}


def ratios(measured: Measured) -> dict[str, float | str]:
    """None."""
    return {}


def tables(measured: Measured) -> dict[str, Table]:
    """How many tests ended in which way, and those that did not pass."""
    outcomes = measured["outcomes"]
    rows = [[outcome, str(count)] for outcome, count in Counter(outcomes.values()).items()]
    rows += [[name, outcome] for name, outcome in outcomes.items() if outcome in ("failed", "error")]
    return {"Tests on a GPU": (["outcome", "tests"], rows or [["none was run", ""]])}
