"""The sections of a job: name, default, unit, range and meaning of every setting."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from hpcdat.config.loaders import installed_loader
from hpcdat.config.paths import ExpandedName, ExpandedPath
from hpcdat.config.progressive_resizing import Stages, size_in_epoch
from hpcdat.config.scalars import as_plain
from hpcdat.config.settings import Settings

Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, allow_inf_nan=False)]
MAY_CHANGE = "may change when a run resumes"
"""Marks settings that do not affect what training computes: they may change when a run resumes."""
UserCode = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.-]*$")]
"""``MODULE:CALLABLE`` of the user's own, or ``LIBRARY:NAME``."""
LIBRARIES = ("torchvision", "timm")
"""What ``LIBRARY:NAME`` takes a network from; other names before a colon are modules of the user's own."""
Norm = Literal["linf", "l2"]
Bits = Literal[1, 2, 3, 4, 5, 6, 7, 8, 16, "float16", 32]


def by_name(settings: Settings, prefix: str = "", *, may_change: bool = False) -> dict[str, tuple[Any, bool]]:
    """Settings by dotted name: the value, and whether it may change when a run resumes."""
    named: dict[str, tuple[Any, bool]] = {}
    for name, field in type(settings).model_fields.items():
        key, value = prefix + (field.alias or name), getattr(settings, name)
        may = may_change or MAY_CHANGE in field.metadata
        inner = isinstance(value, Settings)
        named |= by_name(value, f"{key}.", may_change=may) if inner else {key: (value, may)}
    return named


