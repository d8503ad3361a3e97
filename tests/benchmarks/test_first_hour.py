"""The script of the first hour with a GPU: its parts, with a stub in place of Python, and a rehearsal."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT

SCRIPT = CHECKOUT / "benchmarks" / "gpu" / "first_hour.sh"
PARTS = ["tests", "step", "resnet50", "codec", "concurrent", "speedrun", "horovod"]
WHEELS = CHECKOUT / "benchmarks" / "gpu" / "wheels.txt"

STUB = """#!/usr/bin/env bash
# Called as: benchmarks/gpu SECTION --json FILE ...
echo "$2 $*" >> {folder}/calls
code=$(cat {folder}/$2.code 2> /dev/null || echo 0)
if [ "$code" != 0 ]; then echo "why $2 failed"; exit "$code"; fi
for argument in "$@"; do
    if [ "$before" = --json ]; then echo '{{"device": "a GPU", "sections": {{}}}}' > "$argument"; fi
    before=$argument
done
"""


class FirstHour:
    """The script with a stub, which fails with a code in the sections that the test names."""

    def __init__(self, folder):
        self.folder, self.out = folder, folder / "out"
        self.stub = folder / "python"
        self.stub.write_text(STUB.format(folder=shlex.quote(str(folder))))
        self.stub.chmod(0o755)

    def fail(self, **codes):
        for name, code in codes.items():
            (self.folder / f"{name}.code").write_text(str(code))

    def run(self, *arguments):
        """Its result, and the sections that it called."""
        (self.folder / "calls").write_text("")
        done = subprocess.run(
            [SCRIPT, "--out", self.out, *arguments],
            env={**os.environ, "PYTHON": str(self.stub)},
            capture_output=True,
            text=True,
        )
        self.calls = (self.folder / "calls").read_text().splitlines()
        return done, [call.split()[0] for call in self.calls]

    def state(self, part):
        return (self.out / f"{part}.state").read_text().strip()


@pytest.fixture
def hour(tmp_path):
    return FirstHour(tmp_path)


def test_a_part_that_fails_does_not_stop_the_next_and_a_second_call_goes_on(hour):
    hour.fail(step=1, codec=124, speedrun=75)
    done, called = hour.run()
    assert done.returncode == 1 and called == [*PARTS, "page"]
    assert hour.state("step") == "failed with exit code 1: why step failed"
    assert re.fullmatch(r"stopped after \d+ s: call this again to go on", hour.state("codec"))
    assert hour.state("speedrun").startswith("stopped after")
    assert [hour.state(part) for part in ("tests", "resnet50", "horovod")] == ["done"] * 3
    assert "step: failed with exit code 1: why step failed" in done.stdout

    hour.fail(step=0, codec=0, speedrun=0)
    done, called = hour.run()
    assert done.returncode == 0 and called == ["step", "codec", "speedrun", "page"]
    assert {hour.state(part) for part in PARTS} == {"done"}
    done, called = hour.run()
    assert done.returncode == 0 and called == ["page"]


def test_limits_of_all_parts_and_the_summary_are_nine_minutes():
    text = SCRIPT.read_text()
    limits = [int(limit) for limit in re.findall(r"^part \S+ (\d+)", text, re.MULTILINE)]
    total = int(re.search(r"^TOTAL=(\d+)", text, re.MULTILINE)[1])
    assert re.findall(r"^part (\S+)", text, re.MULTILINE) == PARTS
    summary = int(re.search(r"\bsummary=(\d+)", text)[1])
    kill = int(re.search(r"--kill-after=(\d+)", text)[1])
    assert total + kill + summary <= 540 and sum(limits) <= total + 20
    assert 'limit" -le "$left' in text


def test_only_what_can_be_merged_is_and_the_folder_is_made_absolute(hour):
    hour.fail(**dict.fromkeys(PARTS, 1))
    done, called = hour.run("--tiny")
    assert done.returncode == 1 and called == PARTS
    assert "nothing was measured" in done.stderr
    assert all("--device cpu" in call and "--tiny" in call for call in hour.calls)


@pytest.mark.parametrize("arguments", [["--tny"], ["--out"], ["--cifar"]])
def test_wrong_arguments_are_refused(arguments):
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"first_hour.sh: {arguments[0]}: ")
    assert len(done.stderr.splitlines()) == 1


def test_shellcheck_finds_nothing():
    shellcheck = Path(sys.executable).parent / "shellcheck"
    if not shellcheck.exists():
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_wheels_are_those_that_the_project_is_tested_with():
    pinned = (CHECKOUT / "requirements" / "common.txt").read_text().splitlines()
    pinned = {line.split(" ;")[0] for line in pinned if not line.endswith("< '3.11'")}
    wheels = [line for line in WHEELS.read_text().splitlines() if not line.startswith("#")]
    assert wheels and set(wheels) <= pinned


IMPORTS = """
import sys
from importlib.metadata import packages_distributions, requires
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

def with_needs(name, found):
    if name not in found:
        found.add(name)
        for text in requires(name) or []:
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                with_needs(canonicalize_name(need.name), found)
    return found

there = with_needs("torch", set()) | {"torchvision", "triton"} | set(sys.argv[1:])
lacking = {
    top
    for top, names in packages_distributions().items()
    if not there & {canonicalize_name(name) for name in names}
} - {"hpcdat", "tests"}

class Without:
    # A finder that finds nothing of what is lacking.
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in lacking else self.finder.find_spec(name, path, target)

    def find_distributions(self, *context):
        find = getattr(self.finder, "find_distributions", lambda *context: [])
        return [one for one in find(*context) if canonicalize_name(one.name) in there | {"hpcdat"}]

sys.meta_path[:] = map(Without, sys.meta_path)
sys.path.insert(0, "benchmarks")
import gpu.report, foolbox, pytest, pytest_timeout, tests.conftest, tests.on_gpu.test_step_on_gpu
import tests.exchange.test_triton_codec
import hpcdat.exchange.triton_codec, hpcdat.commands.evaluate, hpcdat.commands.train
"""


@pytest.mark.full
def test_wheels_are_all_that_is_imported():
    names = [line.split("==")[0] for line in WHEELS.read_text().splitlines() if not line.startswith("#")]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *names],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_rehearsal_on_the_cpu_and_its_page(tmp_path):
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run([SCRIPT, "--tiny", "--out", out], capture_output=True, text=True, env=environment)
    # Parts may be stopped on a machine that is busy; the others are done.
    states = {part: (out / f"{part}.state").read_text().strip() for part in PARTS}
    assert all(state == "done" or re.match("stopped|not started", state) for state in states.values()), states
    assert "done" in states.values()
    report = json.loads((out / "all.json").read_text())
    assert report["device"].endswith(", tiny test run")
    assert {part for part, state in states.items() if state == "done"} <= set(report["sections"])
    assert {"goal", "measured", "reached"} <= set(done.stdout.replace("|", " ").split())
    page = [sys.executable, "benchmarks/gpu", "page", "--json", out / "all.json", "--page", out / "page"]
    subprocess.run(page, check=True, cwd=CHECKOUT, env=environment)
    html = (out / "page" / "report.html").read_text()
    assert "pgd10_over_eager_fp32" in html and "2.5 or more" in html and "<svg" in html
