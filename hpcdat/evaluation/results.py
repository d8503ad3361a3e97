"""The results of an evaluation, and the file that holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field, ValidationError
from torch import nn

from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.config.measurements import Evaluation
from hpcdat.config.sections import Norm
from hpcdat.data.images import Images
from hpcdat.errors import InputError
from hpcdat.evaluation import sanity_checks
from hpcdat.evaluation.accuracy import Accuracy, CheckedAccuracy, PgdAccuracy
from hpcdat.evaluation.autoattack import AutoAttack
from hpcdat.evaluation.cache_key import cache_key
from hpcdat.evaluation.fast_bound import FastBound
from hpcdat.evaluation.image_batches import ImageBatches
from hpcdat.evaluation.outcomes import Outcomes, merge
from hpcdat.evaluation.request import EvaluationRequest, SweepKind
from hpcdat.evaluation.sharded_runner import Execution, Measurement, open_store, run_sharded
from hpcdat.evaluation.sweep import Sweep, sweep_name
from hpcdat.storage.atomic_files import write_text
from hpcdat.storage.evaluated import AVERAGED

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
    version: str | None = None
    ta: float | None = None
    ra: float | None = None
    attack: _Ball


class _FastBound(_Section):
    robust: float
    attack: _Ball


SWEEPS = [sweep_name(over, kind) for over in ("eps", "steps") for kind in ("plain", "accumulating")]
"""Names of the sections for sweeps."""
SCHEMAS: dict[str, type[_Section]] = {
    "autoattack": _AutoAttack,
    FastBound.name: _FastBound,
    **dict.fromkeys(SWEEPS, _Sweep),
}
"""Schemas of sections that have more fields than :class:`_Section`."""


class AutoAttacked(NamedTuple):
    """Accuracies on the images that AutoAttack has attacked.

    Attributes:
        aa: robust accuracy under AutoAttack, in [0, 1].
        aa_images: number of images.
        aa_ta, aa_ra: TA and RA on the same images, in [0, 1]; None if not measured.
        aa_version: how AutoAttack differed from its standard version; None if it did not.
    """

    aa: float
    aa_images: int
    aa_ta: float | None
    aa_ra: float | None
    aa_version: str | None = None


@dataclass(frozen=True)
class Results:
    """The results of one evaluation of one model.

    Attributes:
        key: of model and images, see :func:`~hpcdat.evaluation.cache_key.cache_key`.
        accuracy: TA and RA.
        sections: by measurement.
        changed: settings in which the evaluation differs from that of the run's own job.
    """

    key: Section
    accuracy: Accuracy
    sections: Mapping[str, Section]
    changed: tuple[str, ...] = ()

    @property
    def warnings(self) -> list[str]:
        """The warnings of all sections."""
        return [warning for section in self.sections.values() for warning in section["warnings"]]

    def merged_with(self, file: Path) -> Results:
        """These results, and the sections of a file that were not measured again.

        A plain sweep, whose values do not depend on one another, retains the values that a file has of it.
        What a file has of another model or other images is ignored; so is a section that lacks a field, and a
        file that is damaged.

        Args:
            file: written by :meth:`write`; need not exist.
        """
        stored = next((one for one in read_evaluations(file) if _changed(one) == self.changed), None)
        if stored is None or any(stored.get(name) != value for name, value in self.key.items()):
            return self
        sections = {**stored["sections"], **self.sections}
        for over in ("eps", "steps"):
            name = sweep_name(over, "plain")
            if name in stored["sections"] and name in self.sections:
                sections[name] = _joined(stored["sections"][name], self.sections[name], over)
        return replace(self, sections=sections)

    def autoattack(self, settings: Evaluation, norm: Norm) -> AutoAttacked | None:
        """AA, and TA and RA on the same images.

        None if it was not measured in the ball of this evaluation, or with fewer or weaker attacks than there
        are for this number of classes.
        """
        section = self._in_ball("autoattack", settings, norm)
        if section is None or section["aa"] is None:
            return None
        same_images = section.get("ta"), section.get("ra")
        return AutoAttacked(section["aa"], section["images"], *same_images, section.get("version"))

    def fast_bound(self, settings: Evaluation, norm: Norm) -> float | None:
        """The fast bound, in [0, 1]; None if it was not measured in the ball of this evaluation."""
        section = self._in_ball(FastBound.name, settings, norm)
        return None if section is None else float(section["robust"])

    def _in_ball(self, name: str, settings: Evaluation, norm: Norm) -> Section | None:
        """The section of a measurement if it is of the ball of this evaluation."""
        section = self.sections.get(name)
        if section and (section["attack"]["eps"], section["attack"]["norm"]) == (settings.eps, norm):
            return section
        return None

    def write(self, file: Path, epoch: int | None, step: int = 0) -> None:
        """Write the results as JSON, next to those of other evaluations of the same checkpoint.

        These have the same weights and other settings, or the averaged weights of the checkpoint.

        The file has the evaluation with the run's own settings, if there is one, at its top, and a list of
        the others.

        Args:
            file: is replaced.
            epoch, step: number of epochs for which the model was trained, and of steps in the next one; None
                and 0 for given weights.

        Raises:
            OSError: it could not be written; names the file.
        """
        place = {"epoch": epoch, "step": step}
        new = {**self.key, **place, "changed": self.changed, "sections": self.sections}
        stored = [one for one in read_evaluations(file) if self._same_checkpoint(one, place)]
        evaluations = [new if _changed(one) == self.changed else one for one in stored]
        if new not in evaluations:
            evaluations.append(new)
        own: Section = next((one for one in evaluations if not _changed(one)), {"sections": {}})
        rest = [one for one in evaluations if _changed(one)]
        write_text(file, json.dumps({**own, "others": rest}, indent=2) + "\n")

    def _same_checkpoint(self, stored: Section, place: Section) -> bool:
        """Whether a stored evaluation has the same weights, or one of the two has the averages of both."""
        if stored.get("weights") == self.key["weights"]:
            return True
        one_is_averaged = (AVERAGED in _changed(stored)) != (AVERAGED in self.changed)
        return one_is_averaged and all(stored.get(key, 0) == value for key, value in place.items())


def read_evaluations(file: Path) -> list[Section]:
    """The evaluations in a file of :meth:`Results.write`: with the run's own settings, if any, then others.

    Each has the complete ones of its ``sections``, and in ``changed`` the settings that differ from the run's
    own. Damaged ones are left out.
    """
    try:
        stored = json.loads(file.read_text())
    except (OSError, ValueError):
        return []
    if not isinstance(stored, dict):
        return []
    others = stored.pop("others", [])
    evaluations = []
    for one in [stored, *(others if isinstance(others, list) else [])]:
        sections = one.get("sections") if isinstance(one, dict) else None
        if isinstance(sections, dict) and sections:
            complete = {name: section for name, section in sections.items() if _is_complete(name, section)}
            evaluations.append({**one, "sections": complete})
    return evaluations


def _joined(before: Section, now: Section, over: str) -> Section:
    """A plain sweep with the values of an earlier one, if both have the same attack and images."""
    attacks = [{key: value for key, value in one["attack"].items() if key != over} for one in (before, now)]
    if attacks[0] != attacks[1] or before["images"] != now["images"]:
        return now
    curve = {value: ra for one in (before, now) for value, ra in one["curve"]}
    values = sorted(curve)
    return {
        **now,
        "attack": {**now["attack"], over: values},
        "curve": [(value, curve[value]) for value in values],
    }


def _changed(evaluation: Section) -> tuple[str, ...]:
    """The settings that differ from the run's own; evaluations before 0.1.0 have none."""
    return tuple(evaluation.get("changed") or ())