class Data(Settings):
    """Where images come from and how a worker reads them."""

    source: Literal["digits", "folder", "shards", "cifar10", "cifar100", "huggingface"] | UserCode = "folder"
    """`folder`: one's own images; `shards`: images in tar files, which `hpcdat pack` or WebDataset has made;
    `cifar10` and `cifar100`: the official batches; `digits`: scikit-learn's digits, written to `root` if not
    there; `huggingface`: what the library `datasets` reads; or `MODULE:CALLABLE` of one's own, called as
    callable(root=..., **options), without `root` if that is not set, which returns two map-style data sets,
    for training and test (docs/start/own-images.md)"""
    options: Annotated[dict[str, Any], AfterValidator(as_plain)] = {}
    """`MODULE:CALLABLE`: further arguments of the callable, by name"""
    root: Annotated[ExpandedPath | None, MAY_CHANGE] = None
    """for `folder`, holds train/CLASS/*.jpg and test/CLASS/*.jpg; for `shards`, train/*.tar and test/*.tar;
    for CIFAR, cifar-10-batches-py or cifar-100-python; for `huggingface`, image folders, Parquet files or
    what `save_to_disk` wrote; left out: a folder of the user's cache (not with `folder` and `shards`)"""
    download: Annotated[bool, MAY_CHANGE] = False
    """download CIFAR's official batches, or the data set `hub`, into `root` if they are missing"""
    train: ExpandedName = "train"
    """`folder`, `shards`: sub-folder of `root` that is trained on; `huggingface`: split"""
    test: ExpandedName = "test"
    """`folder`, `shards`: sub-folder of `root` that is evaluated on; `huggingface`: split"""
    hub: str | None = None
    """`huggingface`: OWNER/NAME of a data set on the Hugging Face Hub, read from its copy below `root` (left
    out: the library's cache), where `download: true` puts it"""
    image_column: str | None = None
    """`huggingface`: column of the images, if there are several"""
    label_column: str | None = None
    """`huggingface`: column of the labels, if there are several"""
    test_fraction: float | None = Field(None, gt=0, lt=1)
    """evaluate on this share of the images of each class in `train`, which are not trained on; for
    images without a folder `test`. `MODULE:CALLABLE` then returns one data set"""
    test_seed: int = Field(0, ge=0, lt=2**32)
    """`test_fraction`: seed that chooses those images; they do not depend on the job's `seed`, so that runs
    with several seeds are evaluated on the same images"""
    train_images: int | None = Field(None, ge=1)
    """train on this many images, equally many of each class; default: all"""
    test_images: int | None = Field(None, ge=1)
    """evaluate on this many images, equally many of each class; default: all"""
    unlabelled: ExpandedPath | None = None
    """file of pseudo-labelled images to mix into training batches: the .npz of `hpcdat pseudo-label`, or the
    pickle of Carmon et al. 2019"""
    unlabelled_part: float = Field(0.5, gt=0, lt=1)
    """share of such images in every batch, to the nearest image; an epoch is a pass over the labelled ones"""
    split: Literal["workers", "nodes", "own"] = "workers"
    """`workers`: any worker may read any image; `nodes`: each node keeps its own part of the
    images, as in the DAT paper; `own`: each worker does, as in the ConAdv paper"""
    last_batch: Literal["drop", "short"] = "drop"
    """images left at the end of an epoch, fewer than a global batch: left out (`drop`), or a smaller batch
    of their own at the full learning rate (`short`)"""
    corrupt: Annotated[Literal["stop", "skip"], MAY_CHANGE] = "stop"
    """an image that cannot be read, or is in another format than JPEG, PNG, GIF, BMP, PNM, TIFF and WebP:
    `stop` the run, or `skip` the image, which is reported and counted"""
    loader: Literal["dali", "torchvision", "device"] = Field(default_factory=installed_loader)
    """`dali`: NVIDIA DALI, the default where it is installed; `torchvision`, otherwise the default: its
    transforms, after Pillow's decoders; `device`: keeps all images in GPU (or CPU) memory and shifts and
    flips them there; they must have one size"""
    stage: Annotated[ExpandedPath | None, MAY_CHANGE] = None
    """`folder`, `shards`: folder on a disk of the node, such as $SLURM_TMPDIR, that the images a node reads
    again and again are copied to before training; a later run finds them there"""
    stage_keep: Annotated[bool, MAY_CHANGE] = True
    """whether these copies stay when the run has finished"""
    threads: Annotated[int, MAY_CHANGE] = Field(2, ge=1)
    """threads a worker reads and decodes images with"""
    image_size: int = Field(224, ge=1)
    """height and width of an image as the model sees it, pixels"""
    channels: Literal[1, 3] = 3
    """1 for grey (images in colour are converted), 3 for colour"""
    augmentation: Literal["none", "crop-flip", "pad-crop"] = "none"
    """in training, `crop-flip`: random resized crop and flip (ImageNet); `pad-crop`: shifts by up to
    4 pixels and flip (CIFAR); otherwise resize and centre crop"""
    policy: Literal["none", "autoaugment"] = "none"
    """`autoaugment`: in training, after crop and flip, AutoAugment's policy for ImageNet (Cubuk et al.
    2019), carried out by the loader's own operations; for images in colour"""
    mixing: Literal["none", "mixup", "cutmix"] = "none"
    """in training, each image of a batch and its label mixed with another's: `mixup`, a weighted mean
    (Zhang et al. 2018); `cutmix`, a rectangle of the other (Yun et al. 2019)"""
    mixing_alpha: float = Field(1.0, gt=0, le=100)
    """both parameters of the Beta distribution of the proportion, drawn once for each batch"""
    progressive_resizing: Stages = []
    """[[EPOCH, SIZE], ...]: from each of these epochs on, counted from 1 and with those of the extra warm-up,
    training images are resized to this height and width after all augmentation; the last size must be
    `image_size`, at which images are evaluated. Left out: always `image_size`"""

    def training_size(self, epoch: int) -> int:
        """Height and width of training images after so many epochs, pixels."""
        return size_in_epoch(self.progressive_resizing, epoch, self.image_size)

    @property
    def training_sizes(self) -> list[int]:
        """All sizes of training images, the smallest first, pixels."""
        return sorted({size for _, size in self.progressive_resizing} or {self.image_size})

    @property
    def is_user_code(self) -> bool:
        """Whether the data sets are made by a ``MODULE:CALLABLE`` of the user's own."""
        return ":" in self.source

    @property
    def has_folders(self) -> bool:
        """Whether the user's own images are in folders ``train`` and ``test`` of ``root``."""
        return self.source in ("folder", "shards")

    @property
    def holds_items(self) -> bool:
        """Whether the images are items of data sets, which are read one by one."""
        return self.is_user_code or self.source == "huggingface"


