"""The commands of docs/tutorials/measure-your-cluster.md, one after the other, with small sizes."""

import json
import os
import re
import subprocess
import tarfile

import pytest

from hpcdat.performance.benchmark_file import BenchmarkFile
from tests.conftest import CHECKOUT
from tests.distributed.ranks import BIN

pytestmark = [pytest.mark.distributed, pytest.mark.full, pytest.mark.timeout(300)]

PAGE = (CHECKOUT / "docs" / "tutorials" / "measure-your-cluster.md").read_text()
SMALL = {
    "--max-bytes 256M": "--max-bytes 16K --operations all-reduce,exchange --warm-up 1 --repetitions 6",
}


def test_the_tutorial(cluster, tmp_path):
    script = "".join(line[4:] + "\n" for line in PAGE.splitlines() if line.startswith("    "))
    for text, smaller in SMALL.items():
        assert script.count(text) == 1
        script = script.replace(text, smaller)
    environment = cluster.environment | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    logs = "".join(file.read_text() for file in tmp_path.glob("cluster/*/slurm/*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    assert json.loads((tmp_path / "doctor.json").read_text())["links"]
    folders = sorted((tmp_path / "cluster").iterdir())
    assert [bool(re.fullmatch(r"first|\d{4}-\d\d-\d\d", folder.name)) for folder in folders] == [True, True]
    for folder in folders:
        measured = BenchmarkFile.read(folder / "result.json")
        assert (measured.settings["nodes"], measured.settings["workers_per_node"]) == (2, 1)
        assert {row.parameters["bytes"] for row in measured.rows} == {2**10, 2**12, 2**14}
        assert [file.suffix for file in (folder / "slurm").iterdir()].count(".log") == 1
        assert (folder / "report" / "report.html").exists()
    # Noise decides which rows are steady, and whether one is slower; not whether there is a verdict.
    assert re.search(r"\d+ of \d+ compared rows are slower than in first", done.stdout)
    if "exit code 2" in done.stdout:
        assert "0 of 0 compared rows" in done.stdout and "nothing is compared" in done.stderr
    report = (folders[-1] / "report" / "report.md").read_text()
    explained = re.findall(
        r"`([^`]+)`", "".join(re.findall(r"(?m)^\| (`.*?) \| .*\|$", PAGE.partition("## 4")[0]))
    )
    assert len(explained) == 9
    header = next(line for line in report.splitlines() if "median (ms)" in line)
    assert {name for name in explained if f" {name} " not in header} == set()
    assert "| 8 bits, 2-sided " in report, "beside the paper's Table 4"
    with tarfile.open(tmp_path / "measured.tar.gz") as sent:
        names = sent.getnames()
    assert {"doctor.json", "cluster/first/result.json", "cluster/first/slurm/benchmark.sh"} <= set(names)
