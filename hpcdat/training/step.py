"""Algorithm 1 of the DAT paper (Algorithm A1 of its supplement) and of the ConAdv paper: one iteration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hpcdat.attacks.folding import CHECKED_IMAGES, Folding, fold
from hpcdat.attacks.pgd import PGD, Loss, attacked
from hpcdat.config.job import Job
from hpcdat.config.sections import Exchange
from hpcdat.distributed.communicator import Communicator
from hpcdat.errors import InputError
from hpcdat.exchange.gradient_exchange import GradientExchange, NamedParameters, grad_of, gradients_of
from hpcdat.models.compiled import Compiled
from hpcdat.models.losses import Labelled, LocalCost, clean_loss, divergence, local_cost
from hpcdat.models.random_numbers import seeded
from hpcdat.models.split_batch_norm import Branch
from hpcdat.models.synchronised_batch_norm import placeholder, synchronise_batch_norm
from hpcdat.optim import build_optimizer
from hpcdat.seeds import derive
from hpcdat.training.concurrent_attack import Adversary, Batch
from hpcdat.training.replicas import BatchNormStatistics
from hpcdat.training.roles import assign_roles
from hpcdat.training.smooth_adv import share_copies
from hpcdat.training.weight_averages import AveragedWeights


class Requests(NamedTuple):
    """The requests of one worker to all workers, summed with the gradients.

    Attributes:
        stop: to stop.
        save: to write a checkpoint.
    """

    stop: bool = False
    save: bool = False


@dataclass(frozen=True)
class StepOutcome:
    """The outcome of a step, known to all workers.

    Attributes:
        cost: of eq. (2), mean over the global batch, before the update.
        images: of the global batch, without those that could not be read.
        correct: number of these classified correctly without perturbation; 0 if the cost has no clean loss.
        finite: whether cost and gradients were finite; if not, the step was skipped.
        stop: whether any worker was asked to stop.
        save: whether any worker asked for a checkpoint.
    """

    cost: float
    images: int
    correct: int
    finite: bool
    stop: bool
    save: bool


class Algorithm1:
    """Algorithm 1 for problem (2), as one of its workers computes it.

    Args:
        job: resolved.
        model: on the device; its weights are trained.
        exchange: settings of the exchange of gradients, without ``auto``.
        workers: all that train; they construct this together.
        device: of this worker.

    Attributes:
        compiled_model: the model, compiled if ``model.compiled`` is set.
        batches: number of batches in a step, of all workers.
        roles, role: of all workers, and of this one.
        averages: of the weights, if the job asks for them.
        synchronisation: of batch norm between several workers, if the job asks for it.
        folding: of batch norm, for attacks with running statistics.

    Raises:
        InputError: the job's work cannot be divided among this number of workers, or the model has no batch
            norm to synchronise.
    """

    def __init__(
        self, job: Job, model: nn.Module, exchange: Exchange, workers: Communicator, device: torch.device
    ) -> None:
        self.job, self.model, self.workers, self.device = job, model, workers, device
        synchronised = job.model.batch_norm == "synchronised"
        self.synchronisation = synchronise_batch_norm(model, workers) if synchronised else None
        self.compiled_model = Compiled(model, job.batch_size * job.passes) if job.model.compiled else model
        self.parameters = [p for _, p in trained_parameters(job.model.name, model)]
        self.optimizer = build_optimizer(model, job.optimizer)
        if self.synchronisation and device.type == "cuda" and workers.engine == "torch":
            # NCCL may block if workers order the sums of batch norm and those of gradients differently.
            exchange = exchange.model_copy(update={"overlap": False})
        self.exchange = GradientExchange(workers, gradients_of(model), exchange, job.seed)
        self.roles = assign_roles(job, workers.size)
        self.role = self.roles[workers.rank]
        self.batches = self.roles.batches
        # Of the workers that share a batch, the first counts its images.
        self._counted = [n for n in self.role.clean if self.roles.first_with_clean(n) == workers.rank]
        self.batch_norm = BatchNormStatistics(model, workers, self.role.trained)
        self.averages = AveragedWeights(model, job.averaging)
        self.copies = share_copies(job, workers)
        self.pgd = PGD.from_settings(job.attack)
        self.folding = self._fold()
        self.generator = torch.Generator(device)
        own_buffers = self.batch_norm.has_others
        self.adversary = Adversary(
            job, model, self.roles, workers, device, self.attack, own_buffers=own_buffers
        )

    def step(
        self, now: Batch, ahead: Batch | None, requests: Callable[[], Requests] = Requests
    ) -> StepOutcome:
        """One iteration t of Algorithm 1.

        Args:
            now: this worker's images B_t^(i), possibly none.
            ahead: with ConAdv, those of iteration t + tau, if the epoch has one.
            requests: of this worker, called as late as possible.

        Returns:
            The outcome, the same on all workers.

        Raises:
            WorkerError: the other workers are lost.
        """
        statistics = self.batch_norm.local()
        # Block 1, on every worker i
        x_adv = self.adversary.take(now)  # step 2: (A1), with ConAdv tau iterations ago
        self.adversary.begin(ahead)  # ConAdv: step 2 of iteration t + tau, concurrently
        own_cost, own_correct = self.local_gradient(now, x_adv)  # step 3: (A2)
        self.adversary.finish()
        # Block 2, which the exchange has begun during block 1
        counts = torch.tensor([self._images(now), *map(float, requests())])
        # A blocking copy would wait for all that the GPU still has to do.
        counts = counts.to(self.device, non_blocking=True)
        scalars = torch.cat([torch.stack([own_cost, own_correct]), counts])
        self.exchange.finish(scalars)  # steps 4 to 7: (A3)
        gradients = [grad_of(p) for p in self.parameters]
        # Block 3, on every worker i
        finite = all_finite([*gradients, scalars])
        # One wait for the device, not one for each number.
        cost, correct, images, stop, save, finite = torch.cat([scalars, finite[None]]).tolist()
        if 0 < images < now.global_size:
            cost *= _rescale(gradients, int(images), now.global_size)
        # A step of which no image can be read changes nothing: neither momentum nor decay moves the weights.
        updates = bool(finite) and images > 0
        self.exchange.commit(counts=updates)
        if updates:
            self.optimizer.step()  # step 9: (A4)
            self.averages.after_update()
        else:
            # The sum is the same on all workers, so all of them skip the step.
            self.batch_norm.restore(statistics)
            correct = 0
        return StepOutcome(cost, int(images), int(correct), bool(finite), stop=stop > 0, save=save > 0)

    def attack(self, batch: Batch, number: int) -> Tensor:
        """Sample-wise attack generation (A1), with the current weights.

        Args:
            batch: what was read for a step; its place in training decides the random start.
            number: of the batch whose images are attacked.

        Returns:
            Perturbed images, (N, C, H, W).
        """
        images, place = batch.images[number], (batch.epoch, batch.step, number)
        if self.job.oracle == "none":
            return images.x
        self.generator.manual_seed(derive(self.job.seed, "attack", *place))
        with seeded(self._network_seed("attack", place), self.device):
            if self.synchronisation and self.pgd.batch_norm == "train" and not len(images.x):
                # The other workers wait for the statistics of this one.
                with self.synchronisation.without_images():
                    self._perturbed(_in_place_of(images), place)
                return images.x
            return self._perturbed(images, place)

    def _perturbed(self, images: Labelled, place: tuple[int, int, int]) -> Tensor:
        """The images, perturbed.

        Args:
            images: a batch, with labels.
            place: epoch, step and number of the batch.
        """
        model, number = self.compiled_model, place[-1]
        phi: Loss = partial(clean_loss, y=images.y)
        # With batch_norm "train" the running statistics are not used, and are left to the local gradient.
        used = self.pgd.batch_norm == "eval" or self.batch_norm.has_others
        if used and number in self.role.trains:
            self.batch_norm.enter(self.role.trains.index(number))
        model = self.folding.current(model)
        if self.job.objective.regulariser == "trades" and len(images.x):
            with attacked(model, self.pgd.batch_norm), torch.no_grad():
                phi = partial(divergence, clean_logits=model(images.x))
        if self.copies:
            model, phi = self.copies.smoothed(model, images, *place)
        return self.pgd(model, phi, images.x, self.generator, wait=False)

    def _fold(self) -> Folding:
        """Fold the batch norm of the attacked network, if the job asks for it."""
        if not self.job.folds_batch_norm:
            return Folding()
        data, generator = self.job.data, torch.Generator(self.device).manual_seed(0)
        shape = (CHECKED_IMAGES, data.channels, data.image_size, data.image_size)
        images = torch.rand(shape, generator=generator, device=self.device)
        return fold(self.model, images, self.pgd.branch)

    def local_gradient(self, now: Batch, x_adv: dict[int, Labelled]) -> tuple[Tensor, Tensor]:
        """Local gradient computation (A2), left in ``.grad``; starts its exchange.

        Costs are summed over the samples and divided by the global batch: the sum over the
        workers is then the mean over all samples, regardless of the sizes of the shares.

        Args:
            now: this worker's images.
            x_adv: their adversarial examples, by the number of the batch.

        Returns:
            This worker's part of the cost, and how many clean images it classified correctly: float32, ().
        """
        self.optimizer.zero_grad(set_to_none=True)
        role = self.role
        total, correct = torch.zeros(2, device=self.device)
        batches = [
            (number, now.images.get(number) if number in role.clean else None, x_adv.get(number))
            for number in role.trains
        ]
        given = [batch for batch in batches if any(part is not None and len(part.x) for part in batch[1:])]
        for place, (number, clean, adversarial) in enumerate(given, start=1):
            self.batch_norm.enter(role.trains.index(number))
            self.batch_norm.count(max(len(part.x) for part in (clean, adversarial) if part is not None))
            cost = self._cost(now, number, clean, adversarial)
            loss = cost.total / (now.global_size * self.job.copies)
            if place == len(given):
                # From the last backward pass on, gradients are complete when they arrive.
                self.exchange.begin(now.epoch, now.step)
            loss.backward()
            total, correct = total + loss.detach(), correct + cost.correct
        if not given:
            self.exchange.begin(now.epoch, now.step)
            if self.synchronisation:
                self._take_part(now, *batches[0])
            self.exchange.contribute_zeros()
        return total, correct

    def _cost(
        self, now: Batch, number: int, clean: Labelled | None, adversarial: Labelled | None
    ) -> LocalCost:
        """The cost of a batch, summed over its samples."""
        objective = self.job.objective
        if self.copies and adversarial is not None:
            clean, adversarial = None, self.copies.noisy(adversarial, now.epoch, now.step, number)
        return local_cost(
            self.compiled_model,
            clean,
            adversarial,
            weights=self.job.weights_of_cost,
            phi=objective.regulariser,
            label_smoothing=objective.label_smoothing,
            randomness=partial(self._randomness, (now.epoch, now.step, number)),
        )

    def _take_part(
        self, now: Batch, number: int, clean: Labelled | None, adversarial: Labelled | None
    ) -> None:
        """Compute the passes of the others, which wait for statistics; the gradients are zero."""
        assert self.synchronisation is not None
        parts = [None if part is None else _in_place_of(part) for part in (clean, adversarial)]
        with self.synchronisation.without_images():
            (0 * self._cost(now, number, *parts).total).backward()

    def _randomness(self, place: tuple[int, int, int], branch: Branch) -> AbstractContextManager[None]:
        """The source of the random numbers that the model draws in a pass of one branch."""
        return seeded(self._network_seed(branch, place), self.device)

    def _network_seed(self, passes: str, place: tuple[int, int, int]) -> int:
        """The seed of the random numbers that the model itself draws, such as those of dropout.

        It depends on the batch and not on the worker, so that a batch draws the same numbers on any worker;
        workers that share a batch of noisy copies draw different ones.
        """
        first_copy = self.copies.numbers.start if self.copies else 0
        return derive(self.job.seed, f"network, {passes}", *place, first_copy)

    def _images(self, now: Batch) -> int:
        """Number of images that were read, of the batches that this worker counts."""
        return sum(len(now.images[number].x) for number in self._counted)


def trained_parameters(name: str, model: nn.Module) -> NamedParameters:
    """The parameters of a model that are trained, with their names.

    Args:
        name: of the model, for messages.
        model: of a job.

    Raises:
        InputError: it has none.
    """
    named = gradients_of(model)
    if not named:
        raise InputError(
            f"model.name: {name} has no parameters that are trained: all have requires_grad=False",
            everywhere=True,
        )
    return named


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether no element of any tensor is infinite or NaN: bool, ()."""
    return torch.stack(torch._foreach_norm(list(tensors), torch.inf)).isfinite().all()


def _in_place_of(images: Labelled) -> Labelled:
    """A placeholder for an empty batch."""
    return Labelled(placeholder(images.x), images.y.new_zeros(1, *images.y.shape[1:]))


def _rescale(gradients: list[Tensor], images: int, global_size: int) -> float:
    """Turn sums over the images that were read, divided by the global batch, into means; the factor."""
    factor = global_size / images
    torch._foreach_mul_(gradients, factor)
    return factor
