"""A training run: its epochs and checkpoints."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from hpcdat.data import open_loader
from hpcdat.data.mixing import mix
from hpcdat.data.progressive_resizing import resized
from hpcdat.data.sampler import Share, training_shares, with_unlabelled
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.errors import InputError, Stopped, WorkerError
from hpcdat.evaluation.sharded_runner import Execution
from hpcdat.models.compiled import fastest_convolutions
from hpcdat.models.losses import Labelled
from hpcdat.optim.lr_schedule import learning_rate
from hpcdat.progress import Progress
from hpcdat.seeds import derive
from hpcdat.storage.checkpoint_format import EpochTotals
from hpcdat.storage.run_folder import RunFolder
from hpcdat.training.concurrent_attack import Batch
from hpcdat.training.epoch_log import EpochLog
from hpcdat.training.flops import TrainingFlops
from hpcdat.training.pretrained import load_pretrained
from hpcdat.training.replicas import check_equal, make_equal
from hpcdat.training.roles import groups_of_batches
from hpcdat.training.single_images import check_batches, reported
from hpcdat.training.state import TrainingState
from hpcdat.training.step import Algorithm1, Requests, all_finite
from hpcdat.training.validation import Evaluations, ImageSplits, Validation


class Trainer:
    """Trains one job to its end, as one of its workers.

    Args:
        algorithm: the iteration, before its first.
        folder: of the run; worker 0 writes.
        images: to train on and to evaluate on.
        stop: whether the user has asked for a stop, read once in every step.

    Attributes:
        state: of the run.
    """

    def __init__(
        self, algorithm: Algorithm1, folder: RunFolder, images: ImageSplits, stop: StopRequest
    ) -> None:
        self.algorithm, self.folder, self.images, self.stop = algorithm, folder, images.train, stop
        self.job, self.model = algorithm.job, algorithm.model
        self.workers, self.device = algorithm.workers, algorithm.device
        self.progress = Progress(shown=self.workers.is_rank0)
        self.loader = open_loader(
            images.train,
            self.job.data,
            training=True,
            batch_size=self.job.batch_size,
            device=self.device,
        )
        self.state = TrainingState(algorithm, folder, images.train)
        self.log = EpochLog(self.state, self.progress)
        self.flops = TrainingFlops(self.job, self.model)
        execution = Execution(self.workers, self.progress, stop)
        self.validation = Validation(self.job, self.state, images, self.device, execution)
        self._saved = time.monotonic()

    def close(self) -> None:
        """Close the loaders, which would keep threads and images in a process that trains again."""
        self.loader.close()
        self.validation.close()

    def resume(self) -> None:
        """Resume from the newest intact checkpoint of the run, bit for bit.

        Raises:
            InputError: no checkpoint can be used.
        """
        self.state.resume(self.progress.say)

    def run(self) -> Evaluations:
        """Train to the last epoch, evaluating where the job asks for it and at the end.

        Returns:
            TA and RA of the trained model on the test images, and those of its averaged weights.

        Raises:
            Stopped: a stop was asked for; the checkpoint is written.
            WorkerError: something failed on a worker.
        """
        state = self.state
        if state.epoch == state.step == 0:
            # If there are too few images, no checkpoint may bind the run to its settings yet.
            passes = self.job.passes
            sizes = {passes * len(share.indices) for shares in self._shares() for share in shares}
            if self.algorithm.synchronisation:
                # Batch norm has the images of the other workers too, and would wait for them.
                sizes = set()
            self.workers.on_all_ranks(
                "train on the smallest batch",
                lambda: check_batches(sizes, self.model, self.job.data, self.device),
            )
            if pretrained := self.job.model.pretrained:
                self.workers.on_rank0("read model.pretrained", lambda: self._load_pretrained(pretrained))
            make_equal(self.workers, self.model)
            self.algorithm.batch_norm.reset()
            # A run that is killed before its first checkpoint of training has this one.
            self._save()
        averages = self.algorithm.averages
        check_equal(self.workers, self.model, averages.tensors(), except_batch_norm=state.step > 0)
        if self.algorithm.exchange.plan.remark:
            self.progress.say(self.algorithm.exchange.plan.remark)
        if self.algorithm.folding.remark:
            self.progress.say_once(self.algorithm.folding.remark)
        self._validate()
        with reported(self.job.data):
            while not self._is_finished() and self._train_epoch():
                self._validate()
        return Evaluations(self.validation.result(), self.validation.averaged())

    def _validate(self) -> None:
        """Evaluate where the job asks for it, and save the best weights."""
        if not self.validation.is_due:
            return
        accuracy = self.validation.measure()
        if self.state.history.add(self.state.epoch, accuracy):
            self.state.save(best=True)

    def _is_finished(self) -> bool:
        """Whether the last epoch is done, or early stopping ends the training."""
        patience = self.job.early_stopping.patience
        stagnates = patience is not None and self.state.history.since >= patience
        return self.state.epoch == self.job.total_epochs or stagnates

    def _load_pretrained(self, pretrained: Path) -> None:
        """Load the weights to start from."""
        averaged = self.job.model.pretrained_averaged
        loaded = load_pretrained(self.model, pretrained, self.images.classes, averaged=averaged)
        self.progress.say(loaded.describe(pretrained))

    def _train_epoch(self) -> bool:
        """Train for one epoch, or the rest of it, with its record and checkpoints.

        Returns:
            Whether training continues; if not, the state is that of the previous epoch.
        """
        state, delay = self.state, self.algorithm.adversary.delay
        shares = self._shares()
        steps = len(shares[0])
        if state.step >= steps:
            raise InputError(
                f"the checkpoint is at step {state.step}, but the epoch now has {steps} steps: with "
                "data.split: nodes, resume with the same number of nodes",
                everywhere=True,
            )
        flops = self.flops.of_image(self.job.data.training_size(state.epoch))
        if self.flops.remark:
            self.progress.say_once(self.flops.remark)
        batches = self._read(shares)
        self.model.train()
        self.progress.begin(f"epoch {state.epoch + 1}/{self.job.total_epochs}", steps, state.step)
        self.log.begin()
        with self.log.reading():
            window = deque(islice(batches, delay))
        self.algorithm.adversary.begin_epoch(window)
        for _ in range(state.step, steps):
            with self.log.reading():
                newest = next(batches, None)
            if newest is not None:
                window.append(newest)
            now = window.popleft()
            rate = self._set_rate(steps)
            with self.log.stepping(), fastest_convolutions(self.job.model.compiled):
                outcome = self.algorithm.step(now, newest if delay else None, self._requests)
            state.step += 1
            self.log.count(outcome, now.global_size, flops)
            if not outcome.finite:
                self._skip(outcome.cost)
            self.progress.step()
            if state.step < steps:
                if outcome.stop or outcome.save:
                    self._save()
                if outcome.stop:
                    self._stop()
        self.log.measure()
        self.progress.end()
        if state.totals.skipped_images and not (state.totals.images or state.totals.skipped_steps):
            raise InputError(
                f"none of the {state.totals.skipped_images} images of epoch {state.epoch + 1} can be read; "
                "each worker has printed the files",
                everywhere=True,
            )
        state.epoch, state.step = state.epoch + 1, 0
        self.algorithm.batch_norm.average()
        self.algorithm.averages.end_epoch(state.epoch)
        check_equal(self.workers, self.model, self.algorithm.averages.tensors())
        self.log.record(rate, self._left_out(steps))
        state.totals = EpochTotals()
        if self.validation.has_overfitted():
            state.restore_epoch()
            return False
        self._save()
        if outcome.stop and state.epoch < self.job.total_epochs:
            self._stop()
        return True

    def _shares(self) -> list[list[Share]]:
        """The epoch's shares of the batches that this worker reads, or of batch 0 if it reads none."""
        algorithm, job, unlabelled = self.algorithm, self.job, self.images.unlabelled
        groups = groups_of_batches(job.data.split, algorithm.roles, self.workers.node_of)
        labelled, when = len(self.images) - unlabelled, {"seed": job.seed, "epoch": self.state.epoch}

        def of_batch(number: int) -> list[Share]:
            place: dict[str, Any] = {"rank": number, "groups": groups, **when}
            shares = training_shares(labelled, job.labelled_batch, last_batch=job.data.last_batch, **place)
            if not unlabelled:
                return shares
            mixture = (job.labelled_batch, job.batch_size - job.labelled_batch)
            return with_unlabelled(shares, labelled, unlabelled, mixture=mixture, **place)

        return [of_batch(number) for number in algorithm.role.reads or (0,)]

    def _left_out(self, steps: int) -> int:
        """Images with labels of their own that an epoch of so many steps leaves out."""
        labelled = len(self.images) - self.images.unlabelled
        return max(0, labelled - steps * self.job.labelled_batch * self.algorithm.batches)

    def _read(self, shares: list[list[Share]]) -> Iterator[Batch]:
        """The images of the remaining steps of the epoch."""
        reads, epoch, first = self.algorithm.role.reads, self.state.epoch, self.state.step
        indices = [share.indices for step in list(zip(*shares, strict=True))[first:] for share in step]
        loaded = self.loader.read(indices if reads else [], derive(self.job.seed, "augmentation", epoch))
        for step, share in enumerate(shares[0][first:], start=first):
            images = {n: self._prepared(Labelled(*next(loaded)), epoch, step, n) for n in reads}
            yield Batch(epoch, step, share.global_size, images)
        # The loader may clean up after its last batch.
        next(loaded, None)

    def _prepared(self, images: Labelled, epoch: int, step: int, number: int) -> Labelled:
        """A batch, mixed and in the epoch's size; all workers that read it prepare it alike."""
        seed = derive(self.job.seed, "mixing", epoch, step, number)
        mixed = mix(images, self.job.data, len(self.images.classes), seed)
        return mixed._replace(x=resized(mixed.x, self.job.data.training_size(epoch)))

    def _set_rate(self, steps: int) -> float:
        """Set and return the learning rate of the current step, the same on all workers."""
        state, global_batch = self.state, self.job.batch_size * self.algorithm.batches
        rate = learning_rate(self.job, state.epoch, state.step, steps, global_batch)
        for group in self.algorithm.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _requests(self) -> Requests:
        """The requests of this worker; the clock of worker 0 decides when a checkpoint is due."""
        elapsed = time.monotonic() - self._saved
        due = self.workers.is_rank0 and elapsed > 60 * self.job.checkpoint_minutes
        return Requests(stop=self.stop.requested, save=due)

    def _skip(self, cost: float) -> None:
        """Report a step that was skipped, and end the training if there were too many."""
        state = self.state
        state.skipped_steps += 1
        place = f"epoch {state.epoch + 1}, step {state.step}"
        self.progress.say(f"{place}: cost or gradient not finite (cost {cost}), skipped by all workers")
        if state.skipped_steps > self.job.skipped_steps:
            raise WorkerError(
                f"{state.skipped_steps} steps had a cost or gradient that is not finite, the last one at "
                f"{place}; skipped_steps allows {self.job.skipped_steps}. {self._after_divergence()}",
                everywhere=True,
            )

    def _after_divergence(self) -> str:
        # There is at least that of the initial weights.
        return (
            f"Lower optimizer.lr ({self.job.optimizer.lr:g}) or add warm-up epochs; the last good "
            f"checkpoints are in {self.folder.checkpoints.folder}"
        )

    def _save(self) -> None:
        if not all_finite(self.algorithm.parameters):
            # The same on all workers, as the weights are.
            if self.state.epoch == self.state.step == 0:
                raise WorkerError(
                    f"the initial weights of {self.job.model.name} are not finite, so training has not "
                    "begun: check how the network is initialised",
                    everywhere=True,
                )
            raise WorkerError(
                f"the weights are no longer finite in epoch {self.state.epoch + 1}, step {self.state.step}: "
                f"they are not saved. {self._after_divergence()}",
                everywhere=True,
            )
        if self.state.step:
            self.log.measure()
        self.state.save()
        self._saved = time.monotonic()

    def _stop(self) -> None:
        raise Stopped(
            f"stopped in epoch {self.state.epoch + 1}, step {self.state.step}; the checkpoint is in "
            f"{self.folder.checkpoints.folder}; the same command resumes from it",
            everywhere=True,
        )
