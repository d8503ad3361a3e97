"""All that was found out about a model's robustness, and the files that tell it."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from hpcdat.cluster.stopping import StopRequest
from hpcdat.cluster.workers import Workers
from hpcdat.data.images import Images
from hpcdat.evaluation import suspicions
from hpcdat.evaluation.accuracy import Accuracy
from hpcdat.evaluation.autoattack import AutoAttack
from hpcdat.evaluation.identity import identity
from hpcdat.evaluation.measurements import Measurement, PgdAccuracy, Sweep
from hpcdat.evaluation.outcomes import Outcomes
from hpcdat.evaluation.sharding import Subject, measure
from hpcdat.evaluation.wanted import Wanted
from hpcdat.files import write_text
from hpcdat.job import Evaluation, Norm
from hpcdat.progress import Progress

Section = dict[str, Any]
"""What one measurement found, a JSON value: ``images``, ``attack``, ``suspicions``, and its own numbers."""


class _Section(BaseModel):
    """What is told of every section."""

    images: int
    suspicions: list[str]


class _Sweep(_Section):
    """What is told of a sweep."""

    curve: list[tuple[float, float]] = Field(min_length=1)


class _Ball(BaseModel):
    eps: float
    norm: str


class _AutoAttack(_Section):
    """What is told of AA."""

    aa: float | None
    attack: _Ball


KINDS = {"autoattack": _AutoAttack, "sweep-eps": _Sweep, "sweep-steps": _Sweep}


@dataclass(frozen=True)
class Findings:
    """What was found out about one model.

    Attributes:
        subject: what it was found out of, see :func:`~hpcdat.evaluation.identity.identity`.
        accuracy: TA and RA.
        sections: by measurement.
    """

    subject: Section
    accuracy: Accuracy
    sections: Mapping[str, Section]

    @property
    def suspicions(self) -> list[str]:
        """Of all sections."""
        return [found for section in self.sections.values() for found in section["suspicions"]]

    def together_with(self, file: Path) -> Findings:
        """With what the file holds of the same model and images and was not measured again.

        A file that is damaged, or a section that lacks something, counts as missing.

        Args:
            file: written by :meth:`write`, or not there.
        """
        try:
            before = json.loads(file.read_text())
            same = all(before[key] == value for key, value in self.subject.items())
            held = before["sections"].items() if same else ()
            kept = {name: section for name, section in held if _is_whole(name, section)}
            return Findings(self.subject, self.accuracy, {**kept, **self.sections})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return self

    def autoattack(self, settings: Evaluation, norm: Norm) -> tuple[float, int] | None:
        """AA in [0, 1] and its number of images, where it was measured in the ball of this evaluation.

        None too where the attacks were not those of the standard version.
        """
        section = self.sections.get("autoattack")
        if not section or section["aa"] is None:
            return None
        same = section["attack"]["eps"] == settings.eps and section["attack"]["norm"] == norm
        return (section["aa"], section["images"]) if same else None

    def write(self, file: Path, epoch: int) -> list[Path]:
        """Write them as JSON, and beside it a table and a plot for each sweep.

        Args:
            file: of all findings.
            epoch: epochs that the model was trained.

        Returns:
            The tables and plots.
        """
        # It needs plots and statistics, for which training, which draws no sweep, should not wait.
        from hpcdat.report.plots import plot_sweep

        value = {**self.subject, "epoch": epoch, "sections": self.sections}
        write_text(file, json.dumps(value, indent=2) + "\n")
        written = []
        for over in ("eps", "steps"):
            section = self.sections.get(f"sweep-{over}")
            if section:
                table, plot = (file.parent / f"ra-over-{over}.{kind}" for kind in ("csv", "svg"))
                write_text(table, _table(over, section))
                write_text(plot, plot_sweep(over, {"": dict(section["curve"])}))
                written += [table, plot]
        return written


def examine(
    subject: Subject, wanted: Wanted, images: Images, workers: Workers, progress: Progress, stop: StopRequest
) -> Findings:
    """Measure TA, RA and what else is wanted; all workers call this together.

    Args:
        subject: the model.
        wanted: beside TA and RA.
        images: the test images.
        workers: who measure.
        progress: for the user.
        stop: the user's wish to stop.

    Returns:
        The same on all workers.

    Raises:
        Stopped, InputError, WorkerError: as :func:`~hpcdat.evaluation.sharding.measure`.
    """
    job = subject.job
    settings, norm = job.evaluation, job.attack.norm

    def prepare() -> tuple[AutoAttack, Images] | None:
        if wanted.autoattack is None:
            return None
        some = images if wanted.autoattack == "all" else images.equal_part(wanted.autoattack)
        return AutoAttack(settings.eps, norm, len(images.classes)), some

    # Mistakes are told before anything takes long.
    autoattack = workers.together("prepare AutoAttack", prepare)

    def outcomes_of(measurement: Measurement, some: Images = images) -> Outcomes:
        return measure(measurement, subject, some, workers, progress, stop)

    pgd = PgdAccuracy(settings, norm)
    outcomes = outcomes_of(pgd)
    accuracy = Accuracy(outcomes.images, outcomes.count("correct"), outcomes.count("robust"))
    sections = {pgd.name: _of_accuracy(accuracy, pgd, outcomes, subject)}
    for over, values in (("eps", wanted.radii), ("steps", wanted.steps)):
        if values:
            sweep = Sweep(over, values, settings, norm)
            sections[sweep.name] = _of_sweep(sweep, outcomes_of(sweep), subject, images)
    if autoattack:
        ensemble, some = autoattack
        sections[ensemble.name] = _of_autoattack(ensemble, outcomes_of(ensemble, some), len(images))
    return Findings(identity(subject.model, job, images, workers), accuracy, sections)


def _is_whole(name: str, section: Any) -> bool:
    """Whether a section of a file has what is told of it."""
    try:
        KINDS.get(name, _Section).model_validate(section)
        return True
    except ValidationError:
        return False


def _of_accuracy(accuracy: Accuracy, pgd: PgdAccuracy, outcomes: Outcomes, subject: Subject) -> Section:
    return {
        "images": accuracy.images,
        "ta": accuracy.ta,
        "ra": accuracy.ra,
        "attack": pgd.settings,
        "suspicions": [
            *suspicions.batch_norm_in_train_mode(subject.model),
            *suspicions.of_accuracy(outcomes, subject.job.evaluation),
        ],
    }


def _of_sweep(sweep: Sweep, outcomes: Outcomes, subject: Subject, images: Images) -> Section:
    curve = {value: outcomes.share(str(value)) for value in sweep.values}
    found = []
    if sweep.over == "eps":
        data = subject.job.data
        found = suspicions.does_not_fall(
            curve,
            eps=subject.job.evaluation.eps,
            norm=sweep.norm,
            pixels=data.channels * data.image_size**2,
            most_frequent=max(Counter(images.labels).values()) / len(images),
        )
    return {
        "images": outcomes.images,
        "attack": sweep.settings,
        "curve": list(curve.items()),
        "suspicions": found,
    }


def _of_autoattack(ensemble: AutoAttack, outcomes: Outcomes, test_images: int) -> Section:
    withstood = {name: outcomes.share(name) for name in outcomes.columns}
    return {
        "images": outcomes.images,
        "test_images": test_images,
        # Robust accuracy under anything less is not AA.
        "aa": withstood["square"] if ensemble.is_standard else None,
        "attack": ensemble.settings,
        "withstood": withstood,
        "suspicions": suspicions.of_autoattack(outcomes),
    }


def _table(over: str, section: Section) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([over, "ra", "images"])
    writer.writerows([value, ra, section["images"]] for value, ra in section["curve"])
    return text.getvalue()
