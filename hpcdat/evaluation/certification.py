"""Certified robustness by randomised smoothing: Cohen et al. 2019, and Table 2 of the DAT paper.

The smoothed classifier g(x) = argmax_c P(f(x + eta) = c), eta ~ N(0, sigma^2 I), says the same within an l2
ball around x whose radius follows from how sure it is. What is sampled around an image are counts; bound
and radius follow from them afterwards, so that the counts serve any alpha.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, norm
from torch import Tensor, nn

from hpcdat.cluster.agreement import fingerprint
from hpcdat.cluster.stopping import StopRequest
from hpcdat.cluster.workers import Workers
from hpcdat.data import Loader
from hpcdat.data.images import Images
from hpcdat.errors import InputError, Stopped
from hpcdat.files import append_text, write_text
from hpcdat.job import Certification, Job
from hpcdat.progress import Progress
from hpcdat.seeds import derive

Floats = NDArray[np.float64]


def lower_bound(count: ArrayLike, n: int, alpha: float) -> Floats:
    """The one-sided lower confidence bound of a probability: Clopper and Pearson 1934, exact.

    Whatever the probability p, the bound of a binomial (n, p) count is greater than p with a probability
    of at most alpha.

    Args:
        count: successes, whole numbers in [0, n].
        n: trials, >= 1.
        alpha: in (0, 1).

    Returns:
        Bounds in [0, 1), of count's shape: the p at which so many successes or more have probability alpha.
    """
    count = np.asarray(count)
    # Of no success at all the bound is 0, where the beta distribution is not defined.
    return np.where(count > 0, beta.ppf(alpha, np.maximum(count, 1), n - count + 1), 0.0)


def certified_radius(count: ArrayLike, n: int, alpha: float, sigma: float) -> Floats:
    """R = sigma Phi^-1(p_A): Theorem 1 of Cohen et al. 2019 with p_B = 1 - p_A, as CERTIFY has it.

    Args:
        count: of the n samples, those of class A; whole numbers in [0, n].
        n, alpha: as for :func:`lower_bound`, which gives p_A.
        sigma: standard deviation of the noise, [0, 1] units, > 0.

    Returns:
        l2 radii, [0, 1] units, >= 0, of count's shape; NaN where p_A < 1/2, when CERTIFY abstains.
    """
    p_a = lower_bound(count, n, alpha)
    return np.where(p_a >= 0.5, sigma * norm.ppf(p_a), np.nan)


def largest_radius(n: int, alpha: float, sigma: float) -> float:
    """Of an image whose n samples are all of one class: sigma Phi^-1(alpha^(1/n))."""
    return float(certified_radius(n, n, alpha, sigma))


@dataclass(frozen=True)
class Counts:
    """What was sampled around one image.

    Attributes:
        image: its position among the test images.
        label: its class.
        top: class A, that of most of the n0 samples.
        count: of n fresh samples, those of class A.
    """

    image: int
    label: int
    top: int
    count: int


@dataclass(frozen=True)
class Certified:
    """The certificates of a list of images at one noise level.

    Attributes:
        sigma: standard deviation of the noise, [0, 1] units.
        n0, n: samples of the selection and of the estimate.
        alpha: probability with which a certificate may be wrong, each for itself.
        counts: of the images, in their order; those that cannot be read are not among them.
    """

    sigma: float
    n0: int
    n: int
    alpha: float
    counts: Sequence[Counts]

    @property
    def radii(self) -> Floats:
        """Certified l2 radius of each image, (N,); NaN where the classifier abstains."""
        return certified_radius([c.count for c in self.counts], self.n, self.alpha, self.sigma)

    @property
    def correct_radii(self) -> Floats:
        """The same, (N,), but -1 where it abstains or is wrong."""
        right = np.array([c.top == c.label for c in self.counts])
        return np.where(right & ~np.isnan(self.radii), self.radii, -1.0)

    @property
    def abstained(self) -> int:
        """Images of which it says nothing."""
        return int(np.isnan(self.radii).sum())

    @property
    def average_radius(self) -> float:
        """Mean certified radius, counting 0 where it abstains or is wrong (ACR; Zhai et al. 2020)."""
        return float(self.correct_radii.clip(min=0).mean())

    def accuracy(self, radius: float) -> float:
        """CA of Table 2, in [0, 1]: images that are classified right, certified to a radius or beyond."""
        return float((self.correct_radii >= radius).mean())


class SmoothedClassifier:
    """g(x) = argmax_c P(f(x + eta) = c) with eta ~ N(0, sigma^2 I); noisy images are not clipped.

    Noise is a function of seed, image and batch of samples, so that it matters not who samples; a GPU draws
    other numbers than a CPU.

    Args:
        base: f, from images (N, C, H, W) to logits (N, classes), in evaluation mode.
        sigma: [0, 1] units, > 0.
        classes: number of logits.
        batch_size: samples at a time, >= 1.
        seed: the job's.
    """

    def __init__(self, base: nn.Module, sigma: float, *, classes: int, batch_size: int, seed: int) -> None:
        self.base, self.sigma, self.classes = base, sigma, classes
        self.batch_size, self.seed = batch_size, seed

    def certify(self, x: Tensor, *, n0: int, n: int, image: int) -> tuple[int, int]:
        """The sampling of CERTIFY (Cohen et al. 2019, Sec. 3.2.2).

        Args:
            x: one image, (C, H, W).
            n0: samples that choose class A; of classes with equally many the first.
            n: other samples, by which its probability is estimated.
            image: a number that stands for x.

        Returns:
            Class A, and how many of the n samples are of it.
        """
        top = int(self.sample(x, n0, "selection", image).argmax())
        return top, int(self.sample(x, n, "estimate", image)[top])

    @torch.inference_mode()
    def sample(self, x: Tensor, n: int, purpose: str, image: int) -> Tensor:
        """SAMPLEUNDERNOISE: how many of n noisy images are put in each class, int64 (classes,)."""
        generator = torch.Generator(x.device)
        counts = torch.zeros(self.classes, dtype=torch.int64, device=x.device)
        for number, start in enumerate(range(0, n, self.batch_size)):
            generator.manual_seed(derive(self.seed, f"certification {purpose}", image, number))
            shape = (min(self.batch_size, n - start), *x.shape)
            noise = torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device)
            logits = self.base(noise.mul_(self.sigma).add_(x))
            counts += torch.bincount(logits.argmax(1), minlength=self.classes)
        return counts


class CountsFile:
    """The counts of images that are done, a line each behind one that says of what they are.

    A line is appended when it is known and never changed, so that a kill leaves whole lines and at most a
    part of one. Only worker 0 reads and writes.

    Args:
        path: of the file.
        heading: what the counts depend on; JSON values.
    """

    def __init__(self, path: Path, heading: Mapping[str, Any]) -> None:
        self.path, self.heading = path, heading

    def take_up(self) -> list[Counts]:
        """What is there; the file is made if it is not, and a part of a line cut off.

        Raises:
            InputError: the file is damaged.
            OSError: it could not be written; names the file.
        """
        self.path.parent.mkdir(exist_ok=True)
        held = self.path.read_bytes() if self.path.exists() else b""
        whole = held.rfind(b"\n") + 1
        if not whole:
            write_text(self.path, json.dumps(self.heading) + "\n")
            return []
        if whole < len(held):
            os.truncate(self.path, whole)
        try:
            return [Counts(**json.loads(line)) for line in held[:whole].decode().splitlines()[1:]]
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.path} is damaged ({error}): without it all is done anew") from None

    def append(self, counts: Iterable[Counts]) -> None:
        """Add some; they are on disk when this returns.

        Raises:
            OSError: they could not be written; names the file.
        """
        append_text(self.path, "".join(json.dumps(asdict(c)) + "\n" for c in counts))


def counts_file(folder: Path, job: Job, model: nn.Module, images: Images, sigma: float) -> CountsFile:
    """The file of a noise level, named after all that its counts depend on.

    That is the network, the images, the samples and the seed, but neither alpha nor which of the images
    are wanted, nor who samples.

    Args:
        folder: of such files.
        job: resolved.
        model: f.
        images: all test images.
        sigma: standard deviation of the noise, [0, 1] units.
    """
    names = [f"{Path(file).parent.name}/{Path(file).name}" for file in images.files]
    heading = {
        "sigma": sigma,
        **job.certification.model_dump(include={"n0", "n", "batch_size"}),
        "seed": job.seed,
        "precision": job.model.precision,
        **job.data.model_dump(include={"image_size", "channels", "augmentation"}),
        "images": _digest([names, images.labels]),
        "model": fingerprint(model),
    }
    return CountsFile(folder / f"counts-{sigma:g}-{_digest(heading)[:8]}.jsonl", heading)


def _digest(value: Any) -> str:
    """Of a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


