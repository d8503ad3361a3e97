"""Some test images before and after the attack of an evaluation, with what the model says of them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import Self

from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.config.measurements import Evaluation
from hpcdat.config.sections import Norm
from hpcdat.data.images import Images
from hpcdat.evaluation.accuracy import CheckedAccuracy, PgdAccuracy
from hpcdat.evaluation.image_batches import ImageBatches
from hpcdat.evaluation.outcomes import Outcomes
from hpcdat.evaluation.pgd import PgdEvaluation, attack_generator, is_correct
from hpcdat.evaluation.sharded_runner import Execution, Measurement, open_store, run_sharded


@dataclass(frozen=True)
class Shown:
    """An image of a gallery.

    Attributes:
        label: its class.
        before, after: (C, H, W) float32 in [0, 1], without and with the perturbation.
        probabilities_before, probabilities_after: of all classes, (K,) float32.
        robust: whether it is classified correctly before and after.
    """

    label: int
    before: NDArray[np.float32]
    after: NDArray[np.float32]
    probabilities_before: NDArray[np.float32]
    probabilities_after: NDArray[np.float32]
    robust: bool


@dataclass(frozen=True)
class ShownBatch:
    """The images of a batch that a gallery shows, in order."""

    images: Sequence[Shown] = field(default=())

    def to_json(self) -> Any:
        """As a JSON value; arrays as their shapes and bytes."""
        return [{key: _packed(value) for key, value in vars(image).items()} for image in self.images]

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The inverse of :meth:`to_json`."""
        return cls([Shown(**{key: _unpacked(one) for key, one in image.items()}) for image in value])


def _packed(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    return {"shape": value.shape, "bytes": base64.b64encode(value.tobytes()).decode()}


def _unpacked(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return np.frombuffer(base64.b64decode(value["bytes"]), np.float32).reshape(value["shape"])


class _RecordedPgd(PgdEvaluation):
    """The attack, and where it ended: of a broken image where it broke, else after the last start."""

    points: Tensor

    def still_robust(
        self, model: nn.Module, x: Tensor, y: Tensor, robust: Tensor, *args: Any, **more: Any
    ) -> tuple[Tensor, Tensor]:
        left, points = super().still_robust(model, x, y, robust, *args, **more)
        self.points[robust] = points
        return left, points


class GalleryAttack(Measurement[ShownBatch]):
    """The attack of :class:`~hpcdat.evaluation.accuracy.PgdAccuracy` on whole batches, once more.

    Args:
        settings, norm, seed: as there.
        wanted: the positions to show in each batch, by its number.
    """

    name = "gallery"
    outcome = ShownBatch

    def __init__(
        self, settings: Evaluation, norm: Norm, seed: int, wanted: Mapping[int, Sequence[int]]
    ) -> None:
        self.settings = PgdAccuracy(settings, norm, seed).settings
        self.attack, self.seed, self.wanted = _RecordedPgd(settings, norm), seed, wanted

    def measure(  # noqa: D102
        self, model: nn.Module, x: Tensor, y: Tensor, number: int, *, folded: nn.Module | None = None
    ) -> ShownBatch:
        self.attack.points = x.clone()
        generator = attack_generator(x.device, self.seed, number)
        robust = self.attack.robust(model, x, y, is_correct(model, x, y), generator, folded=folded)
        with torch.no_grad():
            before, after = (model(images).softmax(1) for images in (x, self.attack.points))
        columns = [each.float().cpu().numpy() for each in (x, self.attack.points, before, after)]
        labels, verdicts = y.tolist(), robust.tolist()
        return ShownBatch(
            [
                Shown(labels[k], columns[0][k], columns[1][k], columns[2][k], columns[3][k], verdicts[k])
                for k in self.wanted[number]
            ]
        )


def choose(outcomes: Mapping[int, Outcomes], count: int) -> dict[int, list[int]]:
    """Which images to show: the first ones that the attack broke, and as many that withstood it.

    If there are fewer of one kind, there are more of the other. Images that are wrong without attack are not
    among them.

    Args:
        outcomes: of all batches, by number.
        count: number of images, at most.

    Returns:
        Positions in the batch, increasing, by the batch's number.
    """
    kinds: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for number in sorted(outcomes):
        columns = outcomes[number].columns
        for position in np.flatnonzero(columns["correct"]).tolist():
            kinds[bool(columns["robust"][position])].append((number, position))
    robust, broken = kinds[True], kinds[False]
    some = max(count - count // 2, count - len(robust))
    chosen = broken[:some] + robust[: count - min(some, len(broken))]
    positions: dict[int, list[int]] = {}
    for number, position in sorted(chosen):
        positions.setdefault(number, []).append(position)
    return positions


def gallery(
    count: int, images: Images, model: nn.Module, job: EvaluationJob, execution: Execution, folder: Path
) -> list[Shown]:
    """Images before and after the attack; all workers call this together, after the evaluation.

    Args:
        count: number of images, at most.
        images: the test images.
        model: the same on all workers, in evaluation mode.
        job: resolved.
        execution: workers, progress and stop.
        folder: of the evaluation's stored outcomes.

    Returns:
        The images, the same on all workers.

    Raises:
        Stopped, InputError, WorkerError: as :func:`~hpcdat.evaluation.sharded_runner.run_sharded`.
    """
    settings, norm = job.evaluation, job.evaluation.resolved_norm
    batches = ImageBatches(images, job.data, settings.batch_size, next(model.parameters()).device)
    pgd = CheckedAccuracy(settings, norm, job.seed)
    store = open_store(folder, pgd, batches, model, job, execution.workers)
    wanted = choose(run_sharded(pgd, batches, model, job, execution, store=store), count)
    batches.batches = {number: batches.batches[number] for number in wanted}
    if not wanted:
        return []
    shown = run_sharded(GalleryAttack(settings, norm, job.seed, wanted), batches, model, job, execution)
    return [image for number in sorted(shown) for image in shown[number].images]
