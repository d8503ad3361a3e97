"""The set-up: pins, progress, and what the machine needs."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from hpcdat.install.__main__ import is_for_cuda
from hpcdat.install.horovod import cxx_standard
from hpcdat.install.pins import read_pins, version_of
from hpcdat.install.steps import InstallError, Steps, progress_in
from tests.conftest import CHECKOUT

SETS = sorted((CHECKOUT / "requirements").glob("torch-*.txt"))


def test_pins_are_those_of_the_file_and_of_the_files_it_includes(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "common.txt").write_text("# packages\nnumpy==2.4.6 ; python_version >= '3.11'\n")
    (tmp_path / "more" / "own.txt").write_text("-r common.txt\ntorch==2.13.0  # a comment\n")
    (tmp_path / "all.txt").write_text("\n-r more/own.txt\n")
    pins = read_pins(tmp_path / "all.txt")
    assert pins == ["numpy==2.4.6 ; python_version >= '3.11'", "torch==2.13.0"]
    assert version_of("torch", pins) == "2.13.0" and version_of("numpy", pins) == "2.4.6"
    assert version_of("torchvision", pins) is None
    (tmp_path / "more" / "common.txt").unlink()
    with pytest.raises(InstallError, match=r"cannot be read: .*more/common\.txt: No such file"):
        read_pins(tmp_path / "all.txt")


@pytest.mark.parametrize("file", SETS, ids=lambda file: file.stem)
def test_a_set_pins_every_package_once_and_torch_to_its_version(file):
    pins = read_pins(file)
    assert all(
        re.fullmatch(r"[a-z0-9][a-z0-9-]*==[^\s=]+( ; python_version (>=|<) '3\.\d+')?", p) for p in pins
    )
    keys = [(pin.split("==")[0], pin.partition(" ; ")[2]) for pin in pins]
    assert len(keys) == len(set(keys))
    cpu = file.stem.endswith("-cpu")
    version = file.stem.removeprefix("torch-").removesuffix("-cpu")
    assert version_of("torch", pins).startswith(f"{version}.") and is_for_cuda(pins) != cpu
    assert any(pin.startswith("nvidia-cu") for pin in pins) != cpu


def test_the_sets_are_those_of_the_versions_that_setup_py_admits():
    versions = {file.stem.removeprefix("torch-").removesuffix("-cpu") for file in SETS}
    low, high = re.search(r"torch>=2\.(\d+),<2\.(\d+)", (CHECKOUT / "setup.py").read_text()).groups()
    assert versions == {f"2.{minor}" for minor in range(int(low), int(high))}


@pytest.mark.parametrize(
    "torch, standard", [("2.11.0+cu130", 17), ("2.13.0", 17), ("2.14.1", 20), ("2.15.0", 20), ("3.0.0a1", 20)]
)
def test_the_standard_of_cxx_follows_torch(torch, standard):
    assert cxx_standard(torch) == standard


@pytest.mark.parametrize(
    "output, progress",
    [
        ("Collecting torch==2.14.1 (from -r x)\n", "collecting torch==2.14.1"),
        (
            "Collecting torch\n  Downloading torch-2.14.1-cp311-cp311-manylinux.whl (530.6 MB)\n noise",
            "downloading torch 2.14.1 (530.6 MB)",
        ),
        (
            "[  9%] Building CXX object third_party/gloo/gloo/CMakeFiles/gloo.dir/barrier.cc.o\nwarning: x\n",
            "9% compiled, now barrier.cc",
        ),
        ("[100%] Linking CXX shared library /x/mpi_lib_v2.so", "100% compiled, now linking"),
        ("nothing of the kind", ""),
    ],
)
def test_progress_is_read_from_the_output_of_pip_and_make(output, progress):
    assert progress_in(output) == progress


def test_a_command_that_fails_shows_the_end_of_its_own_output(tmp_path):
    steps = Steps(tmp_path / "log", total=1)
    steps.run(["echo", "of the one before"], help_on_failure="")
    with pytest.raises(InstallError) as caught:
        steps.run(["sh", "-c", "echo its own; exit 3"], help_on_failure="Try again.")
    assert "exit code 3" in str(caught.value) and str(caught.value).endswith(":\nits own\nTry again.")
    assert (tmp_path / "log").read_text().count("$ ") == 2


def install(*arguments, path):
    command = [sys.executable, "-m", "hpcdat.install", *arguments]
    environment = os.environ | {"PATH": path}
    return subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True)


def test_without_a_compiler_the_set_up_names_it_and_the_engine_that_needs_none(tmp_path):
    for program in ("sh", "env"):
        (tmp_path / program).symlink_to(shutil.which(program))
    done = install("--venv", str(tmp_path / "venv"), path=str(tmp_path))
    assert done.returncode == 2 and done.stderr.startswith(
        "\nset-up cannot start: no C++ compiler (g++): apt"
    )
    assert done.stderr.endswith("or do without Horovod: --engine torch (make demo ENGINE=torch)\n")
    assert not (tmp_path / "venv").exists()


def test_a_file_of_pins_that_is_not_there_is_named(tmp_path):
    done = install("--venv", str(tmp_path / "venv"), "--requirements", "none.txt", path=os.environ["PATH"])
    assert done.returncode == 2
    assert done.stderr == (
        "\nset-up cannot start: the pinned packages cannot be read: none.txt: No such file or directory\n"
    )
