"""What only real processes show of a start."""

import os
import shutil

import pytest

from tests.conftest import DEMO
from tests.distributed.command_line import hpcdat

pytestmark = pytest.mark.distributed


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts a file system")
def test_a_small_shared_memory_ends_the_run_in_one_line(tmp_path):
    mount = 'mount -t tmpfs -o size=1m none /dev/shm && exec "$@"'
    settings = ["data.loader=torchvision", "data.image_size=224", f"run_dir={tmp_path}/run"]
    done = hpcdat("train", DEMO, "--set", *settings, prefix=["unshare", "--mount", "sh", "-c", mount, "sh"])
    # On a slow machine, the start is reported as well.
    lines = [
        line for line in done.stderr.splitlines() if "after 10 s" not in line and "waiting for" not in line
    ]
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert "/dev/shm is too small for data.loader: torchvision: it has 1 MiB" in lines[0]
