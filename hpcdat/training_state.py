"""A training run at one moment: network, optimiser, place in the job, and what was seen on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from hpcdat.checkpoint import Checkpoint, EpochTotals, load_checkpoint
from hpcdat.cluster.agreement import BatchNormStatistics
from hpcdat.cluster.workers import Workers
from hpcdat.concurrent import Adversary
from hpcdat.data.images import Images
from hpcdat.early_stopping import Judgement
from hpcdat.errors import InputError
from hpcdat.exchange.gradients import GradientExchange
from hpcdat.record import RunFolder


class TrainingState:
    """What a checkpoint holds and a run goes on from, bit for bit.

    Args:
        model: the network, equal on all workers but for running batch-norm statistics.
        optimizer: its optimiser, equal on all workers.
        exchange: of its gradients, for the error feedback it keeps.
        adversary: for the examples it has in flight.
        batch_norm: the statistics in which the workers differ within an epoch.
        workers: who trains.
        folder: the run's; worker 0 writes.
        train: the images that are trained on.

    Attributes:
        epoch, step: epochs done, and steps done in the one after those.
        totals: of those steps.
        skipped_steps: steps skipped since the run began.
        judgement: of the evaluations so far.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        exchange: GradientExchange,
        adversary: Adversary,
        batch_norm: BatchNormStatistics,
        workers: Workers,
        folder: RunFolder,
        train: Images,
    ) -> None:
        self.model, self.optimizer, self.exchange = model, optimizer, exchange
        self.adversary, self.batch_norm = adversary, batch_norm
        self.workers, self.folder = workers, folder
        self.classes, self.images = train.classes, len(train)
        self.epoch = self.step = self.skipped_steps = 0
        self.totals = EpochTotals()
        self.judgement = Judgement()

    def log(self, **metrics: Any) -> None:
        """Append one line to the run's metrics; all workers call this together.

        Raises:
            WorkerError: on all workers; it could not be written.
        """

        def write() -> None:
            if self.workers.is_first:
                self.folder.log(**metrics)

        self.workers.together("write the metrics", write)

    def save(self, *, best: bool = False) -> None:
        """Write a checkpoint; the running statistics of training go on as they were.

        Args:
            best: keep it as the best so far, beside those that the run goes on from.

        Raises:
            WorkerError: on all workers; it could not be written.
        """
        gathered = self.batch_norm.gather()
        local = self.batch_norm.local()
        self.batch_norm.average()
        checkpoint = Checkpoint(
            model=self.model.state_dict(),
            statistics=gathered,
            optimizer=self.optimizer.state_dict(),
            epoch=self.epoch,
            step=self.step,
            workers=self.workers.size,
            classes=self.classes,
            images=self.images,
            totals=asdict(self.totals),
            skipped_steps=self.skipped_steps,
            judgement=asdict(self.judgement),
            feedback=self.exchange.gather_state(),
            stale=self.adversary.stale() if self.step else [],
            metrics_bytes=self.folder.metrics_bytes(),
        )

        def write() -> None:
            if self.workers.is_first:
                self.folder.checkpoints.save(checkpoint, best=best)

        self.workers.together("write the checkpoint", write)
        self.batch_norm.restore(local)

    def resume(self, say: Callable[[str], object]) -> None:
        """Go on from the run's newest checkpoint that is whole.

        With another number of workers, whose steps are others, from the newest end of an epoch, and
        error feedback begins anew.

        Args:
            say: receives a line about the checkpoint taken, and one for each that was passed over.

        Raises:
            InputError: there is no checkpoint that can be used, or the images are not those of the training.
        """
        told: list[str] = []

        def fits(checkpoint: Checkpoint) -> bool:
            if checkpoint.step == 0 or checkpoint.workers == self.workers.size:
                return True
            told.append(
                f"step {checkpoint.step} of epoch {checkpoint.epoch + 1} was reached with "
                f"{checkpoint.workers} workers; with {self.workers.size} the epoch starts anew"
            )
            return False

        def choose() -> str | None:
            return str(self.folder.checkpoints.choose(fits, told.append)) if self.workers.is_first else None

        # Worker 0 chooses, so that all read the same file.
        chosen = self.workers.gather(self.workers.together("choose a checkpoint", choose), "checkpoint")[0]
        self._take(Path(chosen))
        for line in told:
            say(line)
        say(f"going on from epoch {self.epoch}, step {self.step} ({chosen})")

    def go_back_to_best(self) -> None:
        """Become the best checkpoint; the metrics stay.

        Raises:
            InputError: it is not there or damaged.
        """
        self._take(self.folder.checkpoints.best_file, forget=False)

    def go_back_an_epoch(self) -> None:
        """Become the newest end of an epoch that is on disk; metrics and judgement stay.

        Raises:
            InputError: it is not there or damaged.
        """
        judgement = self.judgement
        self._take(self.folder.checkpoints.epoch_file, forget=False)
        self.judgement = judgement

    def _take(self, file: Path, *, forget: bool = True) -> None:
        def load() -> tuple[Checkpoint, EpochTotals, Judgement]:
            checkpoint = load_checkpoint(file)
            try:
                totals, judgement = EpochTotals(**checkpoint.totals), Judgement(**checkpoint.judgement)
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
            self.model.load_state_dict(checkpoint.model)
            self.optimizer.load_state_dict(checkpoint.optimizer)
            if checkpoint.step > 0:
                self.batch_norm.scatter(checkpoint.statistics)
            if checkpoint.workers == self.workers.size:
                self.exchange.load_state(checkpoint.feedback)
            self.adversary.restore(checkpoint.stale)
            if forget and self.workers.is_first:
                self.folder.forget_metrics_after(checkpoint.metrics_bytes)
            return checkpoint, totals, judgement

        checkpoint, self.totals, self.judgement = self.workers.together("read the checkpoint", load)
        self.epoch, self.step = checkpoint.epoch, checkpoint.step
        self.skipped_steps = checkpoint.skipped_steps
