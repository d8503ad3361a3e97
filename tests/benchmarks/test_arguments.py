"""Wrong use of every benchmark ends in one line and exit code 2, before anything is measured."""

import os
from importlib import import_module

import pytest
import torch

from hpcdat.distributed.loopback import loopback
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError
from tests.conftest import CHECKOUT


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")


@pytest.fixture
def arguments():
    return import_module("arguments")


@pytest.fixture
def end(monkeypatch, capsys, tmp_path):
    """Run a benchmark in this process, in a folder of its own; exit code, and the lines on stderr."""

    def leave(code):
        raise SystemExit(code)

    # How one of several workers ends.
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("{}")

    def run(benchmark, *given, environ=()):
        monkeypatch.setattr("sys.argv", [f"{benchmark}.py", *given])
        for name, value in dict(environ).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            import_module(benchmark).main()
        return ended.value.code, capsys.readouterr().err.splitlines()

    return run


JSON = ["--json", "missing/file.json"]
NO_FOLDER = "missing/file.json cannot be written: No such file or directory"


@pytest.mark.parametrize(
    ("benchmark", "given", "expected"),
    [
        ("handover", ["--workers", "2,3"], "3: an even number of workers is needed"),
        ("attack_step", JSON, NO_FOLDER),
        ("attack_step", ["--json", "empty"], "empty cannot be written: Is a directory"),
        (
            "attack_step",
            ["--networks", "resnet-50"],
            "there is no network resnet-50; the package has digits-cnn",
        ),
        ("attack_step", ["--networks", "resnet50@x"], "expected an image size after @, as in resnet50@224"),
        ("attack_step", ["--networks", "digits-cnn@1"], "digits-cnn: fails on images of 3x1x1"),
        ("attack_step", ["--networks", "timm:resnet"], "timm has no network resnet"),
        ("attack_step", ["--batch-sizes", "16,0"], "'0': expected a whole number, 1 or larger"),
        ("attack_step", ["--steps", "1,,2"], "'': expected a whole number, 0 or larger"),
        ("attack_step", ["--precisions", "fp16"], "'fp16': expected float32 or bfloat16"),
        ("attack_step", ["--rounds", "-1"], "'-1': expected a whole number, 1 or larger"),
        ("attack_step", ["--device", "gpu"], "'gpu': expected auto or cpu or cuda"),
        ("attack_step", ["--batch", "4"], "unrecognized arguments: --batch 4"),
        ("autoattack", [], "the following arguments are required: --cifar"),
        ("autoattack", ["--cifar", "empty"], "empty: there is no folder cifar-10-batches-py in it"),
        ("codec", ["--count", "1e6"], "'1e6': expected a whole number, 1 or larger"),
        ("codec", JSON, NO_FOLDER),
        ("conadv", ["--width", "0"], "'0': expected a positive number"),
        ("conadv", ["--set", "method"], "method"),
        ("conadv", ["--model", "nope"], "nope"),
        ("conadv", ["--batch", "many"], "'many': expected a whole number, 1 or larger"),
        ("conadv_accuracy", ["--set", "epoch=1"], "unknown key; did you mean 'epochs'?"),
        ("conadv_accuracy", ["--cifar", "missing"], "there is no folder cifar-10-batches-py in it"),
        ("epoch", ["--rates", "100mbit,fast"], "'fast': expected a value like 1gbit"),
        ("epoch", ["--shapes", "2x0"], "'2x0': expected nodes x workers a node, such as 3x2"),
        ("epoch", ["--epochs", "1"], "'1': expected a whole number, 2 or larger"),
        ("epoch", ["--batch", "1"], "'1': expected a whole number, 2 or larger"),
        ("epoch", ["--runs", "file/runs"], "file is not a folder"),
        ("epoch", ["--width", "0"], "'0': expected a positive number"),
        (
            "epoch",
            ["--only", "gossip"],
            "--only gossip: the protocols are ring, float32; ring, 8 bits; allgather",
        ),
        ("communication", ["--min-bytes", "1K", "--repetitions", "0"], "'0': expected a whole number, 1 or"),
        ("handover", ["--starts", "0"], "'0': expected a whole number, 1 or larger"),
        ("handover", JSON, NO_FOLDER),
        ("finetune", ["--source", "missing.yaml"], "missing.yaml cannot be read: No such file or directory"),
        ("finetune", ["--rates", "0.1,nan"], "'nan': expected a positive number"),
        ("finetune", ["--out", "file"], "file is not a folder"),
        ("loader", ["--images", "empty"], "empty: there is no folder train in it, with one folder a class"),
        ("loader", ["--images", "$UNSET_HERE"], "the environment variable UNSET_HERE is not set or empty"),
        ("loader", ["--rounds", "two"], "'two': expected a whole number, 1 or larger"),
        ("mutants", ["--only", "nope"], "has no nope"),
        ("mutants", ["--compare", "file", "missing"], "missing cannot be read"),
        ("plan_against_published", ["--page", "file"], "lines <!--"),
        ("plan_against_published", ["--page", "missing"], "missing cannot be read"),
        ("rendezvous", ["--workers", "4,6"], "--workers: not all of [4, 6] are multiples of 4"),
        ("rendezvous", ["--per-node", "0"], "'0': expected a whole number, 1 or larger"),
        ("rounding", ["--seeds", "0"], "'0': expected a whole number, 1 or larger"),
        ("rounding", ["--cifar", "empty"], "empty: there is no folder cifar-10-batches-py in it"),
        ("scale", ["--workers", "6"], "expected two numbers or more, since growth is fitted"),
        ("scale", ["--real", "2,1"], "'1': expected a whole number, 2 or larger"),
        ("scaling", ["--only", "AT,DAT"], "'DAT': expected AT or DAT-FGSM"),
        ("scaling", ["--workers", "0"], "'0': expected a whole number, 1 or larger"),
        ("smoothing", ["--batch", "0"], "'0': expected a whole number, 1 or larger"),
        ("start", [], "the following arguments are required: --images"),
        ("start", ["--images", "empty"], "empty: there is no folder train in it, with one folder a class"),
        ("tables", ["--rate", "1gb"], "'1gb': expected a value like 1gbit"),
        ("tables", ["--only", "nope"], "--only nope: the jobs are"),
        ("tables", ["--against", "file"], "file is not a benchmark file: benchmark: Field required"),
        ("tables", ["--set", "epochs=none"], "epochs"),
        ("theory", JSON, NO_FOLDER),
        ("theory", ["--out", "file/plots"], "file is not a folder"),
        ("gpu.__main__", ["nothing"], "invalid choice: 'nothing'"),
        ("gpu.__main__", ["codec", "--device", "cpu", "--seeds", "a"], "'a': expected a whole number"),
        ("gpu.__main__", ["codec", "--device", "cpu", "--limit", "5"], "--limit: also give --work"),
        (
            "gpu.__main__",
            ["codec", "--device", "cpu", "--json", "file"],
            "file is not a report of benchmarks/gpu",
        ),
    ],
)
def test_wrong_use_ends_in_one_line_and_exit_code_2(end, benchmark, given, expected):
    code, (line,) = end(benchmark, *given)
    assert code == 2 and expected in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "benchmark", ["attack_step", "autoattack", "codec", "conadv", "epoch", "loader", "smoothing"]
)
def test_a_gpu_that_is_not_there_is_wrong_use(end, benchmark):
    code, (line,) = end(benchmark, "--device", "cuda")
    assert code == 2 and "--device: cuda: torch finds no usable GPU" in line


TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    "benchmark",
    [
        *("conadv", "conadv_accuracy", "loader", "mutants", "plan_against_published", "rendezvous"),
        *("rounding", "scale", "tables", "theory", "gpu.__main__"),
    ],
)
def test_what_cannot_run_under_a_launcher_says_so(end, benchmark):
    given = ["page"] if benchmark.startswith("gpu") else []
    code, (line,) = end(benchmark, *given, environ=TORCHRUN)
    assert code == 2 and "start it as a single process, not with torchrun: " in line


def test_left_over_variables_of_a_launcher_are_reported(end):
    code, (line,) = end("codec", environ={"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"})
    assert code == 2 and "unset OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE" in line


def test_values_are_read(arguments):
    read = arguments.listed(arguments.whole(0))
    assert read("3, 0,3") == [3, 0]
    assert arguments.shape("12x3") == (12, 3)
    assert arguments.positive("2") == 2.0
    assert arguments.positive_text(" 1e-2") == "1e-2"
    assert arguments.link_rate("1.5gbit") == "1.5gbit"


def test_a_file_is_checked_without_being_changed(arguments, tmp_path):
    file = tmp_path / "old.json"
    file.write_text("old")
    assert arguments.file_to_write(str(file)) == file and file.read_text() == "old"
    assert arguments.folder_to_write(str(tmp_path / "new" / "deep")) == tmp_path / "new" / "deep"
    assert sorted(place.name for place in tmp_path.iterdir()) == ["old.json"]


def test_each_worker_has_a_gpu_of_its_own(arguments, monkeypatch):
    cuda = arguments.torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "device_count", lambda: 2)
    monkeypatch.setattr(cuda, "set_device", lambda device: None)
    two, three = loopback(2, node_of=[0, 0]), loopback(3, node_of=[0, 0, 0])
    found = [
        arguments.own_device(setting, worker) for worker, setting in zip(two, ("auto", "cuda"), strict=True)
    ]
    assert found == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert arguments.own_device("auto", SingleProcess()).type == "cuda"
    with pytest.raises(InputError, match=r"3 workers on .*, which has 2 GPUs: start one worker for each GPU"):
        arguments.own_device("auto", three[0])
    assert arguments.own_device("cpu", three[0]).type == "cpu"
