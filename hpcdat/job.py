"""The job: one YAML file as typed, validated settings.

The one place where a setting has its name, default, unit, range and meaning. A setting left
out is filled in by :meth:`Job.resolved`, so that the run folder holds every value that was used.
``like: OTHER.yaml`` in a file takes from another job what this one does not set.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


def _fraction(value: Any) -> Any:
    """Read ``8/255`` as a number; leave anything else to the validation of floats."""
    if isinstance(value, str) and value.count("/") == 1:
        numerator, denominator = (float(part) for part in value.split("/"))
        if denominator == 0:
            raise ValueError("division by zero")
        return numerator / denominator
    return value


Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, BeforeValidator(_fraction), Field(ge=0, allow_inf_nan=False)]
Norm = Literal["linf", "l2"]
Bits = Literal[1, 2, 3, 4, 5, 6, 7, 8, 16, "float16", 32]


@dataclass(frozen=True)
class Method:
    """What a method's name in the DAT paper (Sec. 6.1) stands for.

    Attributes:
        oracle: inner maximisation oracle of (A1): several steps, one step, or none.
        lalr: layer-wise adaptive rate, eq. (3); None leaves the choice to ``optimizer.name``.
        centralised: conventional AT and Fast AT train on one node only.
        scaled_rate: the learning rate grows with the global batch, ``lr`` for every 256 images
            (large-batch SGD: Goyal et al. 2017, Xie et al. 2019).
    """

    oracle: Literal["none", "pgd", "fgsm"]
    lalr: bool | None
    centralised: bool = False
    scaled_rate: bool = False


METHODS: dict[str, Method] = {
    "plain": Method("none", lalr=None),
    "at": Method("pgd", lalr=False, centralised=True),
    "fast-at": Method("fgsm", lalr=False, centralised=True),
    "dat-pgd": Method("pgd", lalr=True),
    "dat-fgsm": Method("fgsm", lalr=True),
    "dat-pgd-without-lalr": Method("pgd", lalr=False),
    "dat-fgsm-without-lalr": Method("fgsm", lalr=False),
    "dat-lsgd": Method("pgd", lalr=False, scaled_rate=True),
}
MethodName = Literal[
    "plain",
    "at",
    "fast-at",
    "dat-pgd",
    "dat-fgsm",
    "dat-pgd-without-lalr",
    "dat-fgsm-without-lalr",
    "dat-lsgd",
]


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused and nothing changes after reading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_by_name=True
    )


class Data(Settings):
    """Where images come from and how a worker reads them."""

    source: Literal["digits", "folder", "cifar10", "cifar100"] = "folder"
    """`folder`: one's own images; `cifar10` and `cifar100`: the official batches; `digits`:
    scikit-learn's digits, written to `root` if not there"""
    root: Path | None = None
    """for `folder`, holds train/CLASS/*.jpg and test/CLASS/*.jpg; for CIFAR, cifar-10-batches-py or
    cifar-100-python; left out: a folder of the user's cache (not with `folder`)"""
    download: bool = False
    """fetch CIFAR's official batches into `root` where they are not there"""
    train: str = "train"
    """`folder`: sub-folder of `root` that is trained on"""
    test: str = "test"
    """`folder`: sub-folder of `root` that is evaluated on"""
    train_images: int | None = Field(None, ge=1)
    """train on so many images, of each class as many; left out: on all"""
    test_images: int | None = Field(None, ge=1)
    """evaluate on so many images, of each class as many; left out: on all"""
    split: Literal["workers", "nodes"] = "workers"
    """`workers`: any worker may read any image; `nodes`: each node keeps its own part of the
    images, as in the DAT paper"""
    corrupt: Literal["stop", "skip"] = "stop"
    """what an image that cannot be read does: `stop` the run, or be left out (`skip`), named and counted"""
    loader: Literal["dali", "torchvision"] = "dali"
    """NVIDIA DALI, or torchvision's decoder and transforms as the alternative"""
    threads: int = Field(2, ge=1)
    """threads a worker reads and decodes images with"""
    image_size: int = Field(224, ge=1)
    """height and width of an image as the model sees it, pixels"""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for colour"""
    augmentation: Literal["none", "crop-flip", "pad-crop"] = "none"
    """in training, `crop-flip`: random resized crop and flip (ImageNet); `pad-crop`: shifts by up to
    4 pixels and flip (CIFAR); otherwise resize and centre crop"""
    policy: Literal["none", "autoaugment"] = "none"
    """`autoaugment`: in training, after crop and flip, AutoAugment's policy for ImageNet (Cubuk et al.
    2019), carried out by the loader's own operations; for images in colour"""


