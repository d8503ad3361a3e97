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
from hpcdat.config.evaluation_job import EvaluationJob, check_radius
from hpcdat.config.methods import EXTRA_WARMUP_ABOVE, EXTRA_WARMUP_EPOCHS, METHODS, MethodName
from hpcdat.config.progressive_resizing import check_stages
from hpcdat.config.sections import (
    MAY_CHANGE,
    Attack,
    Concurrent,
    Data,
    EarlyStopping,
    Exchange,
    Objective,
    Optimizer,
    Schedule,
    Smoothing,
)
from hpcdat.config.settings import not_allowed, refusal


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
        method = METHODS[self.method]
        if method.oracle == "fgsm" and self.attack.steps not in (None, 1):
            raise refusal("attack.steps", f"1: method {self.method} attacks with one step (FGSM)")
        self._check_n_fgsm()
        check_radius("attack.eps", self.attack.norm, self.attack.eps)
        if self.optimizer.name not in (None, *method.optimizers):
            fitting = " or ".join(method.optimizers)
            raise refusal("optimizer.name", f"{fitting}: method {self.method} is defined with it")
        self._check_regulariser()
        if method.oracle == "none" and self.objective.lambda_ != 0:
            raise refusal(
                "objective.lambda",
                "0: method plain has no robustness regulariser that the clean loss is weighed against",
            )
        if self.optimizer.c_l > self.optimizer.c_u:
            raise refusal("optimizer.c_l", f"at most optimizer.c_u = {self.optimizer.c_u:g}")
        if self.early_stopping.chooses_weights and not self.evaluation.every:
            raise refusal("evaluation.every", "1 or more: early stopping compares those evaluations")
        if self.early_stopping.held_out and not self.early_stopping.chooses_weights:
            raise refusal("early_stopping.best_weights", "true, or a patience, if images are held out")
        self._check_data()
        self._check_smoothing()
        self._check_concurrent()
        self._check_exchange()
        self._check_schedule()
        self._check_averaging()
        self._check_batch_norm()
        return self

    def _check_n_fgsm(self) -> None:
        attack, method = self.attack, METHODS[self.method]
        if attack.name != "n-fgsm":
            return
        if method.oracle != "fgsm" or method.split:
            raise refusal("attack.name", "pgd: n-fgsm attacks with one step, as dat-fgsm does")
        if attack.norm != "linf":
            raise refusal("attack.norm", "linf: n-fgsm is defined in it")
        if not attack.random_start:
            raise refusal("attack.random_start", "true: n-fgsm starts from noise")

    def _check_regulariser(self) -> None:
        objective, method = self.objective, METHODS[self.method]
        if objective.regulariser == "loss":
            if objective.beta is not None:
                raise not_allowed("objective.beta", "without objective.regulariser: trades")
            return
        if method.oracle == "none" or method.split:
            raise refusal("objective.regulariser", f"loss: method {self.method} has no regulariser")
        if objective.lambda_:
            raise refusal("objective.lambda", "0: TRADES has the weights 1 and beta")
        if not self.attack.random_start:
            raise refusal("attack.random_start", "true: the divergence of TRADES is flat at the image itself")

    def _check_data(self) -> None:
        data = self.data
        if data.policy != "none" and data.channels != 3:
            raise refusal("data.policy", f"none: {data.policy} needs colour images")
        if data.loader == "device" and data.augmentation == "crop-flip":
            raise refusal("data.augmentation", "none or pad-crop: loader device resizes all images alike")
        if data.loader == "device" and data.policy != "none":
            raise refusal("data.policy", "none: loader device has no policies; dali and torchvision do")
        if data.stage and not data.has_folders:
            raise not_allowed("data.stage", f"with data.source: {data.source}, only with folder and shards")
        if data.stage and data.loader == "device":
            raise not_allowed("data.stage", "with loader device, which reads every image once")
        if not data.stage_keep and not data.stage:
            raise not_allowed("data.stage_keep", "without data.stage")
        if data.unlabelled_part != Data().unlabelled_part and data.unlabelled is None:
            raise refusal(
                "data.unlabelled", "a file of pseudo-labelled images, as data.unlabelled_part is set"
            )
        if data.unlabelled and not 1 <= self.labelled_batch < self.batch_size:
            raise refusal(
                "data.unlabelled_part", f"a share that leaves images of both kinds in {self.batch_size}"
            )
        if data.mixing == "none" and data.mixing_alpha != Data().mixing_alpha:
            raise not_allowed("data.mixing_alpha", "without data.mixing: mixup or cutmix")
        if data.mixing != "none" and self.concurrent.place == "workers":
            raise refusal("data.mixing", "none: attack workers hand over labels, not proportions of classes")
        if data.progressive_resizing:
            check_stages(data.progressive_resizing, data.image_size, self.total_epochs)
            if self.concurrent.place == "workers":
                raise refusal(
                    "data.progressive_resizing", "[]: attack workers hand over images of data.image_size"
                )

    def _check_smoothing(self) -> None:
        method, smoothing = METHODS[self.method], self.smoothing
        if not smoothing.sigma:
            if smoothing != Smoothing():
                raise refusal("smoothing.sigma", "more than 0, as other settings of smoothing are set")
            return
        if method.oracle == "none" or method.split:
            raise not_allowed("smoothing", f"with method {self.method}")
        if self.objective.lambda_:
            raise refusal("objective.lambda", "0: Smooth-AT has no clean loss")
        if self.objective.regulariser != "loss":
            raise refusal("objective.regulariser", "loss: Smooth-AT is not defined with another")
        if smoothing.copies % smoothing.workers:
            raise refusal(
                "smoothing.workers", f"a number that divides smoothing.copies = {smoothing.copies} evenly"
            )
        if smoothing.workers > 1 and self.data.corrupt != "stop":
            raise refusal("data.corrupt", "stop: smoothing.workers that share a batch must read all of it")

    def _check_concurrent(self) -> None:
        method, concurrent = METHODS[self.method], self.concurrent
        if self.virtual_workers > 1 and (concurrent.place, concurrent.halves) != ("beside", "together"):
            raise refusal("virtual_workers", "1: the workers of a batch divide its work among them")
        if not method.split:
            if concurrent.delay or concurrent.model_copy(update={"delay": None}) != Concurrent():
                raise not_allowed("concurrent", f"with method {self.method}")
            if self.attack.branch == "adversarial":
                raise not_allowed("attack.branch", f"with method {self.method}, which has one batch norm")
            if self.objective.combine != Objective().combine:
                raise not_allowed(
                    "objective.combine", f"with method {self.method}, only with disadv and conadv"
                )
            return
        if self.objective.lambda_:
            raise refusal(
                "objective.lambda", f"0: objective.combine weighs the losses of method {self.method}"
            )
        if self.method == "disadv" and concurrent.delay:
            raise refusal("concurrent.delay", "0: method disadv attacks with current weights")
        if self.attack.batch_norm == "eval" and self.delay:
            raise refusal("attack.batch_norm", "train: running statistics are not those of stale weights")
        if concurrent.place == "workers" and not self.delay:
            raise refusal("concurrent.place", "beside: attack workers need concurrent.delay of 1 or more")
        if concurrent.update_workers and concurrent.place != "workers":
            raise not_allowed("concurrent.update_workers", "without concurrent.place: workers")

    def _check_exchange(self) -> None:
        exchange = self.exchange
        protocol = exchange.between_nodes
        free = protocol == "auto"
        if exchange.bits_allowed != Exchange().bits_allowed and not free:
            raise not_allowed("exchange.bits_allowed", "without exchange.protocol: auto")
        if free and exchange.bits != Exchange().bits:
            raise not_allowed("exchange.bits", "with exchange.protocol: auto; set exchange.bits_allowed")
        bits = exchange.bits_allowed if free else [exchange.bits]
        coded = any(b not in (32, "float16") for b in bits)
        served = free or protocol in ("parameter_server", "sharded_server")
        if exchange.two_sided and not (served and coded):
            raise refusal(
                "exchange.two_sided",
                "false, or codes (exchange.bits) and a server (exchange.protocol: sharded_server)",
            )
        if exchange.sum_format != "float32" and (not served or exchange.two_sided):
            raise refusal("exchange.sum_format", "float32: it is for one-sided exchange over servers")
        if exchange.lane_bits and not (protocol == "ring" and coded):
            raise not_allowed("exchange.lane_bits", "without codes in a ring (exchange.bits, protocol)")
        if exchange.levels:
            if free or not coded or exchange.bits == 1:
                raise not_allowed("exchange.levels", "without codes of 2 to 8 or 16 bits")
            most = 2 ** (int(exchange.bits) - 1) - 1
            if exchange.levels > most:
                raise refusal(
                    "exchange.levels", f"at most {most}: sign and levels share {exchange.bits} bits"
                )
        if not coded:
            for key, default in {
                "error_feedback": False,
                "rounding": "independent",
                "rotation": "none",
            }.items():
                if getattr(exchange, key) != default:
                    expected = str(default).lower()
                    raise refusal(f"exchange.{key}", f"{expected}: with bits {bits} there are no codes")
        if exchange.rotation != "none":
            if exchange.norm != "max":
                raise refusal("exchange.norm", "max: with l2 a rotation makes the errors larger")
            if isinstance(exchange.block, str) or exchange.block.bit_count() != 1:
                raise refusal("exchange.block", "a power of two: rotations have such sizes")

    def _check_averaging(self) -> None:
        averaging = self.averaging
        if averaging.ema is not None and averaging.swa_from is not None:
            raise refusal("averaging.swa_from", "one kind of average, ema or swa_from")
        if (averaging.swa_from or 0) > self.total_epochs:
            raise refusal("averaging.swa_from", f"at most {self.total_epochs}, the last epoch")

    def _check_batch_norm(self) -> None:
        if self.model.batch_norm == "local":
            return
        workers_differ = {
            "virtual_workers": (
                self.virtual_workers > 1,
                "one worker computes the batches of several",
            ),
            "concurrent.place": (self.concurrent.place == "workers", "attack workers do not train"),
            "concurrent.halves": (self.concurrent.halves == "apart", "workers train different branches"),
            "smoothing.workers": (
                self.smoothing.workers > 1,
                "several workers have copies of an image",
            ),
            "model.compiled": (self.model.compiled, "compiled code cannot wait for other workers"),
        }
        for key, (is_so, why) in workers_differ.items():
            if is_so:
                raise refusal("model.batch_norm", f"local with this {key}: {why}")

    def _check_schedule(self) -> None:
        schedule = self.schedule
        belongs = {
            "decay_epochs": "piecewise",
            "decay_factor": "piecewise",
            "peak_epoch": "cyclic",
            "power": "polynomial",
        }
        for key, name in belongs.items():
            given = getattr(schedule, key) != Schedule.model_fields[key].default
            if given and schedule.name != name:
                raise not_allowed(f"schedule.{key}", f"with schedule {schedule.name}, only with {name}")
        if schedule.name == "cyclic" and schedule.warmup_epochs:
            raise refusal("schedule.warmup_epochs", "0: schedule cyclic has its own warm-up")
        if schedule.extra_warmup_epochs and (schedule.name == "cyclic" or schedule.warmup_epochs):
            raise refusal("schedule.extra_warmup_epochs", "0: the schedule has another warm-up")
        if (schedule.peak_epoch or 0) >= self.epochs:
            raise refusal("schedule.peak_epoch", f"less than epochs = {self.epochs}")
        if self.schedule.decay_epochs != sorted(set(self.schedule.decay_epochs)):
            raise refusal("schedule.decay_epochs", "epochs in increasing order, each once")

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
