"""The job: one YAML file as typed, validated settings.

The one place where a setting has its name, default, unit, range and meaning. A setting left
out is filled in by :meth:`Job.resolved`, so that the run folder holds every value that was used.
``like: OTHER.yaml`` in a file takes from another job what this one does not set.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


def fraction(value: Any) -> Any:
    """Read ``8/255`` as a number; leave anything else to the validation of floats."""
    if isinstance(value, str) and value.count("/") == 1:
        numerator, denominator = (float(part) for part in value.split("/"))
        if denominator == 0:
            raise ValueError("division by zero")
        return numerator / denominator
    return value


Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, BeforeValidator(fraction), Field(ge=0, allow_inf_nan=False)]
MAY_CHANGE = "may be another when a run goes on"
"""Marks settings that what training computes does not depend on."""
Norm = Literal["linf", "l2"]
Bits = Literal[1, 2, 3, 4, 5, 6, 7, 8, 16, "float16", 32]


@dataclass(frozen=True)
class Method:
    """What a method's name stands for: the DAT paper's (Sec. 6.1) and the ConAdv paper's (Sec. 3).

    Attributes:
        oracle: inner maximisation oracle of (A1): several steps, one step, or none.
        optimizers: that it may be trained with, the usual one first; ``lamb`` is LALR, eq. (3) of DAT.
        centralised: conventional AT and Fast AT train on one node only.
        scaled_rate: the learning rate grows with the global batch, ``lr`` for every 256 images
            (large-batch SGD: Goyal et al. 2017, Xie et al. 2019).
        split: the cost is that of clean and adversarial images, each with a batch norm of their own.
        delay: tau of eq. (3) of ConAdv where a job does not say.
    """

    oracle: Literal["none", "pgd", "fgsm"]
    optimizers: tuple[str, ...]
    centralised: bool = False
    scaled_rate: bool = False
    split: bool = False
    delay: int = 0


METHODS: dict[str, Method] = {
    "plain": Method("none", ("lamb", "sgd", "lars")),
    "at": Method("pgd", ("sgd",), centralised=True),
    "fast-at": Method("fgsm", ("sgd",), centralised=True),
    "dat-pgd": Method("pgd", ("lamb",)),
    "dat-fgsm": Method("fgsm", ("lamb",)),
    "dat-pgd-without-lalr": Method("pgd", ("sgd",)),
    "dat-fgsm-without-lalr": Method("fgsm", ("sgd",)),
    "dat-lsgd": Method("pgd", ("sgd",), scaled_rate=True),
    "disadv": Method("fgsm", ("lars", "sgd", "lamb"), split=True),
    "conadv": Method("fgsm", ("lars", "sgd", "lamb"), split=True, delay=1),
}
if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused and nothing changes after reading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_by_name=True
    )


def by_name(settings: Settings, prefix: str = "", *, may_change: bool = False) -> dict[str, tuple[Any, bool]]:
    """Settings by their dotted names: the value of each, and whether it may be another when a run goes on."""
    named: dict[str, tuple[Any, bool]] = {}
    for name, field in type(settings).model_fields.items():
        key, value = prefix + (field.alias or name), getattr(settings, name)
        may = may_change or MAY_CHANGE in field.metadata
        inner = isinstance(value, Settings)
        named |= by_name(value, f"{key}.", may_change=may) if inner else {key: (value, may)}
    return named


class Data(Settings):
    """Where images come from and how a worker reads them."""

    source: Literal["digits", "folder", "cifar10", "cifar100"] = "folder"
    """`folder`: one's own images; `cifar10` and `cifar100`: the official batches; `digits`:
    scikit-learn's digits, written to `root` if not there"""
    root: Annotated[Path | None, MAY_CHANGE] = None
    """for `folder`, holds train/CLASS/*.jpg and test/CLASS/*.jpg; for CIFAR, cifar-10-batches-py or
    cifar-100-python; left out: a folder of the user's cache (not with `folder`)"""
    download: Annotated[bool, MAY_CHANGE] = False
    """fetch CIFAR's official batches into `root` where they are not there"""
    train: str = "train"
    """`folder`: sub-folder of `root` that is trained on"""
    test: str = "test"
    """`folder`: sub-folder of `root` that is evaluated on"""
    train_images: int | None = Field(None, ge=1)
    """train on so many images, of each class as many; left out: on all"""
    test_images: int | None = Field(None, ge=1)
    """evaluate on so many images, of each class as many; left out: on all"""
    unlabelled: Path | None = None
    """file of images with pseudo-labels that training batches are mixed with: the .npz of `hpcdat
    pseudo-label`, or the pickle of Carmon et al. 2019"""
    unlabelled_part: float = Field(0.5, gt=0, lt=1)
    """share of such images in every batch, to the nearest image; an epoch is a pass over the labelled ones"""
    split: Literal["workers", "nodes"] = "workers"
    """`workers`: any worker may read any image; `nodes`: each node keeps its own part of the
    images, as in the DAT paper"""
    corrupt: Annotated[Literal["stop", "skip"], MAY_CHANGE] = "stop"
    """what an image that cannot be read does: `stop` the run, or be left out (`skip`), named and counted"""
    loader: Literal["dali", "torchvision", "device"] = "dali"
    """`dali`: NVIDIA DALI; `torchvision`: its decoder and transforms; `device`: all images, which have one
    size, stay in the memory of the GPU (or CPU) that trains and are shifted and mirrored there"""
    threads: Annotated[int, MAY_CHANGE] = Field(2, ge=1)
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
    pretrained: Path | None = None
    """weights to start from: a run's folder or checkpoint, or a weight file of torchvision's (.pth); a head
    of other classes starts anew"""
    mean: list[Finite] = [0.485, 0.456, 0.406]
    """mean of each channel that the normalisation layer subtracts, [0, 1] units"""
    std: list[Annotated[Finite, Field(gt=0)]] = [0.229, 0.224, 0.225]
    """standard deviation of each channel that the normalisation layer divides by"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16`: faster where the device has it; weights, losses, pixels and exchange stay float32"""
    channels_last: bool = False
    """lay activations in memory pixel by pixel, which GPUs prefer with `bfloat16`"""
    compiled: bool = False
    """train by code that torch.compile makes for full batches, which takes it a minute or two at the start.
    It rounds differently, and all gradients come at its end, so that no exchange can begin before"""


