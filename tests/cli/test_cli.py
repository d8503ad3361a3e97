"""What is imported before a command does anything, and what the package exports."""

import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import hpcdat
from hpcdat.cli.app import app
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
    assert {"PGD", "LAMB", "MomentumLALR", "LARS", "QuantizedSum"} <= set(dir(hpcdat))
    assert [getattr(hpcdat, name).__name__ for name in hpcdat.__all__] == hpcdat.__all__
    with pytest.raises(AttributeError, match="'hpcdat' has no attribute 'PGDD'"):
        _ = hpcdat.PGDD


@pytest.mark.parametrize(
    "command",
    [
        *("demo", "train", "evaluate", "pseudo-label", "certify", "report", "export", "doctor", "plan"),
        *("pack", "submit"),
        *("", "help", "jobs", "jobs copy", "box", "box up", "box run", "box login", "box down"),
    ],
)
def test_help_has_one_sentence_then_examples_on_lines_of_their_own(command):
    done = CliRunner().invoke(app, [*command.split(), "--help"], terminal_width=80, prog_name="hpcdat")
    assert done.exit_code == 0 and all(len(line) <= 80 for line in done.stdout.splitlines())
    _, sentence, rest = done.stdout.split("\n\n", 2)
    assert sentence.startswith("  ") and sentence.endswith(".") and ". " not in sentence
    examples = re.search(r"^  Examples?:\n((?:    .*\n)+)", "\n\n".join(["", rest]), re.MULTILINE).group(1)
    assert f"hpcdat {command}".rstrip() in examples
