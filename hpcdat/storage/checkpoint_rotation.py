"""The checkpoints of a run: which are kept, and which one a run resumes from."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from hpcdat.storage.checkpoint_format import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    load_resumable,
    save_checkpoint,
)
from hpcdat.storage.worker_rows import write_rows


class Checkpoints:
    """A folder with the last two ends of an epoch, the newest step since then, and the best.

    Args:
        folder: where the files are: ``epoch.pt``, ``epoch-before.pt``, ``step.pt`` with the statistics of its
            workers, and ``best.pt``.
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
        """Write a checkpoint next to the previous ones; returns its file.

        Args:
            checkpoint: the state.
            rows: in the middle of an epoch, the statistics of all workers, in blocks for
                :func:`~hpcdat.storage.worker_rows.write_rows`.
            best: save it as the best so far, from which no run resumes.

        Raises:
            OSError: it could not be written; the others are untouched.
        """
        # Files of writes that were killed would add up.
        for pattern in (".*.pt-*", ".statistics-*"):
            for torn in self.folder.glob(pattern):
                torn.unlink(missing_ok=True)
        if best:
            save_checkpoint(self.best_file, checkpoint)
            return self.best_file
        if checkpoint.step > 0:
            # Of a new name: the statistics of the previous checkpoint stay until this one is complete.
            file = self.folder / f"statistics-{secrets.token_hex(8)}.bin"
            if rows and (written := write_rows(file, rows)):
                checkpoint = dataclasses.replace(checkpoint, statistics=dataclasses.asdict(written))
            try:
                save_checkpoint(self.step_file, checkpoint)
            except OSError:
                file.unlink(missing_ok=True)
                raise
            self._remove_statistics(but=file)
            return self.step_file
        staged = self.folder / "epoch-new.pt"
        save_checkpoint(staged, checkpoint)
        if self.epoch_file.exists():
            self.epoch_file.replace(self.epoch_before_file)
        staged.replace(self.epoch_file)
        self.step_file.unlink(missing_ok=True)
        self._remove_statistics()
        return self.epoch_file

    def choose(
        self,
        fits: Callable[[Checkpoint], bool],
        tell: Callable[[str], object],
        load: Callable[[Path], Checkpoint] = load_resumable,
    ) -> Path:
        """The newest checkpoint that is whole and fits.

        Args:
            fits: whether a checkpoint can be used, such as one written by as many workers.
            tell: receives a line for each one that is skipped.
            load: reads a checkpoint and verifies as much of it as will be used.

        Raises:
            CheckpointError: none is left.
        """
        complaints: list[str] = []
        for file in self._newest_first():
            if not file.exists():
                continue
            try:
                if fits(load(file)):
                    for complaint in complaints:
                        tell(f"{complaint}; the one before it is used")
                    return file
            except CheckpointError as error:
                complaints.append(str(error))
        raise CheckpointError("\n".join(complaints) or f"{self.folder}: there is no checkpoint")

    def newest(self, tell: Callable[[str], object]) -> Checkpoint:
        """The newest checkpoint that is whole; the statistics of each worker, for resuming, are not read.

        Args:
            tell: receives a line for each one that is skipped.

        Raises:
            CheckpointError: there is none.
        """
        return load_checkpoint(self.choose(lambda _: True, tell, load_checkpoint))

    def best(self) -> Checkpoint:
        """The one that was kept as the best.

        Raises:
            CheckpointError: it is not there or cannot be read.
        """
        return load_checkpoint(self.best_file)

    def _remove_statistics(self, but: Path | None = None) -> None:
        for file in self.folder.glob("statistics-*.bin"):
            if file != but:
                file.unlink(missing_ok=True)

    def _newest_first(self) -> list[Path]:
        # A staged file is whole, since it is written atomically; a kill may have come before it was named.
        return [self.step_file, self.folder / "epoch-new.pt", self.epoch_file, self.epoch_before_file]
