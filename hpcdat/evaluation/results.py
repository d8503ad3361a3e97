"""The results of an evaluation, and the file that holds them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError
from torch import nn

from hpcdat.config.job import Job
from hpcdat.config.sections import Evaluation, Norm
from hpcdat.data.images import Images
from hpcdat.evaluation import sanity_checks
from hpcdat.evaluation.accuracy import Accuracy, CheckedAccuracy
from hpcdat.evaluation.autoattack import AutoAttack
from hpcdat.evaluation.cache_key import cache_key
from hpcdat.evaluation.image_batches import ImageBatches
from hpcdat.evaluation.outcomes import Outcomes, merge
from hpcdat.evaluation.request import EvaluationRequest, SweepKind
from hpcdat.evaluation.sharded_runner import Execution, Measurement, open_store, run_sharded
from hpcdat.evaluation.sweep import Sweep, sweep_name
from hpcdat.storage.atomic_files import write_text

Section = dict[str, Any]
"""The result of one measurement, a JSON value: ``images``, ``attack``, ``warnings``, and its own numbers."""


class _Section(BaseModel):
    """The fields of every section."""

    images: int
    warnings: list[str]


class _SweepAttack(BaseModel):
    kind: SweepKind


class _Sweep(_Section):
    attack: _SweepAttack
    curve: list[tuple[float, float]] = Field(min_length=1)


class _Ball(BaseModel):
    eps: float
    norm: str


class _AutoAttack(_Section):
    aa: float | None
    attack: _Ball


SWEEPS = [sweep_name(over, kind) for over in ("eps", "steps") for kind in ("plain", "accumulating")]
"""Names of the sections for sweeps."""
SCHEMAS: dict[str, type[_Section]] = {"autoattack": _AutoAttack, **dict.fromkeys(SWEEPS, _Sweep)}
"""Schemas of sections that have more fields than :class:`_Section`."""


@dataclass(frozen=True)
class Results:
    """The results of one model.

    Attributes:
        key: of model and images, see :func:`~hpcdat.evaluation.cache_key.cache_key`.
        accuracy: TA and RA.
        sections: by measurement.
    """

    key: Section
    accuracy: Accuracy
    sections: Mapping[str, Section]

    @property
    def warnings(self) -> list[str]:
        """The warnings of all sections."""
        return [warning for section in self.sections.values() for warning in section["warnings"]]

    def merged_with(self, file: Path) -> Results:
        """These results, and the sections of a file that were not measured again.

        A file that is damaged, or of another model or other images, is ignored; so is a section that lacks a
        field.

        Args:
            file: written by :meth:`write`; need not exist.
        """
        try:
            stored = json.loads(file.read_text())
            same = all(stored[name] == value for name, value in self.key.items())
            sections = stored["sections"].items() if same else ()
            complete = {name: section for name, section in sections if _is_complete(name, section)}
            return Results(self.key, self.accuracy, {**complete, **self.sections})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return self

    def autoattack(self, settings: Evaluation, norm: Norm) -> tuple[float, int] | None:
        """AA in [0, 1] and its number of images.

        None if it was not measured in the ball of this evaluation, or not with the standard version.
        """
        section = self.sections.get("autoattack")
        if not section or section["aa"] is None:
            return None
        same = section["attack"]["eps"] == settings.eps and section["attack"]["norm"] == norm
        return (section["aa"], section["images"]) if same else None

    def write(self, file: Path, epoch: int) -> None:
        """Write the results as JSON.

        Args:
            file: is replaced.
            epoch: number of epochs for which the model was trained.

        Raises:
            OSError: it could not be written; names the file.
        """
        value = {**self.key, "epoch": epoch, "sections": self.sections}
        write_text(file, json.dumps(value, indent=2) + "\n")


def evaluate_robustness(
    request: EvaluationRequest, images: Images, model: nn.Module, job: Job, execution: Execution, folder: Path
) -> Results:
    """Measure TA, RA and the requested measurements; all workers call this together.

    Args:
        request: in addition to TA and RA.
        images: the test images.
        model: the same on all workers, in evaluation mode.
        job: resolved.
        execution: workers, progress and stop.
        folder: for stored outcomes.

    Returns:
        The results, the same on all workers.

    Raises:
        Stopped, InputError, WorkerError: as :func:`~hpcdat.evaluation.sharded_runner.run_sharded`.
    """
    settings, norm, workers = job.evaluation, job.attack.norm, execution.workers
    device = next(model.parameters()).device
    all_images = ImageBatches(images, job.data, settings.batch_size, device)

    def prepare() -> tuple[AutoAttack, Images] | None:
        if request.autoattack is None:
            return None
        some = images if request.autoattack == "all" else images.equal_part(request.autoattack)
        return AutoAttack(settings.resolved_eps, norm, len(images.classes), job.seed), some

    # First, so that wrong input is reported before anything that takes long.
    autoattack = workers.on_all_ranks("prepare AutoAttack", prepare)

    def measure(measurement: Measurement[Outcomes], batches: ImageBatches = all_images) -> Outcomes:
        store = open_store(folder, measurement, batches, model, job, workers)
        return merge(run_sharded(measurement, batches, model, job, execution, store=store))

    pgd = CheckedAccuracy(settings, norm, job.seed)
    outcomes = measure(pgd)
    accuracy = Accuracy.of(outcomes)
    sections = {pgd.name: _accuracy_section(pgd, outcomes, model)}
    sweeps: list[tuple[Literal["eps", "steps"], Sequence[float]]] = [
        ("eps", request.radii),
        ("steps", request.steps),
    ]
    for over, values in sweeps:
        if values:
            sweep = Sweep(over, values, settings, norm, job.seed, request.sweep)
            sections[sweep.name] = _sweep_section(sweep, measure(sweep), images, job)
    if autoattack:
        attack, some = autoattack
        some_images = (
            all_images if some is images else ImageBatches(some, job.data, settings.batch_size, device)
        )
        sections[attack.name] = _autoattack_section(attack, measure(attack, some_images), len(images))
    return Results(cache_key(model, job, images, workers), accuracy, sections)


def _is_complete(name: str, section: Any) -> bool:
    """Whether a section of a file has all required fields."""
    try:
        SCHEMAS.get(name, _Section).model_validate(section)
        return True
    except ValidationError:
        return False


def _accuracy_section(pgd: CheckedAccuracy, outcomes: Outcomes, model: nn.Module) -> Section:
    accuracy = Accuracy.of(outcomes)
    return {
        "images": accuracy.images,
        "ta": accuracy.ta,
        "ra": accuracy.ra,
        "attack": pgd.settings,
        "warnings": [
            *sanity_checks.batch_norm_in_train_mode(model),
            *sanity_checks.check_accuracy(outcomes, pgd.evaluation),
        ],
    }


def _sweep_section(sweep: Sweep, outcomes: Outcomes, images: Images, job: Job) -> Section:
    curve = {value: outcomes.share(str(value)) for value in sweep.values}
    warnings = []
    if sweep.over == "eps":
        warnings = sanity_checks.does_not_fall(
            curve,
            eps=job.evaluation.resolved_eps,
            norm=sweep.norm,
            pixels=job.data.channels * job.data.image_size**2,
            most_frequent=max(Counter(images.labels).values()) / len(images),
        )
    return {
        "images": outcomes.images,
        "attack": sweep.settings,
        "curve": list(curve.items()),
        "warnings": warnings,
    }


def _autoattack_section(attack: AutoAttack, outcomes: Outcomes, test_images: int) -> Section:
    robust = {name: outcomes.share(name) for name in outcomes.columns}
    return {
        "images": outcomes.images,
        "test_images": test_images,
        # Robust accuracy under fewer or weaker attacks must not be called AA.
        "aa": robust["square"] if attack.is_standard else None,
        "attack": attack.settings,
        "robust": robust,
        "warnings": sanity_checks.check_autoattack(outcomes),
    }
