"""An evaluation of given weights in Slurm's queue."""

import re
import sys
import time

import pytest
import torch

from hpcdat.config.job_file import read_job
from hpcdat.models import build_model_for
from hpcdat.storage.run_folder import RunFolder
from tests.cluster.nodes import Submitted
from tests.conftest import DEMO, run_here

pytestmark = [pytest.mark.distributed, pytest.mark.full, pytest.mark.timeout(600)]


def lines_of(folder):
    """The stored outcomes, whichever worker has measured them."""
    return {file.name: file.read_bytes() for file in RunFolder(folder).outcomes_folder.glob("*.jsonl")}


def test_an_evaluation_goes_back_into_the_queue_and_resumes_with_the_same_outcomes(cluster, tmp_path):
    torch.save(build_model_for(read_job(DEMO), 10)[1].state_dict(), tmp_path / "weights.pth")
    job = tmp_path / "job.yaml"
    job.write_text(
        f"run_dir: {tmp_path}/queued\n"
        "data: {source: digits, loader: device, image_size: 8, channels: 1, test_images: 200}\n"
        f"model: {{name: digits-cnn, mean: [0.5], std: [0.5], pretrained: {tmp_path}/weights.pth}}\n"
        f"evaluation: {{eps: 0.1, steps: 300, batch_size: 5}}\ndevice: cpu\n"
    )
    submit = [sys.executable, "-m", "hpcdat", "submit", str(job), "--command", "evaluate"]
    output = cluster.do(*submit, "--nodes", "2", "--time", "30", "--sweep-steps", "1,2")
    queued = Submitted(cluster, tmp_path / "queued", int(re.match(r"submitted job (\d+)", output).group(1)))
    folder = queued.folder.outcomes_folder
    queued.wait_for(lambda: sum(file.stat().st_size for file in folder.glob("*.part-*")) > 500)
    cluster.do("scancel", "--signal=USR1", "--batch", str(queued.number))
    queued.says(r"hpcdat: requeue: stopped: \d+ stored outcomes", 60)
    queued.wait_for(lambda: queued.state() == "PENDING")
    time.sleep(2)
    cluster.do("scontrol", "update", f"JobId={queued.number}", "StartTime=now")
    queued.says(r"accuracy: \d+ of 40 batches are already measured")
    queued.wait_for(lambda: queued.state() == "")
    assert queued.folder.read_weights_result().images == 200, queued.log()
    here = run_here("evaluate", job, f"run_dir={tmp_path}/here", "--sweep-steps", "1,2")
    assert here.returncode == 0, here.stderr
    assert lines_of(tmp_path / "queued") == lines_of(tmp_path / "here")