class Attack(Settings):
    """The inner maximisation oracle of (A1) while training."""

    norm: Norm = "linf"
    """norm of the ball of perturbations"""
    eps: Fraction = 8 / 255
    """radius of the ball, [0, 1] units; may be written 8/255"""
    steps: int | None = Field(None, ge=1)
    """gradient steps; left out: 10 for PGD, 1 for FGSM (the only value FGSM takes)"""
    step_size: Fraction | None = None
    """length of a step, [0, 1] units; left out: 2.5 eps / steps for PGD, 1.25 eps for FGSM, eps for
    `disadv` and `conadv`"""
    direction: Literal["steepest", "gradient"] = "steepest"
    """`steepest`: ascent of the norm, for linf the sign of the gradient; `gradient`: `step_size` times the
    gradient itself, as eq. (3) of ConAdv has it"""
    random_start: bool = True
    """start from a uniform random point of the ball"""
    batch_norm: Literal["eval", "train"] | None = None
    """statistics the attacked model normalises with: running (eval) or the batch's own (train); left out:
    eval, for `disadv` and `conadv` train"""
    branch: Literal["clean", "adversarial"] | None = None
    """`disadv`, `conadv`: the batch norm that the attack passes; left out: adversarial"""


class Objective(Settings):
    """The local cost f_i of eq. (2)."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """share of the target given to all classes alike in the cost; the attack maximises the plain loss"""

    regulariser: Literal["loss", "trades"] = "loss"
    """phi: `loss` of the perturbed image; `trades`: divergence between what the net says of it and of the
    image itself, beside the clean loss (Zhang et al. 2019)"""
    beta: float | None = Field(None, ge=0, allow_inf_nan=False)
    """`trades`: weight of the divergence; left out: 6; 0 is plain training"""
    lambda_: float = Field(0.0, alias="lambda", ge=0, allow_inf_nan=False)
    """weight of the clean loss beside the robustness regulariser; 0 is AT's eq. (1)"""
    combine: Literal["mean", "sum"] = "mean"
    """`disadv`, `conadv`: of the clean and the adversarial loss, `mean` as eq. (4) of ConAdv, or `sum` as
    its eq. (2)"""


