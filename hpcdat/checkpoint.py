"""The state of a training run in one file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hpcdat.errors import InputError
from hpcdat.files import write_atomically

FORMAT = 1


class CheckpointError(InputError):
    """A checkpoint that is not there or cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on, and an evaluation needs to start.

    Attributes:
        model: state of the network, batch-norm statistics averaged over the workers.
        optimizer: state of the optimiser.
        epoch: epochs done.
        step: steps done in the epoch after those.
        workers: number of workers M that trained.
        classes: names of the classes, in the order of the logits.
    """

    model: dict[str, Any]
    optimizer: dict[str, Any]
    epoch: int
    step: int
    workers: int
    classes: list[str]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, atomically.

    Raises:
        OSError: it could not be written; the one before is untouched.
    """
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **asdict(checkpoint)}, file))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU; no code in the file is run.

    Raises:
        CheckpointError: there is none, or it is not a checkpoint of this format.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: there is no checkpoint; has the run finished its first epoch?"
        ) from None
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{path}: not a readable checkpoint: {reason}") from None
    if not isinstance(state, dict) or state.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of format {FORMAT}")
    try:
        return Checkpoint(**state)
    except TypeError as error:
        raise CheckpointError(f"{path}: incomplete: {error}") from None
