"""Algorithm 1 of the DAT paper (Algorithm A1 of its supplement): the one trainer of this project."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hpcdat.attacks import inner_maximisation
from hpcdat.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from hpcdat.cluster.agreement import average_batch_norm, check_equal, make_equal
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
        self.epoch = self.step_in_epoch = 0

    def step(self, x: Tensor, y: Tensor, global_size: int) -> tuple[float, bool]:
        """One iteration t of Algorithm 1.

        Args:
            x: this worker's images B_t^(i), (N, C, H, W) in [0, 1]; N may be 0.
            y: their labels (N,).
            global_size: images of all workers in this iteration.

        Returns:
            The cost of eq. (2) over the global batch before the update, and whether any worker
            wants to stop; both the same on all workers.
        """
        # Block 1, on every worker i
        x_adv = self.attack(x, y)  # step 2: (A1)
        cost = self.local_gradient(x, y, x_adv, global_size)  # step 3: (A2)
        # Block 2
        riders = torch.tensor([cost, float(self.stop.wanted)], device=self.device)
        self.exchange.sum([p.grad for p in self.parameters], riders)  # steps 4, 6 and 7: (A3)
        # Block 3, on every worker i
        self.optimizer.step()  # step 9: (A4)
        total_cost, stops = riders.tolist()
        return total_cost, stops > 0

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
            loss = local_cost(self.model, x, y, x_adv, self.job.objective.lambda_).sum() / global_size
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
        make_equal(self.workers, self.model)
        check_equal(self.workers, self.model)
        if self.epoch == self.step_in_epoch == 0:
            # However soon the run is killed, there is something to go on from.
            self._save()
        every = self.job.evaluation.every
        while self.epoch < self.job.epochs:
            self._train_epoch()
            if every and self.epoch % every == 0 and self.epoch < self.job.epochs:
                self._evaluate()
        return self._evaluate()

    def resume(self) -> None:
        """Go on from the run's checkpoint; every worker reads it.

        Raises:
            WorkerError: it could not be read, or does not fit the job.
        """

        def load() -> Checkpoint:
            checkpoint = load_checkpoint(self.folder.checkpoint_file)
            self.model.load_state_dict(checkpoint.model)
            self.optimizer.load_state_dict(checkpoint.optimizer)
            return checkpoint

        checkpoint = self.workers.together("read the checkpoint", load)
        self.epoch, self.step_in_epoch = checkpoint.epoch, checkpoint.step
        if checkpoint.workers != self.workers.size:
            # Another number of workers cuts the epoch into other steps.
            self.step_in_epoch = 0
        self.progress.say(
            f"going on from epoch {self.epoch}, step {self.step_in_epoch} ({self.folder.checkpoint_file})"
        )

    def _train_epoch(self) -> None:
        """One epoch, or what is left of it after a stop, with its record and checkpoint."""
        rate = learning_rate(self.epoch, self.job.optimizer.lr, self.job.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        shares = training_shares(
            len(self.train_images),
            self.job.batch_size,
            rank=self.workers.rank,
            size=self.workers.size,
            seed=self.job.seed,
            epoch=self.epoch,
        )
        shares_left = shares[self.step_in_epoch :]
        loader_seed = derive(self.job.seed, "augmentation", self.epoch, self.workers.rank)
        batches = self.train_loader.read([share.indices for share in shares_left], loader_seed)
        self.model.train()
        self.progress.begin(f"epoch {self.epoch + 1}/{self.job.epochs}", len(shares), self.step_in_epoch)
        self.exchange.reset()
        start = time.perf_counter()
        waited_for_data, cost_sum, images, stopping = 0.0, 0.0, 0, False
        for share in shares_left:
            asked = time.perf_counter()
            x, y = next(batches)
            waited_for_data += time.perf_counter() - asked
            cost, stopping = self.step(x, y, share.global_size)
            self._check_finite(cost)
            cost_sum += cost * share.global_size
            images += share.global_size
            self.step_in_epoch += 1
            self.progress.step()
            if stopping:
                break
        total = time.perf_counter() - start
        self.progress.end()
        average_batch_norm(self.workers, self.model)
        check_equal(self.workers, self.model)
        if self.step_in_epoch == len(shares):
            # The loader may tidy up behind its last batch.
            next(batches, None)
            self.epoch, self.step_in_epoch = self.epoch + 1, 0
            self._record(
                epoch=self.epoch,
                lr=rate,
                cost=cost_sum / images,
                total_seconds=total,
                communication_seconds=self.exchange.reset(),
                data_seconds=waited_for_data,
                images=images,
                megabytes=self.exchange.megabytes(self.parameters),
            )
        self._save()
        if stopping and self.epoch < self.job.epochs:
            raise Stopped(
                f"stopped in epoch {self.epoch + 1}, step {self.step_in_epoch}; "
                f"the checkpoint is {self.folder.checkpoint_file}, the same command goes on from it",
                everywhere=True,
            )

    def _check_finite(self, cost: float) -> None:
        if not math.isfinite(cost):
            raise WorkerError(
                f"the training cost is {cost} in epoch {self.epoch + 1}, step {self.step_in_epoch + 1}: "
                f"lower optimizer.lr ({self.job.optimizer.lr:g}) or add warm-up epochs; the last good "
                f"checkpoint is {self.folder.checkpoint_file}",
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

    def _record(self, **metrics: float) -> None:
        self._log(event="epoch", **metrics)
        self.progress.say(
            f"epoch {self.epoch:3d}/{self.job.epochs}  cost {metrics['cost']:.4f}  lr {metrics['lr']:g}  "
            f"T {metrics['total_seconds']:.1f} s  C {metrics['communication_seconds']:.1f} s"
        )

    def _log(self, **metrics: Any) -> None:
        def write() -> None:
            if self.workers.is_first:
                self.folder.log(**metrics)

        self.workers.together("write the metrics", write)

    def _save(self) -> None:
        checkpoint = Checkpoint(
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            epoch=self.epoch,
            step=self.step_in_epoch,
            workers=self.workers.size,
            classes=self.train_images.classes,
        )

        def write() -> None:
            if self.workers.is_first:
                save_checkpoint(self.folder.checkpoint_file, checkpoint)

        self.workers.together("write the checkpoint", write)


def build_model_for(job: Job, images: Images) -> torch.nn.Module:
    """The job's network, with a logit for each class of the images."""
    return build_model(
        job.model.name,
        channels=job.data.channels,
        num_classes=len(images.classes),
        mean=job.model.mean,
        std=job.model.std,
        seed=derive(job.seed, "weights"),
    )