class Smoothing(Settings):
    """Smooth-AT, adversarial training of a smoothed classifier: Salman et al. 2019, DAT's Table 2."""

    sigma: float = Field(0.0, ge=0, allow_inf_nan=False)
    """standard deviation of the Gaussian noise, [0, 1] units; 0: none, every image passes once"""
    copies: int = Field(2, ge=1)
    """N: noisy copies of an image, which share its perturbation"""
    workers: int = Field(1, ge=1)
    """workers that share a batch, each with as many of its copies as the others: a step then takes the
    images of only one in so many workers"""


class Concurrent(Settings):
    """When and where adversarial examples are made: ConAdv, Sec. 3.3 and Algorithm 1."""

    delay: int | None = Field(None, ge=0)
    """tau: steps between the attack of a batch and the update by it; left out: 1, with `disadv` 0. The
    first tau batches of an epoch are attacked with the weights of its start"""
    place: Literal["beside", "workers"] = "beside"
    """`beside`: every worker attacks the batch it trains on, on a GPU in a stream beside its update, on a
    CPU while gradients are on their way; `workers`: attack workers do, and hand the examples over"""
    update_workers: int | None = Field(None, ge=1)
    """`workers`: batches that one attack worker makes the examples of; left out: as many up to 3 as divide
    the workers evenly"""
    halves: Literal["together", "apart"] = "together"
    """`together`: one worker computes both halves of a batch's cost; `apart`: two do, when batches cannot
    be made smaller and there are more workers"""


class Optimizer(Settings):
    """The outer minimisation oracle of (A4)."""

    name: Literal["lamb", "sgd", "lars"] | None = None
    """`lamb`: LALR over Adam, eq. (3); `sgd`: with momentum; `lars`: layer-wise rates over momentum (You et
    al. 2017); left out: what `method` asks for"""
    lr: float = Field(gt=0, allow_inf_nan=False)
    """learning rate eta before warm-up and decay; with `dat-lsgd`, for every 256 of the global batch"""
    weight_decay: float = Field(1e-4, ge=0, allow_inf_nan=False)
    """coefficient of the decay added to the descent direction; not on biases and batch norm"""
    momentum: float = Field(0.9, ge=0, lt=1)
    """momentum of `sgd` and `lars`"""
    trust_coefficient: float = Field(0.001, gt=0, allow_inf_nan=False)
    """share of a layer's norm that a step of `lars` has at rate 1"""
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
        protocol: str = self.protocol
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
    restarts: int = Field(1, ge=1)
    """times that the attack starts; an image is robust if all of them fail. Sweeps start once"""
    batch_size: Annotated[int, MAY_CHANGE] = Field(100, ge=1)
    """images at a time; the batches do not depend on the number of workers"""
    every: int = Field(0, ge=0)
    """measure TA and RA every so many epochs as well; 0: only at the end"""

    def with_usual_step_size(self, *, eps: float, steps: int) -> Evaluation:
        """The same over another ball and with as many steps, each 2.5 eps / steps long."""
        return self.model_copy(update={"eps": eps, "steps": steps, "step_size": 2.5 * eps / steps})

    @property
    def has_usual_step_size(self) -> bool:
        """Whether the length of a step is the one that is filled in where it is left out."""
        return self == self.with_usual_step_size(eps=self.resolved_eps, steps=self.steps)

    @property
    def resolved_eps(self) -> float:
        """The radius in the settings of a resolved job, which all have one."""
        assert self.eps is not None
        return self.eps


