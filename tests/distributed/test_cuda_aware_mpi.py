"""What Open MPI's ompi_info says about GPU memory, from stand-ins of it."""

import pytest

from hpcdat.distributed import cuda_aware_mpi
from hpcdat.distributed.cuda_aware_mpi import find_ompi_info, mpi_is_cuda_aware

PARAMETER = "mca:mpi:base:param:mpi_built_with_cuda_support:{}"


@pytest.fixture
def saying(tmp_path):
    """Makes a program that prints such lines."""

    def make(*lines):
        program = tmp_path / "ompi_info"
        program.write_text("#!/bin/sh\ncat <<END\n" + "\n".join(lines) + "\nEND\n")
        program.chmod(0o755)
        return str(program)

    return make


@pytest.mark.parametrize("answer", ["true", "false"])
def test_open_mpi_says_how_it_was_built(saying, answer):
    lines = [
        PARAMETER.format("source:default"),
        PARAMETER.format(f"value:{answer}"),
        PARAMETER.format("level:4"),
    ]
    assert mpi_is_cuda_aware(saying("ompi:version:full:5.0.10", *lines)) is (answer == "true")


def test_without_an_answer_it_is_unknown(saying, tmp_path, monkeypatch):
    assert mpi_is_cuda_aware(saying("ompi:version:full:1.2")) is None
    assert mpi_is_cuda_aware(str(tmp_path / "nowhere")) is None
    monkeypatch.setattr(cuda_aware_mpi, "find_mpirun", lambda: None)
    monkeypatch.setenv("PATH", "")
    assert find_ompi_info() is None and mpi_is_cuda_aware() is None


def test_the_program_is_that_of_the_mpirun_that_starts_workers(saying, tmp_path, monkeypatch):
    program = saying(PARAMETER.format("value:true"))
    monkeypatch.setattr(cuda_aware_mpi, "find_mpirun", lambda: str(tmp_path / "mpirun"))
    assert find_ompi_info() == program and mpi_is_cuda_aware() is True
