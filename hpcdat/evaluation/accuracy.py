"""Clean and robust test accuracy: TA and RA of the DAT paper, Sec. 6.1."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from typing_extensions import Self

from hpcdat.attacks.norm_balls import BALLS
from hpcdat.attacks.pgd import attacked, input_gradient
from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.config.measurements import Evaluation
from hpcdat.config.sections import Norm
from hpcdat.evaluation.image_batches import ImageBatches
from hpcdat.evaluation.outcomes import Outcomes, merge
from hpcdat.evaluation.pgd import PgdEvaluation, attack_generator, is_correct
from hpcdat.evaluation.sharded_runner import Execution, Measurement, run_sharded
from hpcdat.models.losses import clean_loss
from hpcdat.seeds import derive

NOISE_POINTS = 10
"""Random points on the sphere around each image that :class:`CheckedAccuracy` classifies."""


@dataclass(frozen=True)
class Accuracy:
    """Counts of an evaluation.

    Attributes:
        images: images evaluated; those that cannot be read are not among them.
        correct: images classified correctly.
        robust: images classified correctly both clean and under the attack.
    """

    images: int
    correct: int
    robust: int

    @classmethod
    def of(cls, outcomes: Outcomes) -> Self:
        """The counts of the outcomes of :class:`PgdAccuracy`."""
        return cls(outcomes.images, outcomes.count("correct"), outcomes.count("robust"))

    @property
    def ta(self) -> float:
        """Clean test accuracy, in [0, 1]."""
        return self.correct / self.images

    @property
    def ra(self) -> float:
        """Robust test accuracy under PGD, in [0, 1]."""
        return self.robust / self.images


class PgdAccuracy(Measurement[Outcomes]):
    """TA and RA: columns ``correct`` and ``robust``.

    An image is robust if it is classified correctly without attack (the centre is a point of the ball) and at
    the last point of PGD from each of ``settings.restarts`` random starts.

    Args:
        settings: of the attack, resolved.
        norm: of the ball.
        seed: the job's.
        name: of the measurement.
    """

    outcome = Outcomes

    def __init__(self, settings: Evaluation, norm: Norm, seed: int, name: str = "accuracy") -> None:
        self.evaluation, self.norm, self.seed, self.name = settings, norm, seed, name
        self.attack = PgdEvaluation(settings, norm)
        self.settings = {
            "norm": norm,
            **settings.model_dump(include={"eps", "steps", "step_size", "random_start", "restarts"}),
        }

    def measure(  # noqa: D102
        self, model: nn.Module, x: Tensor, y: Tensor, number: int, *, folded: nn.Module | None = None
    ) -> Outcomes:
        correct = is_correct(model, x, y)
        generator = attack_generator(x.device, self.seed, number)
        robust = self.attack.robust(model, x, y, correct, generator, folded=folded)
        return Outcomes.from_tensors({"correct": correct, "robust": robust})


class CheckedAccuracy(PgdAccuracy):
    """TA, RA, and the columns that :mod:`~hpcdat.evaluation.sanity_checks` needs to check them.

    These are ``steady`` (also classified correctly at random points of the sphere) and ``gradient`` (the
    gradient of the loss is not zero).
    """

    def __init__(self, settings: Evaluation, norm: Norm, seed: int) -> None:
        super().__init__(settings, norm, seed)
        self.settings = {**self.settings, "noise_points": NOISE_POINTS}

    def measure(  # noqa: D102
        self, model: nn.Module, x: Tensor, y: Tensor, number: int, *, folded: nn.Module | None = None
    ) -> Outcomes:
        accuracy = super().measure(model, x, y, number, folded=folded)
        steady = torch.from_numpy(accuracy.columns["correct"]).to(x.device, non_blocking=True)
        noise = torch.Generator(x.device).manual_seed(derive(self.seed, "evaluation noise", number))
        ball = BALLS[self.norm](x, self.evaluation.resolved_eps)
        for _ in range(NOISE_POINTS):
            direction = ball.steepest(torch.randn(x.shape, generator=noise, device=x.device, dtype=x.dtype))
            steady = steady & is_correct(model, ball.project(x + self.evaluation.resolved_eps * direction), y)
        with attacked(model, "eval"), torch.enable_grad():
            gradient = input_gradient(model, partial(clean_loss, y=y), x)
        checks = Outcomes.from_tensors({"steady": steady, "gradient": (gradient != 0).flatten(1).any(1)})
        return Outcomes({**accuracy.columns, **checks.columns})


def measure_accuracy(
    measurement: PgdAccuracy, images: ImageBatches, model: nn.Module, job: EvaluationJob, execution: Execution
) -> Accuracy:
    """TA and RA of a model in evaluation mode; its own mode is restored.

    Args:
        measurement, images, job, execution: as for :func:`~hpcdat.evaluation.sharded_runner.run_sharded`.
        model: the same on all workers.

    Raises:
        Stopped, InputError, WorkerError: as for :func:`~hpcdat.evaluation.sharded_runner.run_sharded`.
    """
    was_training = model.training
    model.eval()
    try:
        outcomes = run_sharded(measurement, images, model, job, execution)
    finally:
        model.train(was_training)
    return Accuracy.of(merge(outcomes))
