"""Starting real workers over real transports, and collecting what each of them found."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import CHECKOUT

BIN = Path(sys.executable).parent
TRANSPORTS = ["MPI", "Gloo"]


def environment():
    """Nothing of an outer launcher or Slurm allocation; one thread a worker, so that all compute alike.

    Open MPI does not look for networks that are not here, which would take a second of each start.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "OMPI", "PMIX", "HOROVOD"))}
    alike = {"PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    return clean | alike | {"OMPI_MCA_btl": "^ofi"}


def launcher(transport, size):
    """The command in front of a worker's command."""
    if size == 1:
        return []
    if transport == "Gloo":
        return [str(BIN / "horovodrun"), "--gloo", "-np", str(size), "-H", f"localhost:{size}"]
    mpirun = [str(BIN / "mpirun"), "-np", str(size), "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]
    return mpirun + (["--allow-run-as-root"] if os.geteuid() == 0 else [])


def run_program(program, transport, size, folder, *arguments, timeout=240):
    """Run ``programs.MODULE.NAME(workers, *arguments)`` on every rank; the ranks' answers, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.distributed.programs", program, str(folder), *map(str, arguments)]
    done = subprocess.run(
        [*launcher(transport, size), *command],
        cwd=CHECKOUT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((folder / f"{program}.{rank}.json").read_text()) for rank in range(size)]