class Model(Settings):
    """The network; normalisation is its first layer, so attacks work on pixels in [0, 1]."""

    name: Literal["digits-cnn", "preact-resnet18", "wide-resnet28-10", "resnet50"] = "resnet50"
    """`digits-cnn`: a small net for 8x8 images; `preact-resnet18` and `wide-resnet28-10`: for CIFAR;
    `resnet50`: torchvision's, for ImageNet"""
    width: float = Field(1.0, gt=0, le=4)
    """factor of all layers' channels, for `preact-resnet18` and `wide-resnet28-10`"""
    mean: list[Finite] = [0.485, 0.456, 0.406]
    """mean of each channel that the normalisation layer subtracts, [0, 1] units"""
    std: list[Annotated[Finite, Field(gt=0)]] = [0.229, 0.224, 0.225]
    """standard deviation of each channel that the normalisation layer divides by"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16`: faster where the device has it; weights, losses, pixels and exchange stay float32"""
    channels_last: bool = False
    """lay activations in memory pixel by pixel, which GPUs prefer with `bfloat16`"""


class Attack(Settings):
    """The inner maximisation oracle of (A1) while training."""

    norm: Norm = "linf"
    """norm of the ball of perturbations"""
    eps: Fraction = 8 / 255
    """radius of the ball, [0, 1] units; may be written 8/255"""
    steps: int | None = Field(None, ge=1)
    """gradient steps; left out: 10 for PGD, 1 for FGSM (the only value FGSM takes)"""
    step_size: Fraction | None = None
    """length of a step, [0, 1] units; left out: 2.5 eps / steps for PGD, 1.25 eps for FGSM"""
    random_start: bool = True
    """start from a uniform random point of the ball"""
    batch_norm: Literal["eval", "train"] = "eval"
    """statistics the attacked model normalises with: running (eval) or the batch's own (train)"""


class Objective(Settings):
    """The local cost f_i of eq. (2)."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """share of the target given to all classes alike in the cost; the attack maximises the plain loss"""

    lambda_: float = Field(0.0, alias="lambda", ge=0, allow_inf_nan=False)
    """weight of the clean loss beside the robustness regulariser; 0 is AT's eq. (1)"""


class Optimizer(Settings):
    """The outer minimisation oracle of (A4)."""

    name: Literal["lamb", "sgd"] | None = None
    """`lamb`: LALR over Adam, eq. (3); `sgd`: with momentum; left out: what `method` asks for"""
    lr: float = Field(gt=0, allow_inf_nan=False)
    """learning rate eta before warm-up and decay; with `dat-lsgd`, for every 256 of the global batch"""
    weight_decay: float = Field(1e-4, ge=0, allow_inf_nan=False)
    """coefficient of the decay added to the descent direction; not on biases and batch norm"""
    momentum: float = Field(0.9, ge=0, lt=1)
    """momentum of `sgd`"""
    beta1: float = Field(0.9, ge=0, lt=1)
    """decay of `lamb`'s first moment"""
    beta2: float = Field(0.999, ge=0, lt=1)
    """decay of `lamb`'s second moment"""
    c_l: float = Field(0.0, ge=0, allow_inf_nan=False)
    """lower clip of a layer's norm in eq. (3)"""
    c_u: float = Field(10.0, gt=0, allow_inf_nan=False)
    """upper clip of a layer's norm in eq. (3)"""


