"""Algorithm 1 of the DAT paper (Algorithm A1 of its supplement): the one trainer of this project."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcdat.attacks import inner_maximisation
from hpcdat.checkpoint import Checkpoint, EpochTotals, load_checkpoint
from hpcdat.cluster.agreement import BatchNormStatistics, check_equal, make_equal
from hpcdat.cluster.stopping import StopRequest
from hpcdat.cluster.workers import Workers
from hpcdat.data import open_loader
from hpcdat.data.batches import training_shares
from hpcdat.data.images import Images
from hpcdat.errors import Stopped, WorkerError
from hpcdat.evaluation.accuracy import Accuracy, measure_accuracy
from hpcdat.exchange.ring import RingAllReduce
from hpcdat.job import Job
from hpcdat.models import build_model
from hpcdat.objectives import clean_loss, local_cost
from hpcdat.optim import build_optimizer
from hpcdat.optim.schedule import learning_rate
from hpcdat.progress import Progress
from hpcdat.record import RunFolder
from hpcdat.seeds import derive


@dataclass(frozen=True)
class StepOutcome:
    """What all workers know after a step.

    Attributes:
        cost: of eq. (2), mean over the global batch, before the update.
        finite: whether cost and gradients were finite; if not, the step was left out.
        stop: whether any worker was asked to stop.
        save: whether worker 0 wants a checkpoint.
    """

    cost: float
    finite: bool
    stop: bool
    save: bool


class Trainer:
    """Solves problem (2) for one job, as one of its workers.

    Args:
        job: resolved.
        workers: who trains.
        folder: the run's folder; worker 0 writes.
        train, test: the images.
        device: where this worker computes.
        stop: looked at after every step.
    """

    def __init__(
        self,
        job: Job,
        workers: Workers,
        folder: RunFolder,
        train: Images,
        test: Images,
        device: torch.device,
        stop: StopRequest,
    ) -> None:
        self.job, self.workers, self.folder, self.device, self.stop = job, workers, folder, device, stop
        self.train_images, self.test_images = train, test
        self.model = build_model_for(job, train).to(device)
        self.optimizer = build_optimizer(self.model, job.optimizer)
        self.exchange = RingAllReduce(workers)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.generator = torch.Generator(device)
        self.train_loader = open_loader(
            train, job.data, training=True, batch_size=job.batch_size, device=device
        )
        self.test_loader = open_loader(
            test, job.data, training=False, batch_size=job.evaluation.batch_size, device=device
        )
        self.progress = Progress(shown=workers.is_first)
        self.batch_norm = BatchNormStatistics(self.model, workers)
        self.epoch = self.step_in_epoch = self.skipped_steps = 0
        self.totals = EpochTotals()
        self._clock, self._saved = time.perf_counter(), time.monotonic()

    def step(self, x: Tensor, y: Tensor, global_size: int) -> StepOutcome:
        """One iteration t of Algorithm 1.

        Args:
            x: this worker's images B_t^(i), (N, C, H, W) in [0, 1]; N may be 0.
            y: their labels (N,).
            global_size: images of all workers in this iteration.

        Returns:
            What came of it, the same on all workers.
        """
        statistics = self.batch_norm.local()
        # Block 1, on every worker i
        x_adv = self.attack(x, y)  # step 2: (A1)
        cost = self.local_gradient(x, y, x_adv, global_size)  # step 3: (A2)
        # Block 2
        gradients = [p.grad for p in self.parameters]
        riders = torch.tensor([cost, float(self.stop.wanted), float(self._save_is_due())], device=self.device)
        self.exchange.sum(gradients, riders)  # steps 4, 6 and 7: (A3)
        # Block 3, on every worker i
        finite = all_finite([*gradients, riders])
        if finite:
            self.optimizer.step()  # step 9: (A4)
        else:
            # The sum is the same on all workers, so all of them leave the step out.
            self.batch_norm.restore(statistics)
        total_cost, stops, saves = riders.tolist()
        return StepOutcome(total_cost, finite, stop=stops > 0, save=saves > 0)

    def attack(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Sample-wise attack generation (A1); None for plain training."""
        if self.job.oracle == "none":
            return None
        settings = self.job.attack
        place = (self.epoch, self.step_in_epoch, self.workers.rank)
        return inner_maximisation(
            self.model,
            partial(clean_loss, y=y),
            x,
            eps=settings.eps,
            step_size=settings.step_size,
            steps=settings.steps,
            norm=settings.norm,
            random_start=settings.random_start,
            batch_norm=settings.batch_norm,
            generator=self.generator.manual_seed(derive(self.job.seed, "attack", *place)),
        )

    def local_gradient(self, x: Tensor, y: Tensor, x_adv: Tensor | None, global_size: int) -> float:
        """Local gradient computation (A2), left in ``.grad``; returns this worker's part of the cost.

        Costs are summed over the samples and divided by the global batch: the sum over the
        workers is then the mean over all samples, whatever each worker's share.
        """
        self.optimizer.zero_grad(set_to_none=True)
        cost = 0.0
        if len(x):
            objective = self.job.objective
            costs = local_cost(
                self.model,
                x,
                y,
                x_adv,
                lambda_=objective.lambda_,
                label_smoothing=objective.label_smoothing,
            )
            loss = costs.sum() / global_size
            loss.backward()
            cost = loss.item()
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        return cost

    def run(self) -> Accuracy:
        """Train to the last epoch, evaluating where the job asks for it and at the end.

        Returns:
            TA and RA of the trained model.

        Raises:
            Stopped: a stop was asked for; the checkpoint is written.
            WorkerError: something failed on a worker.
        """
        if self.epoch == self.step_in_epoch == 0:
            make_equal(self.workers, self.model)
            # However soon the run is killed, there is something to go on from.
            self._save()
        check_equal(self.workers, self.model, except_batch_norm=self.step_in_epoch > 0)
        every = self.job.evaluation.every
        while self.epoch < self.job.epochs:
            if every and self.epoch and self.step_in_epoch == 0 and self.epoch % every == 0:
                self._evaluate()
            self._train_epoch()
        return self._evaluate()

    def resume(self) -> None:
        """Go on from the run's newest checkpoint that is whole, bit for bit.

        With another number of workers, whose steps are others, from the newest end of an epoch.

        Raises:
            InputError: there is no checkpoint that can be used.
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

        def load() -> Checkpoint:
            checkpoint = load_checkpoint(Path(chosen))
            self.model.load_state_dict(checkpoint.model)
            self.optimizer.load_state_dict(checkpoint.optimizer)
            if checkpoint.step > 0:
                self.batch_norm.scatter(checkpoint.statistics)
            if self.workers.is_first:
                self.folder.forget_metrics_after(checkpoint.metrics_bytes)
            return checkpoint

        checkpoint = self.workers.together("read the checkpoint", load)
        self.epoch, self.step_in_epoch = checkpoint.epoch, checkpoint.step
        self.totals = EpochTotals(**checkpoint.totals)
        self.skipped_steps = checkpoint.skipped_steps
        for line in told:
            self.progress.say(line)
        self.progress.say(f"going on from epoch {self.epoch}, step {self.step_in_epoch} ({chosen})")

    def _train_epoch(self) -> None:
        """One epoch, or what is left of it, with its record and checkpoints."""
        shares = training_shares(
            len(self.train_images),
            self.job.batch_size,
            rank=self.workers.rank,
            size=self.workers.size,
            seed=self.job.seed,
            epoch=self.epoch,
        )
        shares_left = shares[self.step_in_epoch :]
        loader_seed = derive(self.job.seed, "augmentation", self.epoch)
        batches = self.train_loader.read([share.indices for share in shares_left], loader_seed)
        self.model.train()
        self.progress.begin(f"epoch {self.epoch + 1}/{self.job.epochs}", len(shares), self.step_in_epoch)
        self._clock = time.perf_counter()
        for share in shares_left:
            asked = time.perf_counter()
            x, y = next(batches)
            self.totals.data_seconds += time.perf_counter() - asked
            rate = self._set_rate(len(shares))
            outcome = self.step(x, y, share.global_size)
            self.step_in_epoch += 1
            self._count(outcome, share.global_size)
            self.progress.step()
            if self.step_in_epoch < len(shares):
                if outcome.stop or outcome.save:
                    self._save()
                if outcome.stop:
                    self._stop()
        self._measure()
        # The loader may tidy up behind its last batch.
        next(batches, None)
        self.progress.end()
        self.batch_norm.average()
        check_equal(self.workers, self.model)
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        self._record(rate)
        self.totals = EpochTotals()
        self._save()
        if outcome.stop and self.epoch < self.job.epochs:
            self._stop()

    def _set_rate(self, steps: int) -> float:
        """Give the optimiser the rate of the step at hand, the same on all workers."""
        progress = self.epoch + self.step_in_epoch / steps
        rate = learning_rate(self.job, progress, self.job.batch_size * self.workers.size)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _count(self, outcome: StepOutcome, images: int) -> None:
        if outcome.finite:
            self.totals.cost += outcome.cost * images
            self.totals.images += images
            return
        self.totals.skipped_steps += 1
        self.skipped_steps += 1
        place = f"epoch {self.epoch + 1}, step {self.step_in_epoch}"
        self.progress.say(
            f"{place}: cost or gradient not finite (cost {outcome.cost}), skipped by all workers"
        )
        if self.skipped_steps > self.job.skipped_steps:
            raise WorkerError(
                f"{self.skipped_steps} steps had a cost or gradient that is not finite, the last one at "
                f"{place}; skipped_steps allows {self.job.skipped_steps}. Lower optimizer.lr "
                f"({self.job.optimizer.lr:g}) or add warm-up epochs; the last good checkpoints are in "
                f"{self.folder.checkpoints.folder}",
                everywhere=True,
            )

    def _measure(self) -> None:
        """Add the seconds since the last look to the totals of the epoch."""
        now = time.perf_counter()
        self.totals.total_seconds += now - self._clock
        self.totals.communication_seconds += self.exchange.reset()
        self._clock = now

    def _stop(self) -> None:
        raise Stopped(
            f"stopped in epoch {self.epoch + 1}, step {self.step_in_epoch}; the checkpoint is in "
            f"{self.folder.checkpoints.folder}, the same command goes on from it",
            everywhere=True,
        )

    def _evaluate(self) -> Accuracy:
        """TA and RA on the test images, over all workers, with their record."""
        accuracy = measure_accuracy(
            self.model,
            self.test_loader,
            len(self.test_images),
            self.job,
            self.workers,
            self.progress,
            self.stop,
        )
        self._log(event="evaluation", epoch=self.epoch, ta=accuracy.ta, ra=accuracy.ra)
        self.progress.say(f"epoch {self.epoch:3d}  TA {100 * accuracy.ta:.1f}  RA {100 * accuracy.ra:.1f}")
        return accuracy

    def _record(self, rate: float) -> None:
        totals = self.totals
        cost = totals.cost / totals.images if totals.images else math.nan
        self._log(
            event="epoch",
            epoch=self.epoch,
            lr=rate,
            **asdict(totals) | {"cost": cost if totals.images else None},
            megabytes=self.exchange.megabytes(self.parameters),
        )
        self.progress.say(
            f"epoch {self.epoch:3d}/{self.job.epochs}  cost {cost:.4f}  lr {rate:g}  "
            f"T {totals.total_seconds:.1f} s  C {totals.communication_seconds:.1f} s"
        )

    def _log(self, **metrics: Any) -> None:
        def write() -> None:
            if self.workers.is_first:
                self.folder.log(**metrics)

        self.workers.together("write the metrics", write)

    def _save_is_due(self) -> bool:
        """Whether worker 0 wants a checkpoint within the epoch; its clock decides for all."""
        return self.workers.is_first and time.monotonic() - self._saved > 60 * self.job.checkpoint_minutes

    def _save(self) -> None:
        """Write a checkpoint; the running statistics of training go on as they were."""
        if self.step_in_epoch:
            self._measure()
        gathered = self.batch_norm.gather()
        local = self.batch_norm.local()
        self.batch_norm.average()
        checkpoint = Checkpoint(
            model=self.model.state_dict(),
            statistics=gathered,
            optimizer=self.optimizer.state_dict(),
            epoch=self.epoch,
            step=self.step_in_epoch,
            workers=self.workers.size,
            classes=self.train_images.classes,
            totals=asdict(self.totals),
            skipped_steps=self.skipped_steps,
            metrics_bytes=self.folder.metrics_bytes(),
        )

        def write() -> None:
            if self.workers.is_first:
                self.folder.checkpoints.save(checkpoint)

        self.workers.together("write the checkpoint", write)
        self.batch_norm.restore(local)
        self._saved = time.monotonic()


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether no element of any tensor is infinite or NaN; one synchronisation with the device."""
    return bool(torch.stack(torch._foreach_norm(tensors, torch.inf)).isfinite().all())


def build_model_for(job: Job, images: Images) -> torch.nn.Module:
    """The job's network, with a logit for each class of the images."""
    return build_model(
        job.model.name,
        channels=job.data.channels,
        num_classes=len(images.classes),
        mean=job.model.mean,
        std=job.model.std,
        seed=derive(job.seed, "weights"),
        precision=job.model.precision,
        channels_last=job.model.channels_last,
    )
