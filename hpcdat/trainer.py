"""Algorithm 1 of the DAT paper (Algorithm A1 of its supplement): the one trainer of this project."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from hpcdat.attacks import inner_maximisation
from hpcdat.checkpoint import EpochTotals
from hpcdat.cluster.agreement import check_equal, make_equal
from hpcdat.cluster.stopping import StopRequest
from hpcdat.cluster.workers import Workers
from hpcdat.data import open_loader
from hpcdat.data.batches import training_shares
from hpcdat.data.images import Images
from hpcdat.errors import InputError, Stopped, WorkerError
from hpcdat.evaluation.accuracy import Accuracy
from hpcdat.exchange.choice import settle
from hpcdat.exchange.gradients import GradientExchange
from hpcdat.job import Job
from hpcdat.judge import Judge
from hpcdat.models import build_model
from hpcdat.objectives import clean_loss, local_cost
from hpcdat.optim import build_optimizer
from hpcdat.optim.schedule import learning_rate
from hpcdat.progress import Progress
from hpcdat.record import RunFolder
from hpcdat.seeds import derive
from hpcdat.training_state import TrainingState

SLOW_WORKER = 1.25
"""Step time over the median of the workers from which on a worker is named."""


@dataclass(frozen=True)
class StepOutcome:
    """What all workers know after a step.

    Attributes:
        cost: of eq. (2), mean over the global batch, before the update.
        images: of the global batch, those that could not be read left out.
        finite: whether cost and gradients were finite; if not, the step was left out.
        stop: whether any worker was asked to stop.
        save: whether worker 0 wants a checkpoint.
    """

    cost: float
    images: int
    finite: bool
    stop: bool
    save: bool


class Trainer:
    """Solves problem (2) for one job, as one of its workers.

    Args:
        job: resolved.
        workers: who trains.
        folder: the run's folder; worker 0 writes.
        train, judged, test: the images to train on, to judge by on the way, and of the result.
        device: where this worker computes.
        stop: looked at after every step.
    """

    def __init__(
        self,
        job: Job,
        workers: Workers,
        folder: RunFolder,
        train: Images,
        judged: Images,
        test: Images,
        device: torch.device,
        stop: StopRequest,
    ) -> None:
        self.job, self.workers, self.folder, self.device, self.stop = job, workers, folder, device, stop
        self.train_images = train
        self.progress = Progress(shown=workers.is_first)
        self.model = build_model_for(job, len(train.classes)).to(device)
        self.optimizer = build_optimizer(self.model, job.optimizer)
        settings = settle(job.exchange, workers, self.model, folder.choice_file, self.progress)
        self.exchange = GradientExchange(workers, self.model, settings, job.seed)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.generator = torch.Generator(device)
        self.loader = open_loader(train, job.data, training=True, batch_size=job.batch_size, device=device)
        self.state = TrainingState(self.model, self.optimizer, self.exchange, workers, folder, train.classes)
        self.judge = Judge(job, workers, self.state, train, judged, test, device, self.progress, stop)
        self._clock, self._saved = time.perf_counter(), time.monotonic()
        self._step_seconds: list[float] = []

    def step(self, x: Tensor, y: Tensor, global_size: int) -> StepOutcome:
        """One iteration t of Algorithm 1.

        Args:
            x: this worker's images B_t^(i), (N, C, H, W) in [0, 1]; N may be 0.
            y: their labels (N,).
            global_size: images of all workers in this iteration.

        Returns:
            What came of it, the same on all workers.
        """
        statistics = self.state.batch_norm.local()
        # Block 1, on every worker i
        x_adv = self.attack(x, y)  # step 2: (A1)
        self.exchange.begin(self.state.epoch, self.state.step)
        cost = self.local_gradient(x, y, x_adv, global_size)  # step 3: (A2)
        # Block 2, of which the exchange has done what it could beside block 1
        riders = torch.tensor(
            [cost, float(len(x)), float(self.stop.wanted), float(self._save_is_due())], device=self.device
        )
        self.exchange.finish(riders)  # steps 4 to 7: (A3)
        gradients = [p.grad for p in self.parameters]
        # Block 3, on every worker i
        total_cost, images, stops, saves = riders.tolist()
        if images != global_size:
            total_cost *= self._make_up_for_unread_images(gradients, int(images), global_size)
        finite = all_finite([*gradients, riders])
        self.exchange.settle(counts=finite)
        if finite:
            self.optimizer.step()  # step 9: (A4)
        else:
            # The sum is the same on all workers, so all of them leave the step out.
            self.state.batch_norm.restore(statistics)
        return StepOutcome(total_cost, int(images), finite, stop=stops > 0, save=saves > 0)

    def attack(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Sample-wise attack generation (A1); None for plain training."""
        if self.job.oracle == "none":
            return None
        settings = self.job.attack
        place = (self.state.epoch, self.state.step, self.workers.rank)
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
        return cost

    def run(self) -> Accuracy:
        """Train to the last epoch, evaluating where the job asks for it and at the end.

        Returns:
            TA and RA of the trained model.

        Raises:
            Stopped: a stop was asked for; the checkpoint is written.
            WorkerError: something failed on a worker.
        """
        state = self.state
        if state.epoch == state.step == 0:
            make_equal(self.workers, self.model)
            # However soon the run is killed, there is something to go on from.
            self._save()
        check_equal(self.workers, self.model, except_batch_norm=state.step > 0)
        if self.exchange.plan.remark:
            self.progress.say(self.exchange.plan.remark)
        while self.judge.look() and self._train_epoch():
            pass
        return self.judge.result()

    def resume(self) -> None:
        """Go on from the run's newest checkpoint that is whole, bit for bit.

        Raises:
            InputError: there is no checkpoint that can be used.
        """
        self.state.resume(self.progress.say)

    def _train_epoch(self) -> bool:
        """One epoch, or what is left of it, with its record and checkpoints.

        Returns:
            Whether training may go on; if not, the state is that of the epoch before.
        """
        state = self.state
        shares = training_shares(
            len(self.train_images),
            self.job.batch_size,
            rank=self.workers.rank,
            groups=self.workers.node_of if self.job.data.split == "nodes" else [0] * self.workers.size,
            seed=self.job.seed,
            epoch=state.epoch,
        )
        shares_left = shares[state.step :]
        loader_seed = derive(self.job.seed, "augmentation", state.epoch)
        batches = self.loader.read([share.indices for share in shares_left], loader_seed)
        self.model.train()
        self.progress.begin(f"epoch {state.epoch + 1}/{self.job.epochs}", len(shares), state.step)
        self._clock, self._step_seconds = time.perf_counter(), []
        for share in shares_left:
            asked = time.perf_counter()
            x, y = next(batches)
            began, waited = time.perf_counter(), self.exchange.spent.waited
            state.totals.data_seconds += began - asked
            rate = self._set_rate(len(shares))
            outcome = self.step(x, y, share.global_size)
            self._step_seconds.append(time.perf_counter() - began - (self.exchange.spent.waited - waited))
            state.step += 1
            self._count(outcome, share.global_size)
            self.progress.step()
            if state.step < len(shares):
                if outcome.stop or outcome.save:
                    self._save()
                if outcome.stop:
                    self._stop()
        self._measure()
        # The loader may tidy up behind its last batch.
        next(batches, None)
        self.progress.end()
        state.batch_norm.average()
        check_equal(self.workers, self.model)
        state.epoch, state.step = state.epoch + 1, 0
        self._record(rate)
        state.totals = EpochTotals()
        if self.judge.has_overfitted():
            return False
        self._save()
        if outcome.stop and state.epoch < self.job.epochs:
            self._stop()
        return True

    def _set_rate(self, steps: int) -> float:
        """Give the optimiser the rate of the step at hand, the same on all workers."""
        progress = self.state.epoch + self.state.step / steps
        rate = learning_rate(self.job, progress, self.job.batch_size * self.workers.size)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _make_up_for_unread_images(self, gradients: list[Tensor], images: int, global_size: int) -> float:
        """Make sums over the images that were read, divided by the global batch, their means."""
        if images == 0:
            raise InputError(
                f"none of the {global_size} images of a step can be read; the workers have named them",
                everywhere=True,
            )
        factor = global_size / images
        torch._foreach_mul_(gradients, factor)
        return factor

    def _count(self, outcome: StepOutcome, global_size: int) -> None:
        state = self.state
        state.totals.skipped_images += global_size - outcome.images
        if outcome.finite:
            state.totals.cost += outcome.cost * outcome.images
            state.totals.images += outcome.images
            return
        state.totals.skipped_steps += 1
        state.skipped_steps += 1
        place = f"epoch {state.epoch + 1}, step {state.step}"
        self.progress.say(
            f"{place}: cost or gradient not finite (cost {outcome.cost}), skipped by all workers"
        )
        if state.skipped_steps > self.job.skipped_steps:
            raise WorkerError(
                f"{state.skipped_steps} steps had a cost or gradient that is not finite, the last one at "
                f"{place}; skipped_steps allows {self.job.skipped_steps}. Lower optimizer.lr "
                f"({self.job.optimizer.lr:g}) or add warm-up epochs; the last good checkpoints are in "
                f"{self.folder.checkpoints.folder}",
                everywhere=True,
            )

    def _measure(self) -> None:
        """Add the seconds since the last look to the totals of the epoch."""
        now = time.perf_counter()
        self.state.totals.total_seconds += now - self._clock
        spent = self.exchange.reset()
        # The worker that came last to an exchange has waited for nobody: its time is the network's.
        steps = zip(*self.workers.gather(spent.busy, "seconds of exchanges"), strict=True)
        self.state.totals.communication_seconds += sum(map(min, steps))
        self.state.totals.waited_seconds += spent.waited
        self._clock = now

    def _stop(self) -> None:
        raise Stopped(
            f"stopped in epoch {self.state.epoch + 1}, step {self.state.step}; the checkpoint is in "
            f"{self.folder.checkpoints.folder}, the same command goes on from it",
            everywhere=True,
        )

    def _record(self, rate: float) -> None:
        totals, traffic = self.state.totals, self.exchange.traffic()
        cost = totals.cost / totals.images if totals.images else math.nan
        self.state.log(
            event="epoch",
            epoch=self.state.epoch,
            lr=rate,
            **asdict(totals) | {"cost": cost if totals.images else None},
            megabytes=traffic.total / 2**20,
            megabytes_busiest_card=traffic.busiest / 2**20,
            workers=self._step_times(),
        )
        self.progress.say(
            f"epoch {self.state.epoch:3d}/{self.job.epochs}  cost {cost:.4f}  lr {rate:g}  "
            f"T {totals.total_seconds:.1f} s  C {totals.communication_seconds:.1f} s"
            + (f"  {totals.skipped_images} images could not be read" if totals.skipped_images else "")
        )

    def _step_times(self) -> dict[str, list[float]]:
        """Median and longest step of each worker since the epoch was begun or taken up, seconds.

        Without waiting for images or for the others, so that a slow worker is seen where it is.
        """
        mine = [median(self._step_seconds), max(self._step_seconds), self.workers.host]
        medians, longest, hosts = zip(*self.workers.gather(mine, "step times"), strict=True)
        usual, slowest = median(medians), max(range(len(medians)), key=medians.__getitem__)
        if medians[slowest] > SLOW_WORKER * usual:
            self.progress.say(
                f"worker {slowest} on {hosts[slowest]} is slow: {medians[slowest]:.3g} s for its part of a "
                f"step, the median of the workers is {usual:.3g} s"
            )
        return {"step_seconds": list(medians), "longest_step_seconds": list(longest)}

    def _save_is_due(self) -> bool:
        """Whether worker 0 wants a checkpoint within the epoch; its clock decides for all."""
        return self.workers.is_first and time.monotonic() - self._saved > 60 * self.job.checkpoint_minutes

    def _save(self) -> None:
        if self.state.step:
            self._measure()
        self.state.save()
        self._saved = time.monotonic()


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether no element of any tensor is infinite or NaN; one synchronisation with the device."""
    return bool(torch.stack(torch._foreach_norm(tensors, torch.inf)).isfinite().all())


def build_model_for(job: Job, classes: int) -> torch.nn.Module:
    """The job's network, with a logit for each class."""
    return build_model(
        job.model.name,
        channels=job.data.channels,
        num_classes=classes,
        mean=job.model.mean,
        std=job.model.std,
        seed=derive(job.seed, "weights"),
        precision=job.model.precision,
        width=job.model.width,
        channels_last=job.model.channels_last,
    )