class Exchange(Settings):
    """The exchange of gradients between the workers: steps 4 to 7 of Algorithm 1."""

    protocol: Literal["ring", "allgather", "parameter_server", "sharded_server", "hierarchical", "auto"] = (
        "ring"
    )
    """`ring`: all-reduce, of codes on a common grid; `allgather`: all receive all codes;
    `parameter_server`: worker 0 adds; `sharded_server`: each worker adds a shard; `hierarchical`:
    float32 inside a node, `across` between nodes; `auto`: what is fastest, bits and `bucket_mb` with it,
    by a measurement of the links at the start of the run"""
    across: Literal["ring", "allgather", "parameter_server", "sharded_server"] = "ring"
    """`hierarchical`: the protocol between nodes"""
    bits: Bits = 32
    """bits of a coordinate, sign included: codes of the quantizer (A5), (A6); 32: float32, nothing lost"""
    bits_allowed: Annotated[list[Bits], Field(min_length=1)] = [32, 8]
    """`auto`: the bits to choose from; fewer are chosen only where they save a tenth of the time"""
    two_sided: bool = False
    """the sum is quantised too (step 7), with the servers' protocols; `auto`: it may be"""
    sum_format: Literal["float32", "bfloat16"] = "float32"
    """what a server sends the sum in, one-sided"""
    norm: Literal["max", "l2"] = "max"
    """norm that the levels divide: the largest magnitude, or the paper's l2"""
    block: Annotated[int, Field(ge=8)] | Literal["bucket", "tensor"] = 512
    """coordinates that share a norm: a number, a whole bucket, or a parameter tensor"""
    lane_bits: int | None = Field(None, ge=2, le=32)
    """`ring`: bits of a lane, where the sum of all workers' codes must fit, if need be with fewer levels;
    left out: as wide as it takes for all levels"""
    exact: list[str] = []
    """names of parameters that stay in float32, with * and ?; biases and batch norm always do"""
    error_feedback: bool = False
    """add what rounding left out to what is sent next"""
    bucket_mb: float = Field(25.0, gt=0)
    """MiB of gradients that are exchanged together"""
    overlap: bool = True
    """exchange buckets while the backward pass still computes others"""

    def in_words(self) -> str:
        """Protocol and bits: ``ring, 32 bits`` or ``sharded_server, 8 bits two-sided``."""
        protocol = self.protocol
        if protocol == "hierarchical":
            protocol += f" ({self.across})"
        bits = self.bits if self.bits == "float16" else f"{self.bits} bits"
        return f"{protocol}, {bits}{' two-sided' if self.two_sided else ''}"


class Schedule(Settings):
    """The learning rate over the epochs."""

    name: Literal["piecewise", "cyclic", "polynomial"] = "piecewise"
    """`piecewise`: constant but for decays; `cyclic`: up to the rate and down to 0, Fast AT's;
    `polynomial`: down to 0 as (1 - t/T)^power"""
    warmup_epochs: int = Field(0, ge=0)
    """linear warm-up over the first W epochs, which count towards `epochs`; not with `cyclic`"""
    warmup_by: Literal["epoch", "step"] = "epoch"
    """`epoch`: epoch k runs at k/W of the rate (DAT); `step`: the rate grows with every step"""
    warmup_start: float = Field(0.0, ge=0, le=1)
    """share of the rate that a warm-up by step begins with"""
    decay_epochs: list[Annotated[int, Field(ge=1)]] = []
    """`piecewise`: epochs done when the rate is multiplied by `decay_factor`"""
    decay_factor: float = Field(0.1, gt=0, le=1)
    """`piecewise`: factor of a decay"""
    peak_epoch: float | None = Field(None, gt=0)
    """`cyclic`: epochs done when the rate is highest; left out: 40 % of the epochs"""
    power: float = Field(2.0, gt=0)
    """`polynomial`: exponent of the decay"""


