"""Algorithm 1 of the DAT paper (Algorithm A1 of its supplement) and of the ConAdv paper: the one trainer."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from statistics import median

import torch
from torch import Tensor

from hpcdat.attacks import attacked, inner_maximisation
from hpcdat.checkpoint import EpochTotals
from hpcdat.cluster.agreement import BatchNormStatistics, check_equal, make_equal
from hpcdat.cluster.stopping import StopRequest
from hpcdat.cluster.workers import Workers
from hpcdat.concurrent import Adversary, Batch, assign_roles, first_workers, homes_of_batches, trained_by
from hpcdat.data import open_loader
from hpcdat.data.batches import Share, training_shares, with_unlabelled
from hpcdat.data.images import Images
from hpcdat.errors import InputError, Stopped, WorkerError
from hpcdat.evaluation.accuracy import Accuracy
from hpcdat.evaluation.sharded_runner import Execution
from hpcdat.exchange.choice import settle
from hpcdat.exchange.gradients import GradientExchange, gradients_of
from hpcdat.job import METHODS, Job
from hpcdat.judge import Judge, RunImages
from hpcdat.models import build_model
from hpcdat.models.compiled import Compiled, fastest_convolutions
from hpcdat.models.pretrained import load_pretrained
from hpcdat.models.split_batch_norm import split_batch_norm
from hpcdat.objectives import Labelled, clean_loss, divergence, local_cost
from hpcdat.optim import build_optimizer
from hpcdat.optim.schedule import learning_rate
from hpcdat.progress import Progress
from hpcdat.record import RunFolder
from hpcdat.seeds import derive
from hpcdat.smoothing import share_copies
from hpcdat.training_state import TrainingState

SLOW_WORKER = 1.25
"""Step time over the median of the workers from which on a worker is named."""


@dataclass(frozen=True)
class StepOutcome:
    """What all workers know after a step.

    Attributes:
        cost: of eq. (2), mean over the global batch, before the update.
        images: of the global batch, those that could not be read left out.
        correct: of these, those classified right as they are, where the cost looks at them.
        finite: whether cost and gradients were finite; if not, the step was left out.
        stop: whether any worker was asked to stop.
        save: whether worker 0 wants a checkpoint.
    """

    cost: float
    images: int
    correct: int
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
        full = job.batch_size * job.passes
        self.network = Compiled(self.model, full) if job.model.compiled else self.model
        self.optimizer = build_optimizer(self.model, job.optimizer)
        settings = settle(job.exchange, workers, self.model, folder.choice_file, self.progress)
        self.exchange = GradientExchange(workers, gradients_of(self.model), settings, job.seed)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.generator = torch.Generator(device)
        self.roles = assign_roles(job, workers.size)
        # Of workers that share a batch the first one counts its images.
        first = first_workers(self.roles)
        self.role, self.batches = self.roles[workers.rank], len(first)
        self.counts_images = workers.rank in first
        self.copies = share_copies(job, workers)
        self.adversary = Adversary(job, self.model, self.roles, workers, device, self.attack)
        batch_norm = BatchNormStatistics(self.model, workers, trained_by(self.roles))
        self.loader = open_loader(train, job.data, training=True, batch_size=job.batch_size, device=device)
        self.state = TrainingState(
            self.model,
            self.optimizer,
            self.exchange,
            self.adversary,
            batch_norm,
            workers,
            folder,
            train,
        )
        execution = Execution(workers, self.progress, stop)
        self.judge = Judge(job, self.state, RunImages(train, judged, test), device, execution)
        self._clock, self._saved = time.perf_counter(), time.monotonic()
        self._step_seconds: list[float] = []

    def step(self, now: Batch, ahead: Batch | None) -> StepOutcome:
        """One iteration t of Algorithm 1.

        Args:
            now: this worker's images B_t^(i); there may be none.
            ahead: with ConAdv those of iteration t + tau, if the epoch has one.

        Returns:
            What came of it, the same on all workers.
        """
        statistics = self.state.batch_norm.local()
        # Block 1, on every worker i
        x_adv = self.adversary.take(now)  # step 2: (A1), with ConAdv tau iterations ago
        self.adversary.begin(ahead)  # ConAdv: step 2 of iteration t + tau, beside this one
        cost, correct = self.local_gradient(now, x_adv)  # step 3: (A2)
        self.adversary.finish()
        # Block 2, of which the exchange has done what it could beside block 1
        counted = self.role.clean if self.counts_images else ()
        images = sum(len(now.images[number].x) for number in counted)
        flags = [float(self.stop.wanted), float(self._save_is_due())]
        riders = torch.cat([torch.stack([cost, correct]), torch.tensor([images, *flags], device=self.device)])
        self.exchange.finish(riders)  # steps 4 to 7: (A3)
        gradients = [p.grad for p in self.parameters]
        # Block 3, on every worker i
        finite = all_finite([*gradients, riders])
        # One wait for the device, not one for each number.
        total_cost, correct, images, stops, saves, finite = torch.cat([riders, finite[None]]).tolist()
        if images != now.global_size:
            total_cost *= self._make_up_for_unread_images(gradients, int(images), now.global_size)
        self.exchange.settle(counts=bool(finite))
        if finite:
            self.optimizer.step()  # step 9: (A4)
        else:
            # The sum is the same on all workers, so all of them leave the step out.
            self.state.batch_norm.restore(statistics)
            correct = 0
        return StepOutcome(
            total_cost, int(images), int(correct), bool(finite), stop=stops > 0, save=saves > 0
        )

    def attack(self, images: Labelled, number: int, step: int) -> Tensor:
        """Sample-wise attack generation (A1), with the weights at hand.

        Args:
            images: what is attacked.
            number, step: of their batch and of the iteration, which the random start depends on.
        """
        if self.job.oracle == "none":
            return images.x
        settings = self.job.attack
        seed = derive(self.job.seed, "attack", self.state.epoch, step, number)
        model, phi = self.network, partial(clean_loss, y=images.y)
        # Where batches bring their own statistics the running ones are left to the gradient beside it.
        if settings.batch_norm == "eval" and number in self.role.trains:
            self.state.batch_norm.enter(self.role.trains.index(number))
        if self.job.objective.regulariser == "trades" and len(images.x):
            with attacked(model, settings.batch_norm), torch.no_grad():
                phi = partial(divergence, clean_logits=model(images.x))
        if self.copies:
            model, phi = self.copies.smoothed(model, images, self.state.epoch, step, number)
        return inner_maximisation(
            model,
            phi,
            images.x,
            eps=settings.eps,
            step_size=settings.step_size,
            steps=settings.steps,
            norm=settings.norm,
            direction=settings.direction,
            random_start=settings.random_start,
            batch_norm=settings.batch_norm,
            branch=settings.branch,
            generator=self.generator.manual_seed(seed),
        )

    def local_gradient(self, now: Batch, x_adv: dict[int, Labelled]) -> tuple[Tensor, Tensor]:
        """Local gradient computation (A2), left in ``.grad``, its exchange begun.

        Costs are summed over the samples and divided by the global batch: the sum over the
        workers is then the mean over all samples, whatever each worker's share.

        Returns:
            This worker's part of the cost, and how many clean images it saw classified right: float32, ().
        """
        self.optimizer.zero_grad(set_to_none=True)
        role, objective = self.role, self.job.objective
        total, correct = torch.zeros(2, device=self.device)
        batches = [
            (number, now.images.get(number) if number in role.clean else None, x_adv.get(number))
            for number in role.trains
        ]
        batches = [batch for batch in batches if any(part is not None and len(part.x) for part in batch[1:])]
        for place, (number, *parts) in enumerate(batches, start=1):
            self.state.batch_norm.enter(role.trains.index(number))
            if self.copies:
                parts = None, self.copies.noisy(x_adv[number], self.state.epoch, now.step, number)
            cost = local_cost(
                self.network,
                *parts,
                weights=self.job.weights_of_cost,
                phi=objective.regulariser,
                label_smoothing=objective.label_smoothing,
            )
            loss = cost.total / (now.global_size * self.job.copies)
            if place == len(batches):
                # From here on gradients are whole when they come.
                self.exchange.begin(self.state.epoch, self.state.step)
            loss.backward()
            total, correct = total + loss.detach(), correct + cost.correct
        if not batches:
            self.exchange.begin(self.state.epoch, self.state.step)
            self.exchange.contribute_nothing()
        return total, correct

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
            # Images that are too few are told before a checkpoint binds the run to its settings.
            self._shares()
            if self.job.model.pretrained:
                self.workers.together("read model.pretrained", self._start_from_pretrained)
            make_equal(self.workers, self.model)
            # However soon the run is killed, there is something to go on from.
            self._save()
        check_equal(self.workers, self.model, except_batch_norm=state.step > 0)
        if self.exchange.plan.remark:
            self.progress.say(self.exchange.plan.remark)
        while self.judge.look() and self._train_epoch():
            pass
        return self.judge.result()

    def _start_from_pretrained(self) -> None:
        """Worker 0 reads; the others get its weights."""
        if self.workers.is_first:
            fresh = load_pretrained(self.model, self.job.model.pretrained, self.train_images.classes)
            told = f"; new: {', '.join(name.removeprefix('1.') for name in fresh)}" if fresh else ""
            self.progress.say(f"starting from {self.job.model.pretrained}{told}")

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
        shares = self._shares()
        steps = len(shares[0])
        if state.step >= steps:
            raise InputError(
                f"the checkpoint is of step {state.step} of an epoch that now has {steps}: data.split: nodes "
                "and as many workers on other nodes; take as many nodes as before",
                everywhere=True,
            )
        batches = self._read(shares)
        self.model.train()
        self.progress.begin(f"epoch {state.epoch + 1}/{self.job.epochs}", steps, state.step)
        self._clock, self._step_seconds = time.perf_counter(), []
        window = deque(islice(batches, self.adversary.delay))
        state.totals.data_seconds += time.perf_counter() - self._clock
        self.adversary.begin_epoch(window)
        for _ in range(state.step, steps):
            asked = time.perf_counter()
            newest = next(batches, None)
            began, waited = time.perf_counter(), self.exchange.spent.waited
            state.totals.data_seconds += began - asked
            rate = self._set_rate(steps)
            if newest is not None:
                window.append(newest)
            now = window.popleft()
            with fastest_convolutions(self.job.model.compiled):
                outcome = self.step(now, newest if self.adversary.delay else None)
            self._step_seconds.append(time.perf_counter() - began - (self.exchange.spent.waited - waited))
            state.step += 1
            self._count(outcome, now.global_size)
            self.progress.step()
            if state.step < steps:
                if outcome.stop or outcome.save:
                    self._save()
                if outcome.stop:
                    self._stop()
        self._measure()
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

    def _shares(self) -> list[list[Share]]:
        """The epoch's shares of the batches that this worker reads, or of one that it only counts."""
        homes = homes_of_batches(self.roles, self.workers.node_of)
        job, unlabelled = self.job, self.train_images.unlabelled
        labelled, when = len(self.train_images) - unlabelled, {"seed": job.seed, "epoch": self.state.epoch}
        groups = homes if job.data.split == "nodes" else [0] * self.batches

        def of_batch(number: int) -> list[Share]:
            place = {"rank": number, "groups": groups, **when}
            shares = training_shares(labelled, job.labelled_batch, **place)
            if not unlabelled:
                return shares
            mixture = (job.labelled_batch, job.batch_size - job.labelled_batch)
            return with_unlabelled(shares, labelled, unlabelled, mixture=mixture, **place)

        return [of_batch(number) for number in self.role.reads or (0,)]

    def _read(self, shares: list[list[Share]]) -> Iterator[Batch]:
        """The images of the steps that are left of the epoch."""
        reads, first = self.role.reads, self.state.step
        wanted = [share.indices for step in list(zip(*shares, strict=True))[first:] for share in step]
        seed = derive(self.job.seed, "augmentation", self.state.epoch)
        loaded = self.loader.read(wanted if reads else [], seed)
        for step, share in enumerate(shares[0][first:], start=first):
            yield Batch(step, share.global_size, {n: Labelled(*next(loaded)) for n in reads})
        # The loader may tidy up behind its last batch.
        next(loaded, None)

    def _set_rate(self, steps: int) -> float:
        """Give the optimiser the rate of the step at hand, the same on all workers."""
        progress = self.state.epoch + self.state.step / steps
        rate = learning_rate(self.job, progress, self.job.batch_size * self.batches)
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
            state.totals.correct += outcome.correct
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
                f"{place}; skipped_steps allows {self.job.skipped_steps}. {self._after_divergence()}",
                everywhere=True,
            )

    def _after_divergence(self) -> str:
        return (
            f"Lower optimizer.lr ({self.job.optimizer.lr:g}) or add warm-up epochs; the last good "
            f"checkpoints are in {self.folder.checkpoints.folder}"
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
        seen = totals.images and self.job.weights_of_cost[0]
        self.state.log(
            event="epoch",
            epoch=self.state.epoch,
            lr=rate,
            **asdict(totals) | {"cost": cost if totals.images else None},
            training_accuracy=totals.correct / totals.images if seen else None,
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
        # Compared with those that do the same: an attack worker has less to do.
        works = [(len(role.clean), len(role.adversarial), len(role.attacked)) for role in self.roles]
        usual = [
            median(m for m, other in zip(medians, works, strict=True) if other == work) for work in works
        ]
        slowest = max(range(len(medians)), key=lambda rank: medians[rank] / usual[rank])
        if medians[slowest] > SLOW_WORKER * usual[slowest]:
            self.progress.say(
                f"worker {slowest} on {hosts[slowest]} is slow: {medians[slowest]:.3g} s for its part of a "
                f"step, the median of the workers is {usual[slowest]:.3g} s"
            )
        return {"step_seconds": list(medians), "longest_step_seconds": list(longest)}

    def _save_is_due(self) -> bool:
        """Whether worker 0 wants a checkpoint within the epoch; its clock decides for all."""
        return self.workers.is_first and time.monotonic() - self._saved > 60 * self.job.checkpoint_minutes

    def _save(self) -> None:
        if not all_finite(self.parameters):
            # The same on all workers, as the weights are.
            raise WorkerError(
                f"the weights are no longer finite in epoch {self.state.epoch + 1}, step {self.state.step}: "
                f"they are not kept. {self._after_divergence()}",
                everywhere=True,
            )
        if self.state.step:
            self._measure()
        self.state.save()
        self._saved = time.monotonic()


def all_finite(tensors: list[Tensor]) -> Tensor:
    """Whether no element of any tensor is infinite or NaN: bool, ()."""
    return torch.stack(torch._foreach_norm(tensors, torch.inf)).isfinite().all()


def build_model_for(job: Job, classes: int) -> torch.nn.Module:
    """The job's network, with a logit for each class."""
    model = build_model(
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
    if METHODS[job.method].split:
        split_batch_norm(model)
    return model
