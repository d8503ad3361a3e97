"""The state of a training run, which checkpoints save and restore."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcdat.data.images import Images
from hpcdat.errors import InputError
from hpcdat.storage.checkpoint_format import Checkpoint, EpochTotals, load_checkpoint
from hpcdat.storage.run_folder import RunFolder
from hpcdat.storage.worker_rows import read_row
from hpcdat.training.early_stopping import History
from hpcdat.training.replicas import row_blocks
from hpcdat.training.step import Algorithm1


class TrainingState:
    """The state that a checkpoint saves, from which a run resumes bit for bit.

    Args:
        algorithm: its model, optimiser, error feedback, batch-norm statistics, averaged weights and
            adversarial examples in flight are part of the state.
        folder: of the run; worker 0 writes.
        train: the training images; their number and classes must not change.

    Attributes:
        model: equal on all workers except for running batch-norm statistics.
        epoch, step: epochs done, and steps done in the next one.
        totals: of those steps.
        skipped_steps: steps skipped since the run began.
        flops: floating-point operations of attacks and updates since the run began, of all workers; None if
            they are not counted.
        history: of the evaluations so far.
    """

    def __init__(self, algorithm: Algorithm1, folder: RunFolder, train: Images) -> None:
        self.algorithm, self.folder = algorithm, folder
        self.model, self.workers = algorithm.model, algorithm.workers
        self.classes, self.images = train.classes, len(train)
        self.epoch = self.step = self.skipped_steps = 0
        self.flops: int | None = 0
        self.totals = EpochTotals()
        self.history = History()

    def log(self, **metrics: Any) -> None:
        """Append one line to the run's metrics; all workers call this together.

        Raises:
            WorkerError: on all workers; it could not be written.
        """
        self.workers.on_rank0("write the metrics", lambda: self.folder.log(**metrics))

    def save(self, *, best: bool = False) -> None:
        """Write a checkpoint; all workers call this together. The state does not change.

        Args:
            best: write it as the best so far, not as one to resume from.

        Raises:
            WorkerError: on all workers; it could not be written.
        """
        algorithm, batch_norm = self.algorithm, self.algorithm.batch_norm
        feedback = algorithm.exchange.shapes_of_feedback()
        own = [algorithm.exchange.feedback_row(feedback)]
        if self.step:
            # At the end of an epoch all workers have the same statistics.
            own.insert(0, batch_norm.row())
        rows: Iterator[Tensor] = row_blocks(self.workers, torch.cat(own))
        local = batch_norm.local()
        batch_norm.average()
        checkpoint = Checkpoint(
            model=self.model.state_dict(),
            optimizer=algorithm.optimizer.state_dict(),
            epoch=self.epoch,
            step=self.step,
            workers=self.workers.size,
            classes=self.classes,
            images=self.images,
            totals=asdict(self.totals),
            skipped_steps=self.skipped_steps,
            flops=self.flops,
            history=asdict(self.history),
            feedback=feedback,
            stale=algorithm.adversary.stale() if self.step else [],
            metrics_bytes=self.folder.metrics_bytes(),
            averaged=algorithm.averages.state(),
            averaging=algorithm.averages.progress(),
        )

        def write() -> None:
            try:
                self.folder.checkpoints.save(checkpoint, rows, best=best)
                if not best:
                    self.folder.saved()
            finally:
                deque(rows, maxlen=0)

        if not self.workers.is_rank0:
            # Sends this worker's rows, block by block, as often as worker 0 receives in `write`.
            deque(rows, maxlen=0)
        self.workers.on_rank0("write the checkpoint", write)
        batch_norm.restore(local)

    def resume(self, say: Callable[[str], object]) -> None:
        """Restore the newest checkpoint of the run that is intact; all workers call this together.

        With another number of workers than the checkpoint's an epoch has other steps: the run resumes from
        the newest end of an epoch, without error feedback.

        Args:
            say: receives a line about the checkpoint taken, and one for each that was skipped.

        Raises:
            InputError: no checkpoint can be used, or the images are not those of the training.
        """
        skipped: list[str] = []

        def fits(checkpoint: Checkpoint) -> bool:
            if checkpoint.step == 0 or checkpoint.workers == self.workers.size:
                return True
            skipped.append(
                f"step {checkpoint.step} of epoch {checkpoint.epoch + 1} was reached with "
                f"{checkpoint.workers} workers; with {self.workers.size} the epoch restarts"
            )
            return False

        # Worker 0 chooses, so that all read the same file.
        chosen = self.workers.on_rank0(
            "choose a checkpoint", lambda: str(self.folder.checkpoints.choose(fits, skipped.append))
        )
        self._restore(Path(chosen))
        for line in skipped:
            say(line)
        say(f"resuming from epoch {self.epoch}, step {self.step} ({chosen})")

    def restore_best(self) -> None:
        """Restore the best checkpoint; metrics and FLOPs stay.

        Raises:
            InputError: it is missing or damaged.
        """
        self._restore(self.folder.checkpoints.best_file, resumes=False)

    def restore_epoch(self) -> None:
        """Restore the newest end of an epoch on disk; metrics, FLOPs and history stay.

        Raises:
            InputError: it is missing or damaged.
        """
        history = self.history
        self._restore(self.folder.checkpoints.epoch_file, resumes=False)
        self.history = history

    def _restore(self, file: Path, *, resumes: bool = True) -> None:
        algorithm = self.algorithm

        def load() -> tuple[Checkpoint, EpochTotals, History]:
            checkpoint = load_checkpoint(file)
            try:
                counted: dict[str, Any] = {**checkpoint.totals}
                totals, history = EpochTotals(**counted), History(**checkpoint.history)
            except TypeError as error:
                raise InputError(
                    f"{file}: a checkpoint of another version: {error}: take the version that wrote it, or "
                    "start over with --overwrite"
                ) from None
            if (checkpoint.images, checkpoint.classes) != (self.images, self.classes):
                other = sorted(set(checkpoint.classes) ^ set(self.classes))[:5]
                raise InputError(
                    f"the run was trained on {checkpoint.images} images of {len(checkpoint.classes)} "
                    f"classes, and now there are {self.images} of {len(self.classes)}"
                    + (f" (others: {', '.join(other)})" if other else "")
                    + ": bring the images back (data.root), or start over with --overwrite"
                )
            groups = [len(group["params"]) for group in checkpoint.optimizer["param_groups"]]
            if groups != [len(group["params"]) for group in algorithm.optimizer.param_groups]:
                raise InputError(
                    f"{file}: a checkpoint of another version, whose optimiser groups the parameters "
                    "differently: take the version that wrote it, or start over with --overwrite"
                )
            self.model.load_state_dict(checkpoint.model)
            algorithm.optimizer.load_state_dict(checkpoint.optimizer)
            own = torch.empty(0, dtype=torch.uint8)
            if checkpoint.workers == self.workers.size and (rows := checkpoint.worker_rows()):
                own = read_row(file.parent, rows, self.workers.rank)
            statistics = len(algorithm.batch_norm.row()) if checkpoint.step else 0
            if statistics:
                algorithm.batch_norm.restore_row(own[:statistics])
            else:
                algorithm.batch_norm.reset()
            if checkpoint.workers == self.workers.size:
                algorithm.exchange.restore_feedback(checkpoint.feedback, own[statistics:])
            algorithm.adversary.restore(checkpoint.stale)
            algorithm.averages.restore(checkpoint.averaged, checkpoint.averaging)
            if resumes and self.workers.is_rank0:
                self.folder.truncate_metrics(checkpoint.metrics_bytes)
            return checkpoint, totals, history

        checkpoint, self.totals, self.history = self.workers.on_all_ranks("read the checkpoint", load)
        self.epoch, self.step = checkpoint.epoch, checkpoint.step
        self.skipped_steps = checkpoint.skipped_steps
        if resumes:
            self.flops = checkpoint.flops
