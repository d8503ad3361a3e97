"""The command line of benchmarks/communication.py, and what it measures among real ranks."""

import os
import subprocess
import sys
from importlib import import_module

import pytest
import torch

from hpcdat.performance.benchmark_file import BenchmarkFile
from tests.conftest import CHECKOUT, DEMO
from tests.distributed.ranks import environment, launcher

COLLECTIVES = ["all-reduce", "all-gather", "all-to-all", "broadcast", "point to point"]


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    """The modules of benchmarks."""
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")


def test_sizes_are_powers_of_1024():
    size = import_module("communication_arguments").size
    assert [size(text) for text in ("1", "1K", "16m", "2G", "4096")] == [1, 2**10, 2**24, 2**31, 4096]


WRONG = {
    "--rates 1gbps": "argument --rates: '1gbps': expected a value like 1gbit",
    "--engines mpi": "argument --engines: 'mpi': expected auto or horovod or torch",
    "--min-bytes 16M --max-bytes 1K": "--min-bytes 16777216 is more than --max-bytes 1024",
    "--min-bytes 1KB": "argument --min-bytes: '1KB': expected bytes such as 4096, 64K or 16M (1K: 1024)",
    "--max-bytes 0": "argument --max-bytes: '0': expected bytes such as",
    "--min-bytes 1K --factor 1": "argument --factor: '1': expected a whole number, 2 or larger",
    "--min-bytes 1K --operations all-reduce,gossip": "argument --operations: 'gossip': expected all-reduce",
    "--min-bytes 1K --count 100": "--count: not with --min-bytes",
    "--plot plot.svg": "--plot: only with --min-bytes",
    "--jobs nowhere.yaml": "argument --jobs: nowhere.yaml: cannot be read",
    f"--jobs {DEMO} --min-bytes 1K": "--jobs: not with --min-bytes",
    "--min-bytes 1K --plot plot.jpg": "argument --plot: plot.jpg: expected a name that ends with .svg",
    "--min-bytes 1K --max-bytes 2K --plot plot.svg": "--plot: there is one size only",
    "--min-bytes 1K --json nowhere/file.json": "argument --json: nowhere/file.json cannot be written",
    "--nodes 1": "argument --nodes: '1': expected a whole number, 2 or larger",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_use_ends_in_one_line(words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["communication.py", *words.split()])
    with pytest.raises(SystemExit) as end:
        import_module("communication").main()
    out, err = capsys.readouterr()
    assert end.value.code == 2 and not out
    assert err.startswith(f"communication.py: {WRONG[words]}") and err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["communication.py", "--min-bytes", "1K", "--device", "cuda"])
    with pytest.raises(SystemExit) as end:
        import_module("communication").main()
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("communication.py: argument --device: cuda: torch finds no")


def test_a_single_worker_of_a_launcher_is_refused(monkeypatch, capsys):
    for variable, value in (("RANK", 0), ("WORLD_SIZE", 1), ("MASTER_ADDR", "node"), ("MASTER_PORT", 1)):
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setattr(sys, "argv", ["communication.py", "--min-bytes", "1K"])
    with pytest.raises(SystemExit) as end:
        import_module("communication").main()
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "communication.py: torchrun has started one worker: start two or more, or none for emulated nodes\n"
    )


@pytest.mark.parametrize("words", [[], ["--min-bytes", "1K"]])
def test_a_single_process_without_root_is_refused(words, monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda tool: tool)
    monkeypatch.setattr(sys, "argv", ["communication.py", *words])
    with pytest.raises(SystemExit) as end:
        import_module("communication").main()
    assert end.value.code == 2
    assert capsys.readouterr().err == "network namespaces need root; try with sudo\n"


def started(transport, size, tmp_path, *words):
    """Run the program on so many ranks; its file."""
    answer = tmp_path / "answer.json"
    command = [sys.executable, "benchmarks/communication.py", *words, "--json", str(answer)]
    done = subprocess.run(
        [*launcher(transport, size), *command],
        cwd=CHECKOUT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return BenchmarkFile.read(answer), done.stdout


SHORT = ("--min-bytes", "1K", "--max-bytes", "4K", "--warm-up", "1", "--repetitions", "6", "--device", "cpu")


@pytest.mark.distributed
def test_under_mpirun_mpi_itself_is_measured_beside_ours(tmp_path):
    file, said = started("MPI", 2, tmp_path, *SHORT)
    found = {(row.parameters["operation"], row.parameters["by"]) for row in file.rows}
    assert found == {
        *((name, by) for name in COLLECTIVES for by in ("hpcdat", "MPI")),
        ("all-reduce", "torch.distributed"),
        ("all-reduce", "Horovod float16"),
        ("exchange", "hpcdat"),
    }
    assert sum(row.parameters["protocol"] == "non-blocking" for row in file.rows) == 2
    assert all(row.figures["wrong"] == 0 and row.median > 0 for row in file.rows)
    settings = {name: file.settings[name] for name in ("workers", "engine", "transport", "repetitions")}
    assert settings == {"workers": 2, "engine": "horovod", "transport": "MPI", "repetitions": 6}
    assert "float32, MPI, non-blocking" in said and "#wrong" in said


@pytest.mark.full
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("transport", "by"),
    [("torch", {"torch.distributed"}), ("Gloo", {"torch.distributed", "Horovod float16"})],
)
def test_without_mpi_the_other_packages_are_measured(tmp_path, transport, by):
    file, _ = started(transport, 3, tmp_path, *SHORT)
    assert {row.parameters["by"] for row in file.rows} == {"hpcdat", *by}
    assert all(row.figures["wrong"] == 0 for row in file.rows)
    assert any("MPI itself is not measured: Gloo connects the workers" in note for note in file.notes)


@pytest.mark.full
@pytest.mark.distributed
def test_one_gradient_is_measured_as_before_in_the_common_format(tmp_path):
    file, said = started("MPI", 2, tmp_path, "--count", "30000", "--rounds", "2", "--rates", "1gbit")
    exchanges = [row for row in file.rows if row.parameters["operation"] == "exchange"]
    assert len(exchanges) == 8 and all(row.figures["wrong"] == 0 for row in exchanges)
    assert {row.parameters["part"] for row in file.rows if "part" in row.parameters} == {
        "computation",
        "communication",
        "step",
    }
    assert {"fp32_of_limit", "overlap_over_max", "int8_two_sided_over_fp32"} <= set(file.ratios)
    ours = [row.median for row in exchanges if row.parameters["bits"] == 32]
    limit = 4 * 30000 / 1.25e8
    assert file.ratios["fp32_of_limit"] == pytest.approx(limit / min(ours))
    assert "int8 two-sided, sharded server" in said and "overlap: " in said


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.gpu
@pytest.mark.distributed
def test_on_gpus_nccl_carries_tensors_of_gpu_memory(tmp_path):
    workers = torch.cuda.device_count()
    if workers < 2:
        pytest.skip("needs two GPUs: NCCL takes one worker a GPU")
    file, said = started("torch", workers, tmp_path, *SHORT[:-1], "cuda")
    assert file.settings["transport"] == "NCCL" and file.settings["device"] == "cuda"
    assert all(row.figures["wrong"] == 0 and row.figures["device_seconds"] > 0 for row in file.rows)
    assert "us by events" in said
