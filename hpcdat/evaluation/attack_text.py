"""Attacks and radii as text."""

from __future__ import annotations

from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.config.measurements import Evaluation
from hpcdat.config.sections import Norm


def describe_attack(settings: Evaluation, norm: Norm) -> str:
    """An attack as text, such as ``PGD-20 x 10, linf, eps 8/255``: steps, restarts, norm and radius.

    Step size and start are added if they are not the usual ones.

    Args:
        settings: resolved.
        norm: of the ball.
    """
    restarts = f" x {settings.restarts}" if settings.restarts > 1 else ""
    parts = [f"PGD-{settings.steps}{restarts}", norm, f"eps {in_pixel_units(settings.resolved_eps)}"]
    if not settings.has_usual_step_size and settings.step_size is not None:
        parts.append(f"steps of {in_pixel_units(settings.step_size)}")
    return ", ".join(parts if settings.random_start else [*parts, "no random start"])


def describe_evaluation(job: EvaluationJob) -> str:
    """The attack of a job's evaluation as text, with its preset.

    Such as ``PGD-20, linf, eps 8/255 (robustbench-linf)``.

    Args:
        job: resolved.
    """
    attack = describe_attack(job.evaluation, job.evaluation.resolved_norm)
    if job.evaluation.preset == "none":
        return attack
    images = "" if job.takes_first_images else ", other images than the leaderboard's"
    return f"{attack} ({job.evaluation.preset}{images})"


def in_pixel_units(eps: float) -> str:
    """A radius in its usual notation: ``0.2``, or ``8/255`` if that is shorter."""
    if float(f"{eps:.3g}") == eps or abs(eps * 255 - round(eps * 255)) > 1e-6:
        return f"{eps:.4g}"
    return f"{round(eps * 255)}/255"
