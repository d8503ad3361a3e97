"""Standard and robust test accuracy: TA and RA of the DAT paper, Sec. 6.1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hpcdat.cluster.apart import apart
from hpcdat.cluster.stopping import StopRequest
from hpcdat.cluster.workers import Workers
from hpcdat.data import Loader
from hpcdat.data.batches import evaluation_batches
from hpcdat.errors import InputError
from hpcdat.evaluation.measurements import attack_generator, right, withstands
from hpcdat.job import Evaluation, Job
from hpcdat.memory import enough_memory
from hpcdat.progress import Progress


@dataclass(frozen=True)
class Accuracy:
    """Counts of an evaluation.

    Attributes:
        images: images evaluated; those that cannot be read are not among them.
        correct: images classified right.
        robust: images classified right both clean and after the attack.
    """

    images: int
    correct: int
    robust: int

    @property
    def ta(self) -> float:
        """Standard test accuracy, in [0, 1]."""
        return self.correct / self.images

    @property
    def ra(self) -> float:
        """Robust test accuracy against PGD, in [0, 1]."""
        return self.robust / self.images


class Evaluator:
    """Measures TA and RA over all images of a list.

    Every worker takes its share of the batches. Batches, and the random starts drawn for them, do
    not depend on the number of workers, so the counts are those of a serial evaluation. An image
    is robust if it is classified right as it is (no perturbation is in the ball, too) and at the
    last point of the attack, from every start where there are several.

    Args:
        loader: of the images.
        count: number of images.
        settings: of the attack and the batches.
        job: for the norm of the attack and the seed.
        workers: who takes part.
        progress: shows worker 0's share.
        stop: the user's wish to stop, on any of the workers; None where it has to wait for the end.
        label: what the user sees it called.
    """

    def __init__(
        self,
        loader: Loader,
        count: int,
        settings: Evaluation,
        job: Job,
        workers: Workers,
        progress: Progress,
        stop: StopRequest | None,
        label: str = "evaluation",
    ) -> None:
        self.loader, self.settings, self.job = loader, settings, job
        self.workers, self.progress, self.stop, self.label = workers, progress, stop, label
        self.batches = evaluation_batches(count, settings.batch_size, rank=workers.rank, size=workers.size)

    def measure(self, model: nn.Module) -> Accuracy:
        """TA and RA of a model, which is equal on all workers and left in the mode it was in.

        Raises:
            Stopped: on all workers; a stop was asked for, and there is no result.
            InputError, WorkerError: on all workers; no image can be read, or something failed on one.
        """
        was_training = model.training
        model.eval()
        try:
            counts = apart(
                self.workers, f"do the {self.label}", lambda look: self._own(model, look), self.stop
            )
        finally:
            model.train(was_training)
        self.workers.sum([counts], f"counts of the {self.label}")
        if counts[0] == 0:
            raise InputError(f"{self.label}: none of its images can be read", everywhere=True)
        return Accuracy(*counts.tolist())

    def _own(self, model: nn.Module, look: Callable[[], None]) -> Tensor:
        """The sums of :meth:`_count` over this worker's share, on the CPU."""
        device = next(model.parameters()).device
        counts = torch.zeros(3, dtype=torch.int64, device=device)
        # An attack asks the model often, and takes long.
        asked = model.register_forward_pre_hook(lambda *_: look())
        self.progress.begin(self.label, len(self.batches))
        try:
            batches = self.loader.read([indices for _, indices in self.batches], seed=0)
            for (number, _), (x, y) in zip(self.batches, batches, strict=True):
                if len(x):
                    with enough_memory(self.job, "evaluation.batch_size"):
                        counts += self._count(model, x, y, attack_generator(device, self.job.seed, number))
                self.progress.step()
        finally:
            asked.remove()
            self.progress.end()
        return counts.cpu()

    def _count(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Numbers of images, of those classified right, and of robust ones: int64 (3,)."""
        correct = right(model, x, y)
        robust = withstands(model, x, y, self.settings, self.job.attack.norm, generator)
        return torch.stack([torch.tensor(len(x), device=x.device), correct.sum(), robust.sum()])
