"""The checkpoints of a run: which are kept, and which one a run goes on from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hpcdat.storage.checkpoint_format import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint


class Checkpoints:
    """A folder with the last two ends of an epoch, the newest step since then, and the best.

    Args:
        folder: where the files are: ``epoch.pt``, ``epoch-before.pt``, ``step.pt``, ``best.pt``.
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

    def save(self, checkpoint: Checkpoint, *, best: bool = False) -> Path:
        """Write a checkpoint beside the previous ones; returns its file.

        Args:
            checkpoint: the state.
            best: keep it as the best so far; it is none that a run goes on from.

        Raises:
            OSError: it could not be written; the others are untouched.
        """
        # What writes that were killed have left would add up.
        for torn in self.folder.glob(".*.pt-*"):
            torn.unlink(missing_ok=True)
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

    def choose(self, fits: Callable[[Checkpoint], bool], tell: Callable[[str], object]) -> Path:
        """The newest checkpoint that is whole and fits.

        Args:
            fits: whether a checkpoint can be used, such as one written by as many workers.
            tell: receives a line for each one that is passed over.

        Raises:
            CheckpointError: none is left.
        """
        complaints: list[str] = []
        for file in self._newest_first():
            if not file.exists():
                continue
            try:
                if fits(load_checkpoint(file)):
                    for complaint in complaints:
                        tell(f"{complaint}; the one before it is used")
                    return file
            except CheckpointError as error:
                complaints.append(str(error))
        raise CheckpointError("\n".join(complaints) or f"{self.folder}: there is no checkpoint")

    def newest(self, tell: Callable[[str], object]) -> Checkpoint:
        """The newest checkpoint that is whole.

        Args:
            tell: receives a line for each one that is passed over.

        Raises:
            CheckpointError: there is none.
        """
        return load_checkpoint(self.choose(lambda _: True, tell))

    def best(self) -> Checkpoint:
        """The one that was kept as the best.

        Raises:
            CheckpointError: it is not there or cannot be read.
        """
        return load_checkpoint(self.best_file)

    def _newest_first(self) -> list[Path]:
        # A staged file is whole, since it is written atomically; a kill may have come before it was named.
        return [self.step_file, self.folder / "epoch-new.pt", self.epoch_file, self.epoch_before_file]