class Certification(Settings):
    """Certified robustness by randomised smoothing (`hpcdat certify`): Cohen et al. 2019."""

    sigma: Annotated[list[Annotated[Finite, Field(gt=0)]], Field(min_length=1)] | None = None
    """standard deviations of the Gaussian noise, [0, 1] units; left out: that of `smoothing`, without it
    Table 2's 0.12 and 0.25"""
    n0: int = Field(100, ge=1)
    """noisy samples that choose the class"""
    n: int = Field(100_000, ge=1)
    """noisy samples that bound its probability"""
    alpha: float = Field(0.001, gt=0, lt=1)
    """probability with which the certificate of an image may be wrong"""
    every: int = Field(1, ge=1)
    """certify the first of so many test images; Cohen et al. take 20 on CIFAR-10 and 100 on ImageNet"""
    batch_size: int = Field(1000, ge=1)
    """noisy samples of an image at a time; random numbers depend on it, not on the number of workers"""


class EarlyStopping(Settings):
    """The end of training before the last epoch, decided by all workers together."""

    patience: int | None = Field(None, ge=1)
    """evaluations (see `evaluation.every`) without a higher RA after which training ends; the result is
    that of the best weights; left out: never"""
    held_out: int = Field(0, ge=0)
    """training images held out for validation; 0: validate on the test images, as the DAT paper does"""
    fgsm_guard: bool = True
    """with FGSM, but for `disadv` and `conadv`: end training, with the weights of the epoch before, where
    robust accuracy on 256 training images breaks down (catastrophic overfitting)"""