class Certifier:
    """Samples around every image of a list that is not done yet, shared out among the workers.

    In each round every worker takes one image, and worker 0 adds their counts to the file, in the order of
    the images: the same bytes for any number of workers, and however often it was stopped in between.

    Args:
        loader: of the images.
        images: positions of those wanted.
        classes: number of logits.
        settings: samples and batches.
        seed: the job's.
        workers: who takes part.
        progress: shows worker 0's share.
        stop: looked at after every round.
    """

    def __init__(
        self,
        loader: Loader,
        images: Sequence[int],
        classes: int,
        settings: Certification,
        seed: int,
        workers: Workers,
        progress: Progress,
        stop: StopRequest,
    ) -> None:
        self.loader, self.images, self.classes, self.settings = loader, images, classes, settings
        self.seed, self.workers, self.progress, self.stop = seed, workers, progress, stop

    def measure(self, model: nn.Module, sigma: float, file: CountsFile) -> Certified:
        """Certificates of all images, those in the file among them.

        Args:
            model: f, equal on all workers and in evaluation mode.
            sigma: standard deviation of the noise, [0, 1] units.
            file: where the counts are kept.

        Raises:
            Stopped: a stop was asked for; what is done is in the file.
            InputError: the file is damaged, or no image can be read.
            WorkerError: the file could not be written.
        """
        workers, settings = self.workers, self.settings
        smoothed = SmoothedClassifier(
            model, sigma, classes=self.classes, batch_size=settings.batch_size, seed=self.seed
        )
        done = {c.image: c for c in self._known(file)}
        missing = [image for image in self.images if image not in done]
        rounds = range(0, len(missing), workers.size)
        mine = missing[workers.rank :: workers.size]
        read = self.loader.read([np.array([image]) for image in mine], seed=0)
        label = f"certification, sigma {sigma:g}"
        self.progress.begin(label, len(rounds))
        try:
            for number in range(len(rounds)):
                own = None
                if number < len(mine):
                    own = self._sample(smoothed, mine[number], *next(read))
                told = workers.gather([own, self.stop.wanted], "counts of the certification")
                new = [Counts(*counts) for counts, _ in told if counts]
                self._keep(file, new)
                done |= {c.image: c for c in new}
                self.progress.step()
                if any(wanted for _, wanted in told):
                    raise Stopped(
                        f"the {label}, was stopped with {len(done)} images done; the same command goes on",
                        everywhere=True,
                    )
            # The loader may tidy up behind its last batch.
            next(read, None)
        finally:
            self.progress.end()
        certified = [done[image] for image in self.images if image in done]
        if not certified:
            raise InputError(f"{label}: none of its images can be read", everywhere=True)
        return Certified(sigma, settings.n0, settings.n, settings.alpha, certified)

    def _sample(self, smoothed: SmoothedClassifier, image: int, x: Tensor, y: Tensor) -> list[int] | None:
        """The fields of an image's counts; None if it could not be read."""
        if not len(x):
            return None
        top, count = smoothed.certify(x[0], n0=self.settings.n0, n=self.settings.n, image=image)
        return [image, int(y[0]), top, count]

    def _known(self, file: CountsFile) -> list[Counts]:
        """What worker 0 finds in the file; another node may see it a moment later."""

        def take_up() -> list[tuple[int, ...]]:
            return [astuple(c) for c in file.take_up()] if self.workers.is_first else []

        known = self.workers.together("read the counts", take_up)
        return [Counts(*fields) for fields in self.workers.gather(known, "counts that are known")[0]]

    def _keep(self, file: CountsFile, new: Sequence[Counts]) -> None:
        def write() -> None:
            if self.workers.is_first:
                file.append(new)

        self.workers.together("write the counts", write)
