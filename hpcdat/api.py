"""What Python programs call: training, evaluation and certification, by one worker or by all of them.

In a program that ``mpirun``, ``srun``, ``torchrun`` or ``horovodrun`` has started, every worker calls these
functions with the same arguments; they divide the work, and all workers get the same result. Any other
program is a single worker.
"""

from __future__ import annotations

import atexit
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.config.job import Job
from hpcdat.config.job_file import parse_evaluation_job, parse_job, read_job
from hpcdat.config.sections import Norm
from hpcdat.data.pixels import from_bytes
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.initialization import init_communicator
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.errors import InputError
from hpcdat.evaluation.certification.certificates import Certified
from hpcdat.evaluation.certification.certifier import certify_images
from hpcdat.evaluation.determinism import deterministic
from hpcdat.evaluation.in_memory import TensorBatches, check_images
from hpcdat.evaluation.request import EvaluationRequest
from hpcdat.evaluation.results import measure_robustness
from hpcdat.evaluation.sharded_runner import Execution
from hpcdat.models.fingerprint import fingerprint, tensor_fingerprint
from hpcdat.progress import Progress
from hpcdat.storage.run_folder import Result

STALL_TIMEOUT = 600
"""Longest wait for another worker, seconds."""


@dataclass(frozen=True)
class Robustness:
    """The accuracies of a model.

    Attributes:
        images: number of images.
        ta: standard (clean) accuracy, in [0, 1].
        ra: robust accuracy under PGD, in [0, 1].
        aa: robust accuracy under AutoAttack, in [0, 1]; None if not measured.
        aa_images: number of images that AutoAttack attacked.
        aa_version: how AutoAttack differed from its standard version, as it has to for fewer than ten
            classes; None if it did not.
        fast_bound: accuracy under a margin attack from twelve starts, in [0, 1]; None if not measured.
        warnings: of the sanity checks, such as signs of gradient masking.
    """

    images: int
    ta: float
    ra: float
    aa: float | None
    aa_images: int | None
    aa_version: str | None
    fast_bound: float | None
    warnings: tuple[str, ...]


def train(
    job: Job | Path | str | Mapping[str, Any], settings: Sequence[str] = (), *, overwrite: bool = False
) -> Result:
    """Train a job to its end, or resume it, as ``hpcdat train`` does.

    Call it from the main thread, which handles the signals that ask for a stop. In a program, call it below
    ``if __name__ == "__main__":``, since processes that read images import the program's file again.

    Args:
        job: a resolved job, the path of a job file, or the contents of one.
        settings: ``key=value`` texts that replace settings of the file.
        overwrite: discard an earlier run in the job's ``run_dir`` and restart.

    Returns:
        The result of the run, which is in its folder as well.

    Raises:
        InputError: a setting is wrong, or data or run folder cannot be used.
        WorkerError: something failed on a worker.
        Stopped: Ctrl-C or a signal asked for a stop; the same call resumes.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from hpcdat import train
        >>> with TemporaryDirectory() as folder:
        ...     result = train({
        ...         "run_dir": f"{folder}/run", "method": "dat-fgsm", "epochs": 2, "batch_size": 50,
        ...         "data": {"source": "digits", "root": f"{folder}/digits", "loader": "device",
        ...                  "image_size": 8, "channels": 1},
        ...         "model": {"name": "digits-cnn", "mean": [0.3], "std": [0.4]},
        ...         "attack": {"eps": 0.1}, "optimizer": {"lr": 0.02},
        ...     })  # doctest: +ELLIPSIS
        epoch   1/2 ...
        >>> result.ta > 0.5
        True
    """
    from hpcdat.commands.train import train as train_job

    if isinstance(job, Mapping):
        plain = json.loads(json.dumps(dict(job), default=str))
        job = parse_job(yaml.safe_dump(plain), "the job", settings)
    elif not isinstance(job, Job):
        job = read_job(Path(job), settings)
    with _stop_request() as stop:
        return train_job(job, _workers(), stop, overwrite=overwrite)


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    autoattack: int | Literal["all"] | None = None,
    fast_bound: bool = False,
    batch_size: int = 100,
    seed: int = 0,
) -> Robustness:
    """Measure standard and robust accuracy of a model in memory; all workers share the images.

    The result does not depend on the number of workers.

    Args:
        model: from images in [0, 1] to logits (N, classes), with its normalisation inside; the same on all
            workers. Its modes are restored.
        images: (N, C, H, W), floating point in [0, 1], or uint8.
        labels: (N,), of an integer type.
        eps: radius of the ball, [0, 1] units.
        norm: of the ball.
        steps: PGD steps.
        step_size: [0, 1] units; None: 2.5 eps / steps.
        restarts: random starts; an image is robust if the attack fails from all of them.
        autoattack: measure AA on so many images, equally many of each class, or on all.
        fast_bound: measure the accuracy under a margin attack from twelve random starts, too.
        batch_size: images per batch.
        seed: of the random starts.

    Raises:
        InputError: an argument is out of its range, or images and labels do not fit together.
        WorkerError: something failed on a worker.

    Example:
        >>> from hpcdat import evaluate
        >>> _ = torch.manual_seed(0)
        >>> images, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 10
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> result = evaluate(model, images, labels, eps=8 / 255, steps=10)
        >>> result.images, result.ra <= result.ta
        (20, True)
    """
    evaluation = {"eps": eps, "steps": steps, "step_size": step_size, "restarts": restarts}
    job = _job(seed, evaluation={**evaluation, "norm": norm, "batch_size": batch_size})
    request = EvaluationRequest(autoattack=autoattack, fast_bound=fast_bound)
    with _evaluated(model, images, labels) as (execution, device):
        batches = execution.workers.on_all_ranks(
            "take the images",
            lambda: TensorBatches(images, labels, _classes(model, images, device), batch_size, device),
        )
        accuracy, sections = measure_robustness(request, batches, model, job, execution, None)
    aa, bound = sections.get("autoattack"), sections.get("fast-bound")
    warnings = [warning for section in sections.values() for warning in section["warnings"]]
    return Robustness(
        accuracy.images,
        accuracy.ta,
        accuracy.ra,
        aa["aa"] if aa else None,
        aa["images"] if aa else None,
        aa["version"] if aa else None,
        bound["robust"] if bound else None,
        tuple(warnings),
    )


