"""The command hpcdat in processes of its own, and what its runs leave."""

import subprocess
import sys
from pathlib import Path

from hpcdat.storage.run_folder import RunFolder
from tests.conftest import CHECKOUT, DEMO
from tests.distributed.ranks import environment

HPCDAT = [sys.executable, "-m", "hpcdat"]


def hpcdat(*arguments, prefix=(), env=None, timeout=200):
    command = [*prefix, *HPCDAT, *map(str, arguments)]
    return subprocess.run(
        command, cwd=CHECKOUT, env=env or environment(), capture_output=True, text=True, timeout=timeout
    )


def short(run_dir, *settings):
    """Two epochs of the demo's job with a quick attack."""
    return [
        DEMO,
        "--set",
        f"run_dir={run_dir}",
        "epochs=2",
        "attack.steps=2",
        "evaluation.steps=3",
        *settings,
    ]


def newest(run_dir):
    return RunFolder(Path(run_dir)).newest_checkpoint()


def weights(run_dir):
    return newest(run_dir).model
