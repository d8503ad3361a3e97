"""Which settings of a training job go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcdat.config.evaluation_job import check_radius
from hpcdat.config.methods import METHODS
from hpcdat.config.progressive_resizing import check_stages
from hpcdat.config.sections import (
    Concurrent,
    Data,
    Exchange,
    Objective,
    Schedule,
    Smoothing,
)
from hpcdat.config.settings import not_allowed, refusal

if TYPE_CHECKING:
    from hpcdat.config.job import Job


def check_job(job: Job) -> None:
    """Check that the settings of a training job agree with one another.

    Args:
        job: as read, not resolved.

    Raises:
        PydanticCustomError: two settings do not go together; names the one to change, and what it may be.
    """
    method = METHODS[job.method]
    if method.oracle == "fgsm" and job.attack.steps not in (None, 1):
        raise refusal("attack.steps", f"1: method {job.method} attacks with one step (FGSM)")
    _check_n_fgsm(job)
    check_radius("attack.eps", job.attack.norm, job.attack.eps)
    if job.optimizer.name not in (None, *method.optimizers):
        fitting = " or ".join(method.optimizers)
        raise refusal("optimizer.name", f"{fitting}: method {job.method} is defined with it")
    _check_regulariser(job)
    if method.oracle == "none" and job.objective.lambda_ != 0:
        raise refusal(
            "objective.lambda",
            "0: method plain has no robustness regulariser that the clean loss is weighed against",
        )
    if job.optimizer.c_l > job.optimizer.c_u:
        raise refusal("optimizer.c_l", f"at most optimizer.c_u = {job.optimizer.c_u:g}")
    if job.early_stopping.chooses_weights and not job.evaluation.every:
        raise refusal("evaluation.every", "1 or more: early stopping compares those evaluations")
    if job.early_stopping.held_out and not job.early_stopping.chooses_weights:
        raise refusal("early_stopping.best_weights", "true, or a patience, if images are held out")
    _check_data(job)
    _check_smoothing(job)
    _check_concurrent(job)
    _check_exchange(job)
    _check_schedule(job)
    _check_averaging(job)
    _check_batch_norm(job)


def _check_n_fgsm(job: Job) -> None:
    attack, method = job.attack, METHODS[job.method]
    if attack.name != "n-fgsm":
        return
    if method.oracle != "fgsm" or method.split:
        raise refusal("attack.name", "pgd: n-fgsm attacks with one step, as dat-fgsm does")
    if attack.norm != "linf":
        raise refusal("attack.norm", "linf: n-fgsm is defined in it")
    if not attack.random_start:
        raise refusal("attack.random_start", "true: n-fgsm starts from noise")


def _check_regulariser(job: Job) -> None:
    objective, method = job.objective, METHODS[job.method]
    if objective.regulariser == "loss":
        if objective.beta is not None:
            raise not_allowed("objective.beta", "without objective.regulariser: trades")
        return
    if method.oracle == "none" or method.split:
        raise refusal("objective.regulariser", f"loss: method {job.method} has no regulariser")
    if objective.lambda_:
        raise refusal("objective.lambda", "0: TRADES has the weights 1 and beta")
    if not job.attack.random_start:
        raise refusal("attack.random_start", "true: the divergence of TRADES is flat at the image itself")


def _check_data(job: Job) -> None:
    data = job.data
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
        raise refusal("data.unlabelled", "a file of pseudo-labelled images, as data.unlabelled_part is set")
    if data.unlabelled and not 1 <= job.labelled_batch < job.batch_size:
        raise refusal("data.unlabelled_part", f"a share that leaves images of both kinds in {job.batch_size}")
    if data.mixing == "none" and data.mixing_alpha != Data().mixing_alpha:
        raise not_allowed("data.mixing_alpha", "without data.mixing: mixup or cutmix")
    if data.mixing != "none" and job.concurrent.place == "workers":
        raise refusal("data.mixing", "none: attack workers hand over labels, not proportions of classes")
    if data.progressive_resizing:
        check_stages(data.progressive_resizing, data.image_size, job.total_epochs)
        if job.concurrent.place == "workers":
            raise refusal(
                "data.progressive_resizing", "[]: attack workers hand over images of data.image_size"
            )


def _check_smoothing(job: Job) -> None:
    method, smoothing = METHODS[job.method], job.smoothing
    if not smoothing.sigma:
        if smoothing != Smoothing():
            raise refusal("smoothing.sigma", "more than 0, as other settings of smoothing are set")
        return
    if method.oracle == "none" or method.split:
        raise not_allowed("smoothing", f"with method {job.method}")
    if job.objective.lambda_:
        raise refusal("objective.lambda", "0: Smooth-AT has no clean loss")
    if job.objective.regulariser != "loss":
        raise refusal("objective.regulariser", "loss: Smooth-AT is not defined with another")
    if smoothing.copies % smoothing.workers:
        raise refusal(
            "smoothing.workers", f"a number that divides smoothing.copies = {smoothing.copies} evenly"
        )
    if smoothing.workers > 1 and job.data.corrupt != "stop":
        raise refusal("data.corrupt", "stop: smoothing.workers that share a batch must read all of it")


def _check_concurrent(job: Job) -> None:
    method, concurrent = METHODS[job.method], job.concurrent
    if job.virtual_workers > 1 and (concurrent.place, concurrent.halves) != ("beside", "together"):
        raise refusal("virtual_workers", "1: the workers of a batch divide its work among them")
    if not method.split:
        if concurrent.delay or concurrent.model_copy(update={"delay": None}) != Concurrent():
            raise not_allowed("concurrent", f"with method {job.method}")
        if job.attack.branch == "adversarial":
            raise not_allowed("attack.branch", f"with method {job.method}, which has one batch norm")
        if job.objective.combine != Objective().combine:
            raise not_allowed("objective.combine", f"with method {job.method}, only with disadv and conadv")
        return
    if job.objective.lambda_:
        raise refusal("objective.lambda", f"0: objective.combine weighs the losses of method {job.method}")
    if job.method == "disadv" and concurrent.delay:
        raise refusal("concurrent.delay", "0: method disadv attacks with current weights")
    if job.attack.batch_norm == "eval" and job.delay:
        raise refusal("attack.batch_norm", "train: running statistics are not those of stale weights")
    if concurrent.place == "workers" and not job.delay:
        raise refusal("concurrent.place", "beside: attack workers need concurrent.delay of 1 or more")
    if concurrent.update_workers and concurrent.place != "workers":
        raise not_allowed("concurrent.update_workers", "without concurrent.place: workers")


def _check_exchange(job: Job) -> None:
    exchange = job.exchange
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
            raise refusal("exchange.levels", f"at most {most}: sign and levels share {exchange.bits} bits")
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


def _check_averaging(job: Job) -> None:
    averaging = job.averaging
    if averaging.ema is not None and averaging.swa_from is not None:
        raise refusal("averaging.swa_from", "one kind of average, ema or swa_from")
    if (averaging.swa_from or 0) > job.total_epochs:
        raise refusal("averaging.swa_from", f"at most {job.total_epochs}, the last epoch")


def _check_batch_norm(job: Job) -> None:
    if job.model.batch_norm == "local":
        return
    workers_differ = {
        "virtual_workers": (
            job.virtual_workers > 1,
            "one worker computes the batches of several",
        ),
        "concurrent.place": (job.concurrent.place == "workers", "attack workers do not train"),
        "concurrent.halves": (job.concurrent.halves == "apart", "workers train different branches"),
        "smoothing.workers": (
            job.smoothing.workers > 1,
            "several workers have copies of an image",
        ),
        "model.compiled": (job.model.compiled, "compiled code cannot wait for other workers"),
    }
    for key, (is_so, why) in workers_differ.items():
        if is_so:
            raise refusal("model.batch_norm", f"local with this {key}: {why}")


def _check_schedule(job: Job) -> None:
    schedule = job.schedule
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
    if (schedule.peak_epoch or 0) >= job.epochs:
        raise refusal("schedule.peak_epoch", f"less than epochs = {job.epochs}")
    if job.schedule.decay_epochs != sorted(set(job.schedule.decay_epochs)):
        raise refusal("schedule.decay_epochs", "epochs in increasing order, each once")