class Evaluation(Settings):
    """The measurement of TA and RA on the test images."""

    eps: Fraction | None = None
    """radius of the attack; left out: the training `attack.eps`"""
    steps: int = Field(20, ge=1)
    """PGD steps"""
    step_size: Fraction | None = None
    """length of a step; left out: 2.5 eps / steps"""
    random_start: bool = True
    """start from a uniform random point of the ball, drawn from `seed` for each batch of images"""
    batch_size: int = Field(100, ge=1)
    """images at a time; the batches do not depend on the number of workers"""
    every: int = Field(0, ge=0)
    """measure TA and RA every so many epochs as well; 0: only at the end"""


class EarlyStopping(Settings):
    """The end of training before the last epoch, decided by all workers together."""

    patience: int | None = Field(None, ge=1)
    """evaluations (see `evaluation.every`) without a higher RA after which training ends; the result is
    that of the best weights; left out: never"""
    held_out: int = Field(0, ge=0)
    """training images set aside to judge by; 0: judge by the test images, as the DAT paper does"""
    fgsm_guard: bool = True
    """with FGSM: end training, with the weights of the epoch before, where robust accuracy on 256
    training images breaks down (catastrophic overfitting)"""


class Job(Settings):
    """A training job, whole."""

    run_dir: Path
    """folder of the run: settings, environment, metrics, checkpoints, result"""
    method: MethodName
    """training method, by its name in the DAT paper"""
    epochs: int = Field(ge=1)
    """passes over the training images"""
    batch_size: int = Field(ge=1)
    """images a worker takes in a step (global batch = this x workers)"""
    seed: int = Field(0, ge=0, lt=2**32)
    """seed of weights, order of images, augmentation and attacks"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU a worker where there is one, else the CPU"""
    stall_timeout: int = Field(600, ge=10)
    """seconds a worker may keep the others waiting before all of them stop"""
    checkpoint_minutes: float = Field(10.0, gt=0)
    """minutes between checkpoints within an epoch; every epoch ends with one"""
    skipped_steps: int = Field(10, ge=0)
    """steps with a cost or gradient that is not finite that may be skipped before the run stops"""
    reproduces: list[Annotated[str, Field(pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")]] = []
    """rows of the papers' tables that `hpcdat report --table` puts the run beside, such as dat-4/dat-pgd-8"""
    data: Data = Data()
    model: Model = Model()
    attack: Attack = Attack()
    objective: Objective = Objective()
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    exchange: Exchange = Exchange()
    evaluation: Evaluation = Evaluation()
    early_stopping: EarlyStopping = EarlyStopping()

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Job:
        method = METHODS[self.method]
        if method.oracle == "fgsm" and self.attack.steps not in (None, 1):
            raise _refusal(
                "attack.steps", f"1, or nothing: method {self.method} attacks with one step (FGSM)"
            )
        for key, eps in (("attack.eps", self.attack.eps), ("evaluation.eps", self.evaluation.eps)):
            if self.attack.norm == "linf" and (eps or 0) > 1:
                raise _refusal(key, f"a radius in [0, 1] pixel units, as in {eps:g}/255, not {eps:g}")
        if method.lalr is not None and self.optimizer.name not in (None, "lamb" if method.lalr else "sgd"):
            fitting = "lamb" if method.lalr else "sgd"
            raise _refusal(
                "optimizer.name", f"{fitting}, or nothing: method {self.method} is defined with it"
            )
        if method.oracle == "none" and self.objective.lambda_ != 0:
            raise _refusal(
                "objective.lambda",
                "0: method plain has no robustness regulariser that the clean loss is weighed against",
            )
        if not len(self.model.mean) == len(self.model.std) == self.data.channels:
            raise _refusal(
                "model.mean",
                f"one mean and one std for each of data.channels = {self.data.channels} channels",
            )
        if self.model.width != 1 and self.model.name not in ("preact-resnet18", "wide-resnet28-10"):
            raise _refusal("model.width", f"1: it is fixed for {self.model.name}")
        if self.optimizer.c_l > self.optimizer.c_u:
            raise _refusal("optimizer.c_l", f"at most optimizer.c_u = {self.optimizer.c_u:g}")
        if self.early_stopping.patience and not self.evaluation.every:
            raise _refusal("evaluation.every", "1 or more: early_stopping.patience counts those evaluations")
        if self.early_stopping.held_out and not self.early_stopping.patience:
            raise _refusal("early_stopping.patience", "a number, if training images are held out to judge by")
        self._check_data()
        self._check_exchange()
        self._check_schedule()
        return self

    def _check_data(self) -> None:
        data = self.data
        if data.source == "folder" and data.root is None:
            raise _refusal("data.root", "the folder that holds the images is needed (train/ and test/ in it)")
        if data.source in ("cifar10", "cifar100") and data.channels != 3:
            raise _refusal("data.channels", f"3: {data.source} has colours")
        if data.policy != "none" and data.channels != 3:
            raise _refusal("data.policy", f"none: {data.policy} changes colours, and the images are grey")
        if data.download and data.source not in ("cifar10", "cifar100"):
            raise _refusal("data.download", f"false: only CIFAR can be fetched, not {data.source}")

    def _check_exchange(self) -> None:
        exchange = self.exchange
        protocol = exchange.across if exchange.protocol == "hierarchical" else exchange.protocol
        free = protocol == "auto"
        if exchange.bits_allowed != Exchange().bits_allowed and not free:
            raise _refusal("exchange.bits_allowed", "nothing: it is for exchange.protocol auto")
        if free and exchange.bits != Exchange().bits:
            raise _refusal("exchange.bits", "nothing with protocol auto: bits_allowed bounds its choice")
        bits = exchange.bits_allowed if free else [exchange.bits]
        coded = any(b not in (32, "float16") for b in bits)
        served = free or protocol in ("parameter_server", "sharded_server")
        if exchange.two_sided and not (served and coded):
            raise _refusal(
                "exchange.two_sided", "false, or codes and a server that quantises their sum (sharded_server)"
            )
        if exchange.sum_format != "float32" and (not served or exchange.two_sided):
            raise _refusal("exchange.sum_format", "float32: it is for one-sided exchange over servers")
        if exchange.lane_bits and not (protocol == "ring" and coded):
            raise _refusal("exchange.lane_bits", "nothing: lanes are for codes in a ring")
        if exchange.error_feedback and not coded:
            raise _refusal("exchange.error_feedback", f"false: with bits {bits} there are no codes")

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
                raise _refusal(
                    f"schedule.{key}", f"nothing: it belongs to the schedule {name}, not {schedule.name}"
                )
        if schedule.name == "cyclic" and schedule.warmup_epochs:
            raise _refusal("schedule.warmup_epochs", "0: the schedule cyclic has its own way up")
        if (schedule.peak_epoch or 0) >= self.epochs:
            raise _refusal("schedule.peak_epoch", f"less than epochs = {self.epochs}")
        if self.schedule.decay_epochs != sorted(set(self.schedule.decay_epochs)):
            raise _refusal("schedule.decay_epochs", "epochs in increasing order, each once")

    @property
    def oracle(self) -> Literal["none", "pgd", "fgsm"]:
        """The inner maximisation oracle that the method names."""
        return METHODS[self.method].oracle

    def resolved(self) -> Job:
        """The same job with every setting that was left out filled in."""
        method = METHODS[self.method]
        steps = self.attack.steps or (1 if method.oracle == "fgsm" else 10)
        factor = 1.25 if method.oracle == "fgsm" else 2.5 / steps
        attack = self.attack.model_copy(
            update={"steps": steps, "step_size": _or(self.attack.step_size, factor * self.attack.eps)}
        )
        eps = _or(self.evaluation.eps, attack.eps)
        evaluation = self.evaluation.model_copy(
            update={
                "eps": eps,
                "step_size": _or(self.evaluation.step_size, 2.5 * eps / self.evaluation.steps),
            }
        )
        name = self.optimizer.name or ("sgd" if method.lalr is False else "lamb")
        return self.model_copy(
            update={
                "attack": attack,
                "evaluation": evaluation,
                "optimizer": self.optimizer.model_copy(update={"name": name}),
            }
        )


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _refusal(key: str, expected: str) -> PydanticCustomError:
    return PydanticCustomError("job", "{expected}", {"key": key, "expected": expected})
