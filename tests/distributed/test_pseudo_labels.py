"""Pseudo-labels by real workers, from the command line."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from hpcdat.data import find_images
from hpcdat.storage.run_folder import RunFolder
from tests.conftest import CHECKOUT, run_here
from tests.distributed.ranks import environment

pytestmark = pytest.mark.distributed


def test_two_workers_write_what_one_writes(finished, tmp_path):
    """Of three batches worker 0 has two."""
    run_dir, _ = finished
    _, digits = find_images(RunFolder(run_dir).read_job([]).data)
    (tmp_path / "images" / "deep").mkdir(parents=True)
    for number, file in enumerate(digits.files[::50]):
        shutil.copy(file, tmp_path / "images" / ("deep" if number % 2 else "") / f"{number}.png")
    written = []
    for workers in ("1", "2"):
        arguments = ["pseudo-label", str(run_dir), str(tmp_path / "images"), str(tmp_path / f"{workers}.npz")]
        arguments += ["-np", workers, "--set", "evaluation.batch_size=3", "device=cpu"]
        if workers == "1":
            done = run_here(*arguments)
        else:
            command = [sys.executable, "-m", "hpcdat", *arguments]
            done = subprocess.run(command, cwd=CHECKOUT, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"{workers}.npz: 8 images: 0 " in done.stdout
        with np.load(tmp_path / f"{workers}.npz") as held:
            written.append({name: held[name].tolist() for name in held})
    assert written[0] == written[1]
    assert len(set(written[0]["labels"])) > 4, "else it shows little"