class Model(Settings):
    """The model. Normalisation is its first layer, so attacks work on pixels in [0, 1]."""

    name: Literal["digits-cnn", "preact-resnet18", "wide-resnet28-10", "resnet50"] | UserCode = "resnet50"
    """`digits-cnn`: a small model for 8x8 images; `preact-resnet18` and `wide-resnet28-10`: for CIFAR;
    `resnet50`: torchvision's, for ImageNet; `torchvision:NAME` or `timm:NAME` (pip install timm), such as
    torchvision:swin_t; `MODULE:CALLABLE` of one's own, beside the job file or on Python's path: a function
    (num_classes, in_channels, **options) that returns a module from normalised images to logits"""
    options: Annotated[dict[str, Any], AfterValidator(as_plain)] = {}
    """`torchvision:NAME`, `timm:NAME`, `MODULE:CALLABLE`: further arguments of the network, by name, such as
    {dropout: 0.1}, or {img_size: 32} of timm's ViT"""
    width: float = Field(1.0, gt=0, le=4)
    """factor on the number of channels of all layers, for `preact-resnet18` and `wide-resnet28-10`"""
    pretrained: ExpandedPath | None = None
    """initial weights: a run's folder or checkpoint, or a state dictionary, .safetensors or .pth, in
    torchvision's, timm's or one's own names; a head with other classes is initialised at random"""
    pretrained_averaged: bool = False
    """take the averaged weights (EMA, SWA) of `pretrained`, which must have them"""
    mean: list[Finite] = [0.485, 0.456, 0.406]
    """mean of each channel that the normalisation layer subtracts, [0, 1] units"""
    std: list[Annotated[Finite, Field(gt=0)]] = [0.229, 0.224, 0.225]
    """standard deviation of each channel that the normalisation layer divides by"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16`: faster on devices that have it; weights, losses, pixels and exchange stay float32"""
    channels_last: bool = False
    """store activations with channels last, which is faster on GPUs with `bfloat16`"""
    batch_norm: Literal["local", "synchronised"] = "local"
    """training normalises with a worker's own batch (`local`, as in the papers) or all (`synchronised`)"""
    compiled: bool = False
    """train full batches with torch.compile, which takes a minute or two at the start. It rounds differently,
    and delivers all gradients at its end, so no exchange can overlap it"""


class Attack(Settings):
    """The inner maximisation oracle of (A1) while training."""

    name: Literal["pgd", "n-fgsm"] = "pgd"
    """`pgd`: projected gradient ascent, with one step FGSM; `n-fgsm`: FGSM from noise of 2 eps, without
    projection onto the ball, meant against catastrophic overfitting (de Jorge et al. 2022)"""
    norm: Norm = "linf"
    """norm of the ball of perturbations"""
    eps: Fraction = 8 / 255
    """radius of the ball, [0, 1] units; may be written 8/255"""
    steps: int | None = Field(None, ge=1)
    """gradient steps; left out: 10 for PGD, 1 for FGSM (the only value FGSM takes)"""
    step_size: Fraction | None = None
    """step size, [0, 1] units; left out: 2.5 eps / steps for PGD, 1.25 eps for FGSM, eps for `n-fgsm`,
    `disadv` and `conadv`"""
    direction: Literal["steepest", "gradient"] = "steepest"
    """`steepest`: ascent of the norm, for linf the sign of the gradient; `gradient`: `step_size` times the
    gradient itself, as eq. (3) of ConAdv has it"""
    random_start: bool = True
    """start from a uniform random point of the ball"""
    noise: float | None = Field(None, ge=0, le=10)
    """radius of the ball of random starts, in multiples of eps; left out: 1, for `n-fgsm` 2"""
    projection: bool | None = None
    """keep perturbed images in the ball of radius eps; left out: true, for `n-fgsm` false. They always stay
    within [0, 1]"""
    batch_norm: Literal["eval", "train"] | None = None
    """batch-norm statistics during the attack: running (eval) or the batch's own (train); left out: eval,
    for `disadv` and `conadv` train"""
    branch: Literal["clean", "adversarial"] | None = None
    """`disadv`, `conadv`: the batch norm that the attack uses; left out: adversarial"""
    fold_batch_norm: bool = True
    """with `batch_norm: eval`, attack with batch norm folded into the convolutions, where the network allows
    it, which is faster and rounds differently; not with `model.compiled`. Runs from before there was this
    setting resume with `false`"""


class Objective(Settings):
    """The local cost f_i of eq. (2)."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """share of the target that is spread evenly over all classes in the cost; the attack maximises the loss
    without smoothing"""
    regulariser: Literal["loss", "trades"] = "loss"
    """phi: `loss` of the perturbed image; `trades`: divergence between the outputs for it and for the image
    itself, in addition to the clean loss (Zhang et al. 2019)"""
    beta: float | None = Field(None, ge=0, allow_inf_nan=False)
    """`trades`: weight of the divergence; left out: 6; 0 is plain training"""
    lambda_: float = Field(0.0, alias="lambda", ge=0, allow_inf_nan=False)
    """weight of the clean loss added to the robustness regulariser; 0 is AT's eq. (1)"""
    combine: Literal["mean", "sum"] = "mean"
    """`disadv`, `conadv`: of the clean and the adversarial loss, `mean` as eq. (4) of ConAdv, or `sum` as
    its eq. (2)"""


