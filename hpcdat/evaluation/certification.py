"""Certified robustness by randomised smoothing: Cohen et al. 2019, and Table 2 of the DAT paper.

The smoothed classifier g(x) = argmax_c P(f(x + eta) = c), eta ~ N(0, sigma^2 I), says the same within an l2
ball around x whose radius follows from how sure it is. What is sampled around an image are counts; bound
and radius follow from them afterwards, so that the counts serve any alpha.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, norm
from torch import Tensor, nn

from hpcdat.cluster.apart import apart
from hpcdat.cluster.stopping import StopRequest
from hpcdat.cluster.workers import Workers
from hpcdat.data import Loader
from hpcdat.data.images import Images
from hpcdat.errors import InputError
from hpcdat.evaluation.identity import identity, rounding
from hpcdat.files import append_text, digest, write_text
from hpcdat.job import Job
from hpcdat.memory import enough_memory
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

    @torch.no_grad()
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

    A worker adds a line to a part of its own as soon as it is known, so that a kill leaves whole lines and at
    most a piece of one. Worker 0 puts the parts together in the order of the images: the same bytes whoever
    sampled what, and however often it was stopped in between.

    Args:
        path: of the file.
        heading: what the counts depend on, n among it; JSON values.
        images: all test images.
    """

    def __init__(self, path: Path, heading: Mapping[str, Any], images: Images) -> None:
        self.path, self.heading, self.images = path, heading, images

    def take_up(self) -> list[Counts]:
        """What is there, put together with parts that were left; the file is made if it is not there.

        Raises:
            InputError: a file is damaged, or of something else.
            OSError: it could not be written; names the file.
        """
        self.path.parent.mkdir(exist_ok=True)
        first, *lines = self._lines(self.path) or [json.dumps(self.heading)]
        known = {c.image: c for c in self._read(self.path, first, lines)}
        parts = self._parts()
        for part in parts:
            known |= {c.image: c for c in self._read(part, first, self._lines(part))}
        if parts or not self.path.exists():
            self.put_together(known.values())
        return list(known.values())

    def append(self, counts: Counts, rank: int) -> None:
        """Add an image to a worker's part; it is on disk when this returns.

        Raises:
            OSError: it could not be written; names the file.
        """
        append_text(Path(f"{self.path}.part-{rank}"), json.dumps(asdict(counts)) + "\n")

    def put_together(self, counts: Iterable[Counts]) -> None:
        """Write all counts in the order of the images, and remove the parts.

        Raises:
            OSError: it could not be written; names the file.
        """
        ordered = sorted(counts, key=lambda c: c.image)
        lines = [json.dumps(self.heading), *(json.dumps(asdict(c)) for c in ordered)]
        write_text(self.path, "".join(f"{line}\n" for line in lines))
        for part in self._parts():
            part.unlink(missing_ok=True)

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{glob.escape(self.path.name)}.part-*"))

    def _lines(self, file: Path) -> list[str]:
        """The whole lines of a file, none if it is not there."""
        held = file.read_bytes() if file.exists() else b""
        return held[: held.rfind(b"\n") + 1].decode(errors="replace").splitlines()

    def _read(self, file: Path, first: str, lines: Sequence[str]) -> list[Counts]:
        try:
            if json.loads(first) != self.heading:
                raise ValueError("it is of something else")
            counts = [Counts(**json.loads(line)) for line in lines]
            if not all(type(value) is int for c in counts for value in astuple(c)):
                raise ValueError("something other than whole numbers")
            if not all(0 <= c.count <= self.heading["n"] for c in counts):
                raise ValueError(f"counts are not all from 0 to {self.heading['n']}")
            labels, classes = dict(enumerate(self.images.labels)), range(len(self.images.classes))
            if not all(c.label == labels.get(c.image) and c.top in classes for c in counts):
                raise ValueError("of other images or classes")
            return counts
        except (ValueError, TypeError) as error:
            raise InputError(f"{file} is damaged ({error}): without it all is done anew") from None


