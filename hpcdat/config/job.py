"""The job: one YAML file as typed, validated settings.

:meth:`Job.resolved` fills in settings that are left out, so the run folder records every value used.
``like: OTHER.yaml`` in a file takes from another job the settings that this one does not set. The settings of
each section are in :mod:`hpcdat.config.sections`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hpcdat.config.averaging import Averaging
from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.config.job_checks import check_job
from hpcdat.config.methods import EXTRA_WARMUP_ABOVE, EXTRA_WARMUP_EPOCHS, METHODS, MethodName
from hpcdat.config.sections import (
    MAY_CHANGE,
    Attack,
    Concurrent,
    EarlyStopping,
    Exchange,
    Objective,
    Optimizer,
    Schedule,
    Smoothing,
)


class Job(EvaluationJob):
    """A training job: in addition to the settings of an evaluation, those of the training."""

    other_names = {"gradient_accumulation": "virtual_workers"}  # noqa: RUF012  (declared a ClassVar above)
    method: MethodName
    """training method, by its name in the DAT or the ConAdv paper"""
    epochs: int = Field(ge=1)
    """passes over the training images, without those of `schedule.extra_warmup_epochs`"""
    batch_size: int = Field(ge=1)
    """images per worker and step (global batch = this x workers, including virtual ones)"""
    virtual_workers: int = Field(1, ge=1)
    """virtual workers that each worker computes, one batch after the other: the arithmetic of many workers
    on few. In other words, `gradient_accumulation`, which may be written instead: so many micro-batches of
    `batch_size` in a step of each worker, each with its own batch-norm statistics"""
    checkpoint_minutes: Annotated[float, MAY_CHANGE] = Field(10.0, gt=0)
    """minutes between checkpoints within an epoch; every epoch ends with one"""
    skipped_steps: Annotated[int, MAY_CHANGE] = Field(10, ge=0)
    """steps with a cost or gradient that is not finite that may be skipped before the run stops"""
    reproduces: Annotated[list[Annotated[str, Field(pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")]], MAY_CHANGE] = (
        Field(default_factory=list)
    )
    """rows of the papers' tables, such as dat-4/dat-pgd-8, that `hpcdat report --table` (and, for dat-2,
    `hpcdat certify`) compares the run with"""
    beside: Annotated[list[Annotated[str, Field(pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")]], MAY_CHANGE] = Field(
        default_factory=list
    )
    """rows of the papers' tables below which `hpcdat report --table` shows the run under its own name, such
    as another exchange with as many bits"""
    trackers: Annotated[list[Literal["tensorboard", "mlflow", "wandb"]], MAY_CHANGE] = Field(
        default_factory=list
    )
    """record the curves of the run in these too, offline in its folder; see docs/start/tracking.md"""
    attack: Attack = Attack()
    objective: Objective = Objective()
    smoothing: Smoothing = Smoothing()
    concurrent: Concurrent = Concurrent()
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    exchange: Exchange = Exchange()
    early_stopping: EarlyStopping = EarlyStopping()
    averaging: Averaging = Averaging()

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Job:
        self.check_measurements(self.attack.norm)
        check_job(self)
        return self

    @property
    def oracle(self) -> Literal["none", "pgd", "fgsm"]:
        """The inner maximisation oracle that the method names."""
        return METHODS[self.method].oracle

    @property
    def folds_batch_norm(self) -> bool:
        """Whether attacks fold batch norm, if the network has any and can be folded."""
        attacks = self.oracle != "none" and self.attack.batch_norm == "eval"
        return attacks and self.attack.fold_batch_norm and not self.model.compiled

    @property
    def delay(self) -> int:
        """tau: how many steps old the weights are that a batch is attacked with."""
        given = self.concurrent.delay
        return METHODS[self.method].delay if given is None else given

    @property
    def extra_warmup_epochs(self) -> int:
        """Epochs of warm-up in front of ``epochs``: DAT, supplement 4.1."""
        schedule = self.schedule
        if schedule.extra_warmup_epochs is not None:
            return schedule.extra_warmup_epochs
        other = schedule.warmup_epochs or schedule.name == "cyclic"
        high = METHODS[self.method].extra_warmup and self.optimizer.lr > EXTRA_WARMUP_ABOVE
        return EXTRA_WARMUP_EPOCHS if high and not other else 0

    @property
    def total_epochs(self) -> int:
        """Epochs of a whole training, those of the extra warm-up included."""
        return self.extra_warmup_epochs + self.epochs

    @property
    def labelled_batch(self) -> int:
        """Labelled images (not pseudo-labelled) in a worker's batch."""
        if self.data.unlabelled is None:
            return self.batch_size
        return self.batch_size - round(self.batch_size * self.data.unlabelled_part)

    @property
    def _beta(self) -> float | None:
        return _or(self.objective.beta, 6.0) if self.objective.regulariser == "trades" else None

    @property
    def copies(self) -> int:
        """N: noisy copies of each image in a step; 1 without smoothing."""
        return self.smoothing.copies if self.smoothing.sigma else 1

    @property
    def passes(self) -> int:
        """Noisy copies of each image that one worker computes."""
        return self.copies // self.smoothing.workers

    @property
    def weights_of_cost(self) -> tuple[float, float]:
        """Weights of the clean and the adversarial loss in the local cost."""
        if METHODS[self.method].split:
            weight = 0.5 if self.objective.combine == "mean" else 1.0
            return weight, weight
        if self._beta is not None:
            return 1.0, self._beta
        return (1.0, 0.0) if self.oracle == "none" else (self.objective.lambda_, 1.0)

    def resolved(self, folders: Sequence[Path] = ()) -> Job:
        """This job with every omitted setting filled in.

        Args:
            folders: of the job file and of those that it is ``like``, for modules of the user's own.
        """
        method = METHODS[self.method]
        steps = self.attack.steps or (1 if method.oracle == "fgsm" else 10)
        noisy = self.attack.name == "n-fgsm"
        factor = 2.5 / steps if method.oracle != "fgsm" else 1.0 if method.split or noisy else 1.25
        attack = self.attack.model_copy(
            update={
                "steps": steps,
                "step_size": _or(self.attack.step_size, factor * self.attack.eps),
                "noise": _or(self.attack.noise, 2.0 if noisy else 1.0),
                "projection": not noisy if self.attack.projection is None else self.attack.projection,
                "batch_norm": self.attack.batch_norm or ("train" if method.split else "eval"),
                "branch": self.attack.branch or ("adversarial" if method.split else "clean"),
            }
        )
        evaluation = self.evaluation.resolved(attack.norm, attack.eps)
        certification = self.certification
        if self.smoothing.sigma and certification.sigma is None:
            certification = certification.model_copy(update={"sigma": [self.smoothing.sigma]})
        name = self.optimizer.name or method.optimizers[0]
        exclude = self.optimizer.exclude or ("vectors" if name == "lars" else "none")
        schedule: dict[str, float] = {"extra_warmup_epochs": self.extra_warmup_epochs}
        if not method.scaled_rate:  # else it depends on the number of workers
            schedule["warmup_start"] = _or(self.schedule.warmup_start, 0.0)
        return self.model_copy(
            update={
                "attack": attack,
                "objective": self.objective.model_copy(update={"beta": self._beta}),
                "concurrent": self.concurrent.model_copy(update={"delay": self.delay}),
                "evaluation": evaluation,
                "certification": certification.resolved(),
                "optimizer": self.optimizer.model_copy(update={"name": name, "exclude": exclude}),
                "schedule": self.schedule.model_copy(update=schedule),
                "module_path": self.resolved_module_path(folders),
            }
        )


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
