"""Horovod on the GPU: an all-reduce of one worker, and two workers that share the GPU against two on the CPU.

``relative_difference`` is the distance between the weights that both pairs of workers have trained, over the
norm of those from the CPU. There are no ratios.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch

from gpu.section import JOBS, Call, Keep, Measured, Table
from hpcdat.storage.run_folder import RunFolder

COMMAND_TIMEOUT = 300
"""Seconds after which a command is stopped."""


def measure(call: Call, before: Measured, keep: Keep) -> None:
    """Run the commands, and compare the weights.

    Raises:
        CheckpointError: a run has left no checkpoint that is whole.
        subprocess.TimeoutExpired: a command takes longer than COMMAND_TIMEOUT.
    """
    try:
        import horovod.torch  # noqa: F401
    except ImportError as error:
        keep({"missing": f"not measured (Horovod does not start: {error})"})
        return
    program = (
        "import horovod.torch as hvd, torch; hvd.init(); "
        f"x = torch.ones(1000, device='{call.device.type}'); "
        "print(hvd.allreduce(x, op=hvd.Sum).sum().item(), hvd.nccl_built())"
    )
    measured: Measured = {"all_reduce": _run([sys.executable, "-c", program])}
    train = [sys.executable, "-m", "hpcdat", "train", str(JOBS / "demo.yaml"), "-np", "2", "--overwrite"]
    # Without a random start: devices draw different numbers from the same seed.
    always = ["epochs=2", "evaluation.steps=1", "attack.steps=2", "attack.random_start=false"]
    always += ["data.loader=device", "data.train_images=400"]
    weights = {}
    for device in dict.fromkeys((call.device.type, "cpu")):
        run_dir = call.work / f"horovod-{device}"
        settings = [*always, f"device={device}", f"run_dir={run_dir}"]
        measured[f"two workers, {device}"] = _run([*train, "--set", *settings])
        if RunFolder(run_dir).checkpoints.exist():
            state = RunFolder(run_dir).newest_checkpoint().model
            weights[device] = torch.cat([t.flatten().double() for t in state.values()])
    if {call.device.type, "cpu"} == set(weights):
        apart = (weights[call.device.type] - weights["cpu"]).norm() / weights["cpu"].norm()
        measured["relative_difference"] = apart.item()
    keep(measured)


def ratios(measured: Measured) -> dict[str, float | str]:
    """None."""
    return {}


def tables(measured: Measured) -> dict[str, Table]:
    """How each command ended, and the difference of the weights."""
    return {"Horovod": (["", ""], [[what, _in_words(found)] for what, found in measured.items()])}


def _run(command: list[str]) -> Measured:
    """Exit code and last five lines of a command.

    Raises:
        subprocess.TimeoutExpired: it takes longer than COMMAND_TIMEOUT.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT)
    return {"exit_code": done.returncode, "output": (done.stdout + done.stderr).splitlines()[-5:]}


def _in_words(found: Any) -> str:
    """How a command ended, with its output if it failed; any other value as it is."""
    if not isinstance(found, dict):
        return str(found)
    if found["exit_code"] == 0:
        return "done"
    return f"exit code {found['exit_code']}: {' '.join(found['output'])}"
