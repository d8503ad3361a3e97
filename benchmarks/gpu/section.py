"""What all sections share: the arguments, the functions each of them defines, and helpers."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from hpcdat.config.job import Job
from hpcdat.config.job_file import read_job
from hpcdat.distributed.stop_signals import StopRequest

CHECKOUT = Path(__file__).resolve().parents[2]
JOBS = CHECKOUT / "jobs"
TINY = [
    "data.source=digits",
    "data.image_size=8",
    "data.channels=1",
    "model.mean=[0.5]",
    "model.std=[0.25]",
    "model.name=digits-cnn",
    "batch_size=20",
    "data.train_images=40",
    "data.test_images=20",
    "epochs=2",
]
"""Settings of a job that trains on the digits within seconds."""

Measured = dict[str, Any]
"""What is measured of one section, a JSON value."""
Keep = Callable[[Measured], None]
"""Takes all that is measured of a section so far and writes it to the JSON; OSError if it cannot."""
Table = tuple[list[str], list[list[str]]]
"""Header and rows, as text."""


@dataclass(frozen=True)
class Call:
    """The arguments of the command line that sections use.

    Attributes:
        device: to measure.
        tiny: whether to run everything at a tiny size, which checks that it works and measures nothing.
        cifar: folder that holds cifar-10-batches-py; None: the user's cache.
        work: folder of the runs.
        seeds: of the speed run.
        rounds: repetitions of what is timed.
        stop: set when the command is to stop.
    """

    device: torch.device
    tiny: bool
    cifar: Path | None
    work: Path
    seeds: tuple[int, ...]
    rounds: int
    stop: StopRequest

    def job(self, name: str, *settings: str) -> Job:
        """A job of the folder ``jobs`` on this device, at a tiny size if that is asked for.

        Args:
            name: the file's.
            settings: ``key=value`` texts, which take precedence.

        Raises:
            JobError: a setting is wrong.
        """
        always = [f"device={self.device.type}", *([f"data.root={self.cifar}"] if self.cifar else [])]
        return read_job(JOBS / name, [*always, *(TINY if self.tiny else []), *settings])


class Section(Protocol):
    """The functions that the module of a section defines."""

    def measure(self, call: Call, before: Measured, keep: Keep) -> None:
        """Measure the section.

        Args:
            call: the arguments.
            before: what an earlier command measured; empty if there was none.
            keep: to be called after each part.

        Raises:
            Stopped: a stop was requested.
            HpcdatError: something failed.
        """

    def ratios(self, measured: Measured) -> dict[str, float | str]:
        """The section's ratios by name: the number, or the reason why there is none."""

    def tables(self, measured: Measured) -> dict[str, Table]:
        """What was measured, as tables by their titles."""


def with_model(job: Job, **settings: Any) -> Job:
    """The job with other settings of its section ``model``."""
    return job.model_copy(update={"model": job.model.model_copy(update=settings)})


def free_memory(device: torch.device) -> None:
    """Free what a measurement has left on the device, and its compiled code."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def number(value: float | None, digits: int, scale: float = 1.0) -> str:
    """``scale * value`` with that many decimals; empty for None."""
    return "" if value is None else f"{scale * value:.{digits}f}"