class Smoothing(Settings):
    """Smooth-AT, adversarial training of a smoothed classifier: Salman et al. 2019, DAT's Table 2."""

    sigma: float = Field(0.0, ge=0, allow_inf_nan=False)
    """standard deviation of the Gaussian noise, [0, 1] units; 0: no noise, no copies"""
    copies: int = Field(2, ge=1)
    """N: noisy copies of each image, which share its perturbation"""
    workers: int = Field(1, ge=1)
    """workers that share a batch and divide its copies equally; the global batch counts it once"""


class Concurrent(Settings):
    """When and where adversarial examples are made: ConAdv, Sec. 3.3 and Algorithm 1."""

    delay: int | None = Field(None, ge=0)
    """tau: steps between the attack on a batch and its update; left out: 1, for `disadv` 0. The first tau
    batches of an epoch are attacked with the weights at its start"""
    place: Literal["beside", "workers"] = "beside"
    """`beside`: every worker attacks its own batches; on a GPU in a second stream during the update, on a
    CPU during the exchange of gradients; `workers`: dedicated attack workers make the examples and send
    them"""
    update_workers: int | None = Field(None, ge=1)
    """`workers`: batches that one attack worker serves; left out: the largest number up to 3 that divides the
    workers evenly"""
    halves: Literal["together", "apart"] = "together"
    """`together`: one worker computes both halves of a batch's cost; `apart`: two workers compute one half
    each"""


class Optimizer(Settings):
    """The outer minimisation oracle of (A4)."""

    name: Literal["lamb", "lalr-momentum", "sgd", "lars"] | None = None
    """`lamb`: LALR, eq. (3), over Adam; `lalr-momentum`: eq. (3) over momentum; `sgd`: with momentum;
    `lars`: layer-wise rates inside momentum (You et al. 2017); left out: what `method` asks for"""
    lr: float = Field(gt=0, allow_inf_nan=False)
    """learning rate eta before warm-up and decay; with `dat-lsgd`, for every 256 of the global batch"""
    weight_decay: float = Field(1e-4, ge=0, allow_inf_nan=False)
    """coefficient of the decay added to the descent direction"""
    exclude: Literal["none", "vectors"] | None = None
    """`none`: every parameter tensor is decayed and has a layer-wise rate, as in eq. (3) and DAT's public
    code; `vectors`: those of one dimension, biases and batch norm, are not decayed and take the plain rate;
    left out: `none`, with `lars` `vectors`, as in ConAdv's public code (its paper does not say)"""
    momentum: float = Field(0.9, ge=0, lt=1)
    """momentum of `lalr-momentum`, `sgd` and `lars`"""
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
    float32 inside a node, `across` between nodes; `auto`: measure the links at the start and choose the
    fastest protocol, `bits` and `bucket_mb`"""
    across: Literal["ring", "allgather", "parameter_server", "sharded_server"] = "ring"
    """`hierarchical`: the protocol between nodes"""
    bits: Bits = 32
    """bits of a coordinate, sign included: codes of the quantizer (A5), (A6); 32: float32, nothing lost"""
    bits_allowed: Annotated[list[Bits], Field(min_length=1)] = [32, 8]
    """`auto`: the bits to choose from; fewer are chosen only where they save a tenth of the time"""
    two_sided: bool = False
    """quantise the sum as well (step 7); server protocols only; with `auto`: allow it"""
    sum_format: Literal["float32", "bfloat16"] = "float32"
    """format in which a server sends the sum in a one-sided exchange"""
    norm: Literal["max", "l2"] = "max"
    """norm that the levels divide: the largest magnitude, or the paper's l2"""
    block: Annotated[int, Field(ge=8)] | Literal["bucket", "tensor"] = 512
    """coordinates that share a norm: a number, a whole bucket, or a parameter tensor"""
    levels: int | None = Field(None, ge=1)
    """s of (A6): levels of each sign; left out: 2^(bits - 1) - 1, the most that fit in `bits` bits with the
    sign"""
    lane_bits: int | None = Field(None, ge=2, le=32)
    """`ring`: bits of a lane, which must hold the sum of all workers' codes; levels are reduced to fit.
    Default: wide enough for all levels"""
    exact: list[str] = []
    """names of parameters that stay in float32, with * and ?"""
    exact_1d: bool = True
    """biases and batch norm (tensors of one dimension) stay in float32 as well; false: they are quantised
    like all others, as in the DAT authors' public code"""
    rounding: Literal["independent", "correlated"] = "independent"
    """random numbers of the workers' codes: `independent`, as in the papers, or `correlated`, so that their
    rounding errors cancel in the sum"""
    rotation: Literal["none", "hadamard"] = "none"
    """`hadamard`: rotate each block before it is coded, so that a few large coordinates do not make all steps
    of their block coarse; with `norm: max` and a `block` that is a power of two"""
    error_feedback: bool = False
    """add the rounding error of a message to the next one"""
    bucket_mb: float = Field(25.0, gt=0)
    """MiB of gradients that are exchanged together"""
    overlap: bool = True
    """exchange buckets while the backward pass still computes others"""

    @property
    def between_nodes(self) -> str:
        """The protocol that crosses the network: `across` if hierarchical, otherwise `protocol`."""
        return self.across if self.protocol == "hierarchical" else self.protocol

    def lane_levels(self, senders: int) -> int | None:
        """Largest s whose sum over this many senders fits in `lane_bits`; None without that limit."""
        return (2**self.lane_bits - 1) // (2 * senders) if self.lane_bits else None

    def levels_among(self, senders: int) -> int | None:
        """s: levels per sign for this number of senders; None without codes or with 1 bit."""
        if self.bits in (1, 32, "float16"):
            return None
        full = self.levels or 2 ** (int(self.bits) - 1) - 1
        return min(full, self.lane_levels(senders) or full)

    def describe(self) -> str:
        """Protocol and bits: ``ring, 32 bits`` or ``sharded_server, 8 bits two-sided``."""
        protocol: str = self.protocol
        if protocol == "hierarchical":
            protocol += f" ({self.across})"
        bits = self.bits if self.bits == "float16" else f"{self.bits} bits"
        return f"{protocol}, {bits}{' two-sided' if self.two_sided else ''}"