def certify(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    sigma: float,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    batch_size: int = 1000,
    seed: int = 0,
) -> Certified:
    """Certify a smoothed classifier in l2 by randomised smoothing (Cohen et al. 2019).

    All workers share the images; the result does not depend on the number of workers.

    Args:
        model, images, labels: as for :func:`evaluate`.
        sigma: standard deviation of the Gaussian noise, [0, 1] units.
        n0: noisy samples that choose the class.
        n: noisy samples that bound its probability.
        alpha: largest probability that the certificate of an image is wrong.
        batch_size: noisy samples per batch.
        seed: of the noise.

    Raises:
        InputError, WorkerError: as :func:`evaluate`.

    Example:
        >>> from hpcdat import certify
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> images = torch.rand(4, 1, 8, 8)
        >>> certified = certify(model, images, model(images).argmax(1), sigma=0.01, n=1000)
        >>> certified.accuracy(radius=0.0) >= certified.accuracy(radius=0.01)
        True
    """
    samples = {"sigma": [sigma], "n0": n0, "n": n, "alpha": alpha, "batch_size": batch_size}
    job = _job(seed, certification=samples)
    with _evaluated(model, images, labels) as (execution, device):
        batches = execution.workers.on_all_ranks(
            "take the images",
            lambda: TensorBatches(images, labels, _classes(model, images, device), 1, device),
        )
        return certify_images(sigma, batches, model, job, execution, None)


@cache
def _workers() -> Communicator:
    """The workers of this program, joined at the first call and left at its end."""
    workers = init_communicator(STALL_TIMEOUT)
    atexit.register(workers.close)
    return workers


@contextmanager
def _stop_request() -> Iterator[StopRequest]:
    """A request to stop that handles the signals inside the block."""
    before = {number: signal.getsignal(number) for number in StopRequest.SIGNALS}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        yield StopRequest()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in before.items():
            signal.signal(number, handler)


def _job(seed: int, **sections: dict[str, Any]) -> EvaluationJob:
    """The settings of a measurement, checked."""
    given = {"run_dir": ".", "seed": seed, "data": {"source": "digits"}, **sections}
    return parse_evaluation_job(yaml.safe_dump(given), "hpcdat")


@contextmanager
def _evaluated(model: nn.Module, images: Tensor, labels: Tensor) -> Iterator[tuple[Execution, torch.device]]:
    """The model in evaluation mode, and how it is evaluated: on the device of its parameters.

    Raises:
        InputError: these are no images, or the workers have different models, images or labels.
    """
    workers = _workers()
    workers.on_all_ranks("take the images", lambda: check_images(images))
    device = next((t.device for t in (*model.parameters(), *model.buffers())), images.device)
    hashes = [fingerprint(model), tensor_fingerprint(images), tensor_fingerprint(labels)]
    every = workers.all_gather_object(hashes, "hashes of model, images and labels")
    for what, values in zip(("model", "images", "labels"), zip(*every, strict=True), strict=True):
        if len(set(values)) > 1:
            raise InputError(
                f"{what}: not the same on all workers: load or broadcast the same on each", everywhere=True
            )
    modes = {module: module.training for module in model.modules()}
    execution = Execution(workers, Progress(shown=workers.is_rank0), None)
    model.eval()
    try:
        with deterministic(device, execution.progress.say):
            yield execution, device
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def _classes(model: nn.Module, images: Tensor, device: torch.device) -> int:
    """Number of logits of a model."""
    first = images[:1].to(device)
    logits = model(first if first.is_floating_point() else from_bytes(first))
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"model: expected logits (N, classes) for images (N, C, H, W), found {shape}")
    return logits.shape[1]