def counts_file(
    folder: Path, job: Job, model: nn.Module, images: Images, sigma: float, workers: Workers
) -> CountsFile:
    """The file of a noise level, named after all that its counts depend on; all workers call this together.

    That is the network, the images, the samples, the seed and what draws and rounds, but neither alpha nor
    which of the images are wanted, nor who samples.

    Args:
        folder: of such files.
        job: resolved.
        model: f.
        images: all test images.
        sigma: standard deviation of the noise, [0, 1] units.
        workers: who sample.
    """
    heading = {
        "sigma": sigma,
        **job.certification.model_dump(include={"n0", "n", "batch_size"}),
        "seed": job.seed,
        **identity(model, job, images, workers),
        **rounding(model),
    }
    return CountsFile(folder / f"counts-{sigma:g}-{digest(heading)[:8]}.jsonl", heading, images)


class Certifier:
    """Samples around every image of a list that is not done yet, shared out among the workers.

    Args:
        loader: of the images.
        images: positions of those wanted.
        classes: number of logits.
        job: resolved; its seed, and the samples and batches of its certification.
        workers: who takes part.
        progress: shows worker 0's share.
        stop: looked at between batches of samples.
    """

    def __init__(
        self,
        loader: Loader,
        images: Sequence[int],
        classes: int,
        job: Job,
        workers: Workers,
        progress: Progress,
        stop: StopRequest,
    ) -> None:
        self.loader, self.images, self.classes, self.job = loader, images, classes, job
        self.workers, self.progress, self.stop = workers, progress, stop

    def measure(self, model: nn.Module, sigma: float, file: CountsFile) -> Certified:
        """Certificates of all images, those in the file among them.

        Args:
            model: f, equal on all workers and in evaluation mode.
            sigma: standard deviation of the noise, [0, 1] units.
            file: where the counts are kept.

        Raises:
            Stopped: a stop was asked for; the images that are done are in the file.
            InputError: the file is damaged, or no image can be read.
            WorkerError: something failed on a worker.
        """
        workers, settings, label = self.workers, self.job.certification, f"certify at sigma {sigma:g}"
        smoothed = SmoothedClassifier(
            model, sigma, classes=self.classes, batch_size=settings.batch_size, seed=self.job.seed
        )
        done = {c.image: c for c in self._known(file)}
        missing = [image for image in self.images if image not in done]
        mine = missing[workers.rank :: workers.size]

        def work(look: Callable[[], None]) -> list[Counts]:
            sampled = []
            # Many batches of samples are one image.
            asked = model.register_forward_pre_hook(lambda *_: look())
            self.progress.begin(label, len(mine))
            try:
                read = self.loader.read([np.array([image]) for image in mine], seed=0)
                for image, (x, y) in zip(mine, read, strict=True):
                    if len(x):
                        with enough_memory(self.job, "certification.batch_size"):
                            top, count = smoothed.certify(x[0], n0=settings.n0, n=settings.n, image=image)
                        sampled.append(Counts(image, int(y[0]), top, count))
                        file.append(sampled[-1], workers.rank)
                    self.progress.step()
            finally:
                asked.remove()
                self.progress.end()
            return sampled

        sampled = [astuple(c) for c in apart(workers, label, work, self.stop)]
        told = workers.gather(sampled, "counts of the certification")
        new = {fields[0]: Counts(*fields) for part in told for fields in part}
        if new:
            self._keep(file, [*done.values(), *new.values()])
        done |= new
        certified = [done[image] for image in self.images if image in done]
        if not certified:
            raise InputError(f"{label}: none of its images can be read", everywhere=True)
        return Certified(sigma, settings.n0, settings.n, settings.alpha, certified)

    def _known(self, file: CountsFile) -> list[Counts]:
        """What worker 0 finds in the file; another node may see it a moment later."""

        def take_up() -> list[tuple[int, ...]]:
            return [astuple(c) for c in file.take_up()] if self.workers.is_first else []

        known = self.workers.together("read the counts", take_up)
        return [Counts(*fields) for fields in self.workers.gather(known, "counts that are known")[0]]

    def _keep(self, file: CountsFile, counts: Sequence[Counts]) -> None:
        def write() -> None:
            if self.workers.is_first:
                file.put_together(counts)

        self.workers.together("write the counts", write)