class Job(Settings):
    """A training job, whole."""

    run_dir: Annotated[Path, MAY_CHANGE]
    """folder of the run: settings, environment, metrics, checkpoints, result"""
    method: MethodName
    """training method, by its name in the DAT or the ConAdv paper"""
    epochs: int = Field(ge=1)
    """passes over the training images"""
    batch_size: int = Field(ge=1)
    """images a worker takes in a step (global batch = this x workers, virtual ones too)"""
    virtual_workers: int = Field(1, ge=1)
    """workers that each worker stands for, whose batches it computes one after the other: the arithmetic of
    many workers on few"""
    seed: int = Field(0, ge=0, lt=2**32)
    """seed of weights, order of images, augmentation and attacks"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU a worker where there is one, else the CPU"""
    stall_timeout: Annotated[int, MAY_CHANGE] = Field(600, ge=1)
    """seconds a worker may keep the others waiting before all of them stop"""
    checkpoint_minutes: Annotated[float, MAY_CHANGE] = Field(10.0, gt=0)
    """minutes between checkpoints within an epoch; every epoch ends with one"""
    skipped_steps: Annotated[int, MAY_CHANGE] = Field(10, ge=0)
    """steps with a cost or gradient that is not finite that may be skipped before the run stops"""
    reproduces: Annotated[list[Annotated[str, Field(pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")]], MAY_CHANGE] = []
    """rows of the papers' tables that `hpcdat report --table`, and of dat-2 `hpcdat certify`, put the run
    beside, such as dat-4/dat-pgd-8"""
    data: Data = Data()
    model: Model = Model()
    attack: Attack = Attack()
    objective: Objective = Objective()
    smoothing: Smoothing = Smoothing()
    concurrent: Concurrent = Concurrent()
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    exchange: Exchange = Exchange()
    evaluation: Evaluation = Evaluation()
    certification: Annotated[Certification, MAY_CHANGE] = Certification()
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
        if self.optimizer.name not in (None, *method.optimizers):
            (fitting,) = method.optimizers
            raise _refusal(
                "optimizer.name", f"{fitting}, or nothing: method {self.method} is defined with it"
            )
        self._check_regulariser()
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
        if self.evaluation.restarts > 1 and not self.evaluation.random_start:
            raise _refusal("evaluation.restarts", "1: without random start all of them are the same")
        if self.early_stopping.patience and not self.evaluation.every:
            raise _refusal("evaluation.every", "1 or more: early_stopping.patience counts those evaluations")
        if self.early_stopping.held_out and not self.early_stopping.patience:
            raise _refusal("early_stopping.patience", "a number, if held_out is more than 0")
        self._check_data()
        self._check_smoothing()
        self._check_concurrent()
        self._check_exchange()
        self._check_schedule()
        return self

    def _check_regulariser(self) -> None:
        objective, method = self.objective, METHODS[self.method]
        if objective.regulariser == "loss":
            if objective.beta is not None:
                raise _refusal("objective.beta", "nothing: it is the weight of objective.regulariser trades")
            return
        if method.oracle == "none" or method.split:
            raise _refusal("objective.regulariser", f"loss: method {self.method} has no regulariser")
        if objective.lambda_:
            raise _refusal("objective.lambda", "0: TRADES has the weights 1 and beta")
        if not self.attack.random_start:
            raise _refusal(
                "attack.random_start", "true: the divergence of TRADES is flat at the image itself"
            )

    def _check_data(self) -> None:
        data = self.data
        if data.source == "folder" and data.root is None:
            raise _refusal("data.root", "the folder that holds the images is needed (train/ and test/ in it)")
        if data.source in ("cifar10", "cifar100") and data.channels != 3:
            raise _refusal("data.channels", f"3: {data.source} has colours")
        if data.policy != "none" and data.channels != 3:
            raise _refusal("data.policy", f"none: {data.policy} changes colours, and the images are grey")
        if data.loader == "device" and data.augmentation == "crop-flip":
            raise _refusal("data.augmentation", "none or pad-crop: loader device resizes all images alike")
        if data.loader == "device" and data.policy != "none":
            raise _refusal("data.policy", "none: loader device has no policies; dali and torchvision do")
        if data.unlabelled_part != Data().unlabelled_part and data.unlabelled is None:
            raise _refusal("data.unlabelled", "a file, if batches are to have unlabelled images")
        if data.unlabelled and not 1 <= self.labelled_batch < self.batch_size:
            raise _refusal(
                "data.unlabelled_part", f"a share that leaves images of both kinds in {self.batch_size}"
            )
        if data.download and data.source not in ("cifar10", "cifar100"):
            raise _refusal("data.download", f"false: only CIFAR can be fetched, not {data.source}")

    def _check_smoothing(self) -> None:
        method, smoothing = METHODS[self.method], self.smoothing
        if not smoothing.sigma:
            if smoothing != Smoothing():
                raise _refusal("smoothing.sigma", "more than 0, if images are to pass as noisy copies")
            return
        if method.oracle == "none" or method.split:
            raise _refusal("smoothing", f"nothing: Smooth-AT is no variant of method {self.method}")
        if self.objective.lambda_:
            raise _refusal("objective.lambda", "0: Smooth-AT has no clean loss")
        if self.objective.regulariser != "loss":
            raise _refusal("objective.regulariser", "loss: Smooth-AT is not defined with another")
        if smoothing.copies % smoothing.workers:
            raise _refusal(
                "smoothing.workers", f"a number that divides smoothing.copies = {smoothing.copies} evenly"
            )
        if smoothing.workers > 1 and self.data.corrupt != "stop":
            raise _refusal("data.corrupt", "stop: smoothing.workers that share a batch must read all of it")

    def _check_concurrent(self) -> None:
        method, concurrent = METHODS[self.method], self.concurrent
        if self.virtual_workers > 1 and (concurrent.place, concurrent.halves) != ("beside", "together"):
            raise _refusal("virtual_workers", "1: the workers of a batch divide its work among them")
        if not method.split:
            if concurrent.delay or concurrent.model_copy(update={"delay": None}) != Concurrent():
                raise _refusal("concurrent", f"nothing: method {self.method} attacks with current weights")
            if self.attack.branch == "adversarial":
                raise _refusal("attack.branch", f"nothing: method {self.method} has one batch norm")
            if self.objective.combine != Objective().combine:
                raise _refusal("objective.combine", "nothing: it is for methods disadv and conadv")
            return
        if self.objective.lambda_:
            raise _refusal(
                "objective.lambda", f"0: objective.combine weighs the losses of method {self.method}"
            )
        if self.method == "disadv" and concurrent.delay:
            raise _refusal("concurrent.delay", "0, or nothing: method disadv attacks with current weights")
        if self.attack.batch_norm == "eval" and self.delay:
            raise _refusal(
                "attack.batch_norm", "train, or nothing: running statistics are not those of stale weights"
            )
        if concurrent.place == "workers" and not self.delay:
            raise _refusal("concurrent.place", "beside: without delay the update waits for its examples")
        if concurrent.update_workers and concurrent.place != "workers":
            raise _refusal("concurrent.update_workers", "nothing: it is for concurrent.place workers")

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

    @property
    def delay(self) -> int:
        """tau: how many steps old the weights are that a batch is attacked with."""
        given = self.concurrent.delay
        return METHODS[self.method].delay if given is None else given

    @property
    def labelled_batch(self) -> int:
        """Images with labels of their own in a worker's batch."""
        if self.data.unlabelled is None:
            return self.batch_size
        return self.batch_size - round(self.batch_size * self.data.unlabelled_part)

    @property
    def _beta(self) -> float | None:
        return _or(self.objective.beta, 6.0) if self.objective.regulariser == "trades" else None

    @property
    def copies(self) -> int:
        """N: times that an image passes the network in a step, as noisy copies; 1 without smoothing."""
        return self.smoothing.copies if self.smoothing.sigma else 1

    @property
    def passes(self) -> int:
        """Of these, those of one worker."""
        return self.copies // self.smoothing.workers

    @property
    def weights_of_cost(self) -> tuple[float, float]:
        """Of the clean and the adversarial loss in the local cost."""
        if METHODS[self.method].split:
            weight = 0.5 if self.objective.combine == "mean" else 1.0
            return weight, weight
        if self._beta is not None:
            return 1.0, self._beta
        return (1.0, 0.0) if self.oracle == "none" else (self.objective.lambda_, 1.0)

    def resolved(self) -> Job:
        """The same job with every setting that was left out filled in."""
        method = METHODS[self.method]
        steps = self.attack.steps or (1 if method.oracle == "fgsm" else 10)
        factor = 2.5 / steps if method.oracle != "fgsm" else 1.0 if method.split else 1.25
        attack = self.attack.model_copy(
            update={
                "steps": steps,
                "step_size": _or(self.attack.step_size, factor * self.attack.eps),
                "batch_norm": self.attack.batch_norm or ("train" if method.split else "eval"),
                "branch": self.attack.branch or ("adversarial" if method.split else "clean"),
            }
        )
        eps = _or(self.evaluation.eps, attack.eps)
        evaluation = self.evaluation.model_copy(update={"eps": eps})
        if evaluation.step_size is None:
            evaluation = evaluation.with_usual_step_size(eps=eps, steps=evaluation.steps)
        trained_with = [self.smoothing.sigma] if self.smoothing.sigma else [0.12, 0.25]
        certification = self.certification.model_copy(
            update={"sigma": self.certification.sigma or trained_with}
        )
        name = self.optimizer.name or method.optimizers[0]
        return self.model_copy(
            update={
                "attack": attack,
                "objective": self.objective.model_copy(update={"beta": self._beta}),
                "concurrent": self.concurrent.model_copy(update={"delay": self.delay}),
                "evaluation": evaluation,
                "certification": certification,
                "optimizer": self.optimizer.model_copy(update={"name": name}),
            }
        )


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _refusal(key: str, expected: str) -> PydanticCustomError:
    return PydanticCustomError("job", "{expected}", {"key": key, "expected": expected})