class Schedule(Settings):
    """The learning rate over the epochs."""

    name: Literal["piecewise", "cyclic", "polynomial"] = "piecewise"
    """`piecewise`: constant between decays; `cyclic`: linear up to the rate and down to 0 (Fast AT);
    `polynomial`: down to 0 as (1 - t/T)^power"""
    warmup_epochs: int = Field(0, ge=0)
    """linear warm-up over the first W of the `epochs`; not with `cyclic`"""
    warmup_by: Literal["epoch", "step"] = "epoch"
    """`epoch`: epoch k of W warm-up epochs runs at k/W of the rate (DAT); `step`: the rate grows with every
    step"""
    warmup_start: float | None = Field(None, ge=0, le=1)
    """share of the rate that the first step of a warm-up by step has; 0: step i = 1..n of it has i/n of the
    rate; left out: 0, with `dat-lsgd` the share that makes it `lr`, for any number of workers"""
    extra_warmup_epochs: int | None = Field(None, ge=0)
    """linear warm-up in front of `epochs`; decays count from its end. Left out: 5 with `dat-pgd` and
    `dat-fgsm` at rates above 0.2 (DAT, supplement 4.1) without `warmup_epochs` and `cyclic`, else 0"""
    decay_epochs: list[Annotated[int, Field(ge=1)]] = []
    """`piecewise`: epochs done when the rate is multiplied by `decay_factor`"""
    decay_factor: float = Field(0.1, gt=0, le=1)
    """`piecewise`: factor of a decay"""
    peak_epoch: float | None = Field(None, gt=0)
    """`cyclic`: epochs done when the rate is highest; left out: 40 % of `epochs`"""
    power: float = Field(2.0, gt=0)
    """`polynomial`: exponent of the decay"""


class EarlyStopping(Settings):
    """Which weights are the result, and when training ends early; all workers decide together."""

    best_weights: bool = False
    """the result is the weights with the highest RA among the evaluations during training (see
    `evaluation.every`), as in Rice et al. 2020; `false`: the last weights, unless `patience` is set"""
    patience: int | None = Field(None, ge=1)
    """end training after this many evaluations in a row without a higher RA; implies `best_weights`; left
    out: train all epochs"""
    held_out: int = Field(0, ge=0)
    """training images held out for the evaluations during training, equally many of each class; 0: those
    evaluations, and the choice of the weights, use the test images"""
    fgsm_guard: bool = True
    """with FGSM, except for `disadv` and `conadv`: end training, and return to the weights of the epoch
    before, if robust accuracy on 256 training images collapses (catastrophic overfitting)"""

    @property
    def chooses_weights(self) -> bool:
        """Whether the result is the best of the evaluated weights, not the last ones."""
        return self.best_weights or self.patience is not None