def evaluate_robustness(
    request: EvaluationRequest,
    images: Images,
    model: nn.Module,
    job: EvaluationJob,
    execution: Execution,
    folder: Path,
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
    batches = ImageBatches(images, job.data, job.evaluation.batch_size, next(model.parameters()).device)
    accuracy, sections = measure_robustness(request, batches, model, job, execution, folder)
    return Results(cache_key(model, job, images, execution.workers), accuracy, sections)


def measure_robustness(
    request: EvaluationRequest,
    all_images: ImageBatches,
    model: nn.Module,
    job: EvaluationJob,
    execution: Execution,
    folder: Path | None,
) -> tuple[Accuracy, dict[str, Section]]:
    """TA and RA, and the section of each measurement.

    Args:
        request, model, job, execution: as for :func:`evaluate_robustness`.
        all_images: the test images.
        folder: for stored outcomes; None: they are not stored, so that nothing can resume.
    """
    settings, norm = job.evaluation, job.evaluation.resolved_norm
    workers, images = execution.workers, all_images.images

    def prepare() -> tuple[AutoAttack, ImageBatches] | None:
        count = request.autoattack
        if count is None:
            return None
        some = all_images
        if count != "all":
            some = all_images.part(images.first(count) if job.takes_first_images else images.balanced(count))
        return AutoAttack(settings.resolved_eps, norm, len(images.classes), job.seed), some

    def prepare_bound() -> FastBound | None:
        if not request.fast_bound:
            return None
        if settings.resolved_eps <= 0:
            raise InputError("evaluation.fast_bound: evaluation.eps must be above 0")
        return FastBound(settings.resolved_eps, norm, job.seed)

    # First, so that wrong input is reported before anything that takes long.
    autoattack = workers.on_all_ranks("prepare AutoAttack", prepare)
    bound = workers.on_all_ranks("prepare the fast bound", prepare_bound)

    def measure(measurement: Measurement[Outcomes], batches: ImageBatches = all_images) -> Outcomes:
        store = open_store(folder, measurement, batches, model, job, workers) if folder else None
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
    if bound:
        sections[bound.name] = _bound_section(bound, measure(bound), outcomes)
    if autoattack:
        attack, some = autoattack
        # In one evaluation, so that both have the same images, also where some cannot be read.
        of_some = outcomes if some is all_images else measure(_pgd_on_some(settings, norm, job.seed), some)
        sections[attack.name] = _autoattack_section(attack, measure(attack, some), of_some, len(images))
    return accuracy, sections


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


def _sweep_section(sweep: Sweep, outcomes: Outcomes, images: Images, job: EvaluationJob) -> Section:
    curve = {value: outcomes.share(str(value)) for value in sweep.values}
    warnings = []
    if sweep.over == "eps":
        warnings = sanity_checks.does_not_fall(
            curve,
            eps=job.evaluation.resolved_eps,
            norm=sweep.norm,
            pixels=job.data.channels * job.data.image_size**2,
            most_frequent=images.most_frequent / len(images),
        )
    return {
        "images": outcomes.images,
        "attack": sweep.settings,
        "curve": list(curve.items()),
        "warnings": warnings,
    }


def _bound_section(bound: FastBound, outcomes: Outcomes, pgd: Outcomes) -> Section:
    """The section of the fast bound; ``pgd`` has the outcomes of PGD on the same images."""
    return {
        "images": outcomes.images,
        **{name: outcomes.share(name) for name in outcomes.columns},
        "attack": bound.settings,
        "warnings": sanity_checks.beaten_by_pgd(
            pgd.columns["robust"],
            outcomes.columns["robust"],
            name="the fast bound",
            attack="the margin attack",
        ),
    }


def _pgd_on_some(settings: Evaluation, norm: Norm, seed: int) -> PgdAccuracy:
    """RA on the images that AutoAttack attacks."""
    return PgdAccuracy(settings, norm, seed, "pgd-on-autoattacks-images")


def _autoattack_section(attack: AutoAttack, outcomes: Outcomes, pgd: Outcomes, test_images: int) -> Section:
    """The section of AutoAttack; ``pgd`` has the outcomes of PGD on the same images."""
    robust = {name: outcomes.share(name) for name in outcomes.columns}
    return {
        "images": outcomes.images,
        "test_images": test_images,
        # Robust accuracy under fewer or weaker attacks must not be called AA.
        "aa": robust["square"] if attack.is_complete else None,
        "version": attack.version,
        "ta": robust["correct"],
        "ra": pgd.share("robust"),
        "attack": attack.settings,
        "robust": robust,
        "warnings": [
            *([f"{attack.version}; this is not the standard version"] if attack.version else []),
            *sanity_checks.check_autoattack(outcomes, pgd),
        ],
    }
