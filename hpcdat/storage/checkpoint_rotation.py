"""The checkpoints of a run: which ones to retain, and which one to resume from."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from hpcdat.storage.checkpoint_format import (
    Checkpoint,
    CheckpointError,
    file_of_rows,
    load_checkpoint,
    load_resumable,
    save_checkpoint,
)
from hpcdat.storage.worker_rows import write_rows


class Checkpoints:
    """A folder with the checkpoints of the last two epochs, of the newest step since, and of the best epoch.

    Args:
        folder: with the files ``epoch.pt``, ``epoch-before.pt``, ``step.pt`` and ``best.pt``, each of which
            may have a second one with the rows of its workers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.step_file = folder / "step.pt"
        self.epoch_file = folder / "epoch.pt"
        self.epoch_before_file = folder / "epoch-before.pt"
        self.best_file = folder / "best.pt"

    def exist(self) -> bool:
        """Whether there is any checkpoint."""
        return any(file.exists() for file in self._newest_first())

    def save(
        self, checkpoint: Checkpoint, rows: Iterator[Tensor] | None = None, *, best: bool = False
    ) -> Path:
        """Write a checkpoint, retaining the previous ones; returns its file.

        Args:
            checkpoint: the state.
            rows: of all workers, in blocks for :func:`~hpcdat.storage.worker_rows.write_rows`.
            best: save it as the best so far, which a run does not resume from.

        Raises:
            OSError: it could not be written; the others are unchanged.
        """
        # Partial files of killed writes would accumulate.
        for pattern in (".*.pt-*", ".statistics-*"):
            for partial in self.folder.glob(pattern):
                partial.unlink(missing_ok=True)
        # Of a new name: the rows of the previous checkpoint stay until this one is complete.
        file = self.folder / f"statistics-{secrets.token_hex(8)}.bin"
        if rows and (written := write_rows(file, rows)):
            checkpoint = dataclasses.replace(checkpoint, statistics=dataclasses.asdict(written))
        try:
            best_before = file_of_rows(self.best_file)
            target = self._replace(checkpoint, best=best)
        except OSError:
            file.unlink(missing_ok=True)
            raise
        if not best:
            self._remove_other_rows()
        elif best_before:
            # No more: up to format 9 the checkpoints that a run resumes from do not name their rows.
            (self.folder / best_before).unlink(missing_ok=True)
        return target

    def _remove_other_rows(self) -> None:
        """Remove the second files that no checkpoint names; none if one of them cannot be read."""
        with suppress(OSError):
            kept = {file_of_rows(one) for one in (*self._newest_first(), self.best_file)}
            for other in self.folder.glob("statistics-*.bin"):
                if other.name not in kept:
                    other.unlink(missing_ok=True)

    def _replace(self, checkpoint: Checkpoint, *, best: bool) -> Path:
        """Write the first file of a checkpoint, and rename or remove those that it replaces."""
        if best:
            save_checkpoint(self.best_file, checkpoint)
            return self.best_file
        if checkpoint.step > 0:
            save_checkpoint(self.step_file, checkpoint)
            return self.step_file
        staged = self.folder / "epoch-new.pt"
        save_checkpoint(staged, checkpoint)
        if self.epoch_file.exists():
            self.epoch_file.replace(self.epoch_before_file)
        staged.replace(self.epoch_file)
        self.step_file.unlink(missing_ok=True)
        return self.epoch_file

    def choose(
        self,
        fits: Callable[[Checkpoint], bool],
        warn: Callable[[str], object],
        load: Callable[[Path], Checkpoint] = load_resumable,
    ) -> Path:
        """Find the newest checkpoint that is readable and fits.

        Args:
            fits: whether a checkpoint can be used, for example with this number of workers.
            warn: called with one line for each unreadable checkpoint that is skipped.
            load: reads a checkpoint and verifies as much of it as will be used.

        Raises:
            CheckpointError: no checkpoint can be used.
        """
        reasons: list[str] = []
        for file in self._newest_first():
            if not file.exists():
                continue
            try:
                if fits(load(file)):
                    for reason in reasons:
                        warn(f"{reason}; using the previous checkpoint")
                    return file
            except CheckpointError as error:
                reasons.append(str(error))
        raise CheckpointError("\n".join(reasons) or f"{self.folder}: there is no checkpoint")

    def newest(self, warn: Callable[[str], object]) -> Checkpoint:
        """The newest readable checkpoint; the rows of each worker, for resuming, are not read.

        Args:
            warn: called with one line for each unreadable checkpoint that is skipped.

        Raises:
            CheckpointError: there is none.
        """
        return load_checkpoint(self.choose(lambda _: True, warn, load_checkpoint))

    def best(self) -> Checkpoint:
        """The best checkpoint.

        Raises:
            CheckpointError: it is missing or cannot be read.
        """
        return load_checkpoint(self.best_file)

    def _newest_first(self) -> list[Path]:
        # A staged file is complete, since it is written atomically; a kill may have prevented its renaming.
        return [self.step_file, self.folder / "epoch-new.pt", self.epoch_file, self.epoch_before_file]
