"""Nodes with Slurm, and what can be done to them."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from hpcdat.config.job_file import read_job
from hpcdat.emulation import slurm_daemons
from hpcdat.emulation.cluster import SHARED_CORES
from hpcdat.slurm.script import Resources
from hpcdat.slurm.site import Site
from hpcdat.slurm.submit import write_script
from hpcdat.storage.checkpoint_format import load_checkpoint
from hpcdat.storage.run_folder import RunFolder
from tests.conftest import CHECKOUT, DEMO
from tests.distributed.ranks import environment

TIMEOUTS = slurm_daemons.Timeouts(node=8, kill=3, message=3)
SETTINGS = ["epochs=10", "attack.steps=1", "evaluation.every=100", "evaluation.steps=1"]


class Cluster:
    """Nodes with Slurm, seen from their login node."""

    def __init__(self, made):
        self.box = made
        self.environment = SHARED_CORES | environment()
        self.environment["SLURM_CONF"] = str(slurm_daemons.configuration_file(made))

    def do(self, *command):
        done = subprocess.run(
            command, cwd=CHECKOUT, env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def script(self, run_dir, launcher="srun", *settings):
        job = read_job(DEMO, [f"run_dir={run_dir}", *SETTINGS, *settings])
        return write_script(job, Site(launcher=launcher), Resources(3, 1, None, "30"))[0]

    def submit(self, run_dir, *settings, launcher="srun"):
        number = self.do("sbatch", "--parsable", str(self.script(run_dir, launcher, *settings)))
        return Submitted(self, run_dir, int(number))

    def submit_by_command(self, run_dir, *options):
        """The same by ``hpcdat submit``."""
        settings = [f"run_dir={run_dir}", *SETTINGS]
        command = [sys.executable, "-m", "hpcdat", "submit", str(DEMO), "--nodes", "3", "--time", "30"]
        output = self.do(*command, *options, "--set", *settings)
        return Submitted(self, run_dir, int(re.match(r"submitted job (\d+)", output).group(1)))

    def start(self, run_dir, *settings):
        """A worker a node without Slurm's doing; the same arithmetic as under srun."""
        settings = [f"run_dir={run_dir}", *SETTINGS, *settings]
        train = [sys.executable, "-m", "hpcdat", "train", str(DEMO), "--set", *settings]
        command = [sys.executable, "-m", "hpcdat", "box", "run", self.box.name, "-np", "3", "--", *train]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=CHECKOUT, env=self.environment, text=True, **pipes)

    def train(self, run_dir):
        return finish(self.start(run_dir))

    def set_link(self, node, state):
        self.do("ip", "link", "set", f"{self.box.bridge}n{node}", state)

    def processes(self, node):
        """Those of a node, by their process id."""
        return [int(pid) for pid in self.do("ip", "netns", "pids", self.box.namespace(node)).split()]

    def worker(self, node, run_dir):
        """The process of a node's worker."""
        for pid in self.processes(node):
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if arguments[0] == sys.executable and any(str(run_dir) in text for text in arguments):
                return pid
        raise AssertionError(f"no worker on node{node}")

    def cut_power(self, node):
        """Kill a node at once, without any message to the others, not even from its kernel."""
        self.set_link(node, "down")
        for pid in self.processes(node):
            os.kill(pid, signal.SIGKILL)

    def power_on(self, node):
        self.set_link(node, "up")
        slurm_daemons.start_node(self.box, node)


def wait_for(what, seconds=240, log=lambda: ""):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, log()
        time.sleep(0.1)


class Submitted:
    """A job in the queue."""

    def __init__(self, cluster, run_dir, number):
        self.cluster, self.number = cluster, number
        self.folder = RunFolder(run_dir)

    def log(self):
        file = self.folder.slurm_folder / f"{self.number}.log"
        return file.read_text() if file.exists() else ""

    def wait_for(self, what, seconds=240):
        wait_for(what, seconds, self.log)

    def trains(self, epochs=2):
        self.wait_for(lambda: len(self.folder.metrics("epoch")) >= epochs)

    def says(self, pattern, seconds=240):
        self.wait_for(lambda: re.search(pattern, self.log()), seconds)

    def ends_well(self):
        self.wait_for(lambda: self.folder.metrics("finished"))
        self.wait_for(lambda: self.state() == "")

    def state(self):
        return self.cluster.do("squeue", "--noheader", "--format=%T", f"--jobs={self.number}").strip()

    def goes_on(self):
        """After a way through the queue, to the end."""
        self.wait_for(lambda: self.state() == "PENDING")
        # Slurm would let it wait for two minutes. A start within the second in which it has withdrawn the
        # credential of the last one fails, and the job with it.
        time.sleep(2)
        self.cluster.do("scontrol", "update", f"JobId={self.number}", "StartTime=now")
        self.says(r"resuming from epoch [1-9]")
        self.ends_well()


def finish(process, seconds=240):
    """Its exit code and output, when it has ended."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def weights(folder):
    return folder.newest_checkpoint().model


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def all_whole(folder):
    """Whether there are checkpoints, each as it was written; a write that was killed has another name."""
    files = list(folder.checkpoints.folder.glob("*.pt"))
    return bool(files) and all(load_checkpoint(file) for file in files)
